"""The table of public demonstrations, and what arrives from it."""

import contextlib
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lwdctl.cli.main import main
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError, MissingExtraError, install_extra
from lwdctl.core.progress import SilentProgress
from lwdctl.data import download as module
from lwdctl.data.download import (
    HUB_REPOSITORY,
    HUB_REVISION,
    SOURCES,
    download,
    find_source,
    unpack,
)
from lwdctl.data.formats import READERS
from lwdctl.data.reader import open_source

sys.path.insert(0, str(Path(__file__).parent))
from file_server import FileServer, hdf5_bytes

sys.path.pop(0)

CONTENT = hdf5_bytes(1_497_000)
LIFT = ["robomimic", "lift", "mh"]
HUB_PATH = f"/datasets/{HUB_REPOSITORY}/resolve/{HUB_REVISION}/{find_source(LIFT).hub_path}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("lwdctl.data.fetch.PAUSES", (0.01,))
    with FileServer({"/a.hdf5": CONTENT, HUB_PATH: CONTENT}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def row(server, monkeypatch):
    """Put a row of the local server behind every name."""

    def put(**changes):
        source = replace(find_source(["d4rl", "halfcheetah-medium-v2"]), **changes)
        monkeypatch.setattr(module, "find_source", lambda arguments: source)
        return source

    return put


def test_the_table_is_well_formed():
    names = [" ".join(item.arguments).lower() for item in SOURCES]
    assert len(set(names)) == len(names)
    assert len({item.file for item in SOURCES}) == len(SOURCES)
    for item in SOURCES:
        assert item.format in READERS
        assert item.arguments[0] == item.format
        assert not Path(item.file).is_absolute()
        assert item.url.startswith("https://") or item.hub_path or item.format == "minari"
        assert re.fullmatch("([0-9a-f]{64})?", item.sha256)
        assert not (item.sha256 and item.checksum == "none published")


@pytest.mark.parametrize(
    "words",
    ["robomimic lift mh", "pusht", "d4rl halfcheetah-medium-v2", "d4rl hammer-expert-v1",
     "minari mujoco/halfcheetah/expert-v0", "minari somebody/else-v7"],
)  # fmt: skip
def test_what_the_help_names_is_found(words):
    assert " ".join(find_source(words.split()).arguments) == words


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["robomimic"], "lwdctl download robomimic lift mh"),
        (["robomimic", "lift", "hm"], "lwdctl download robomimic lift mh"),
        (["nothing"], "lwdctl download --list"),
        (["lerobot"], "lwdctl download lerobot USER/NAME"),
    ],
)
def test_what_is_unknown_is_answered_with_the_closest(words, hint):
    with pytest.raises(ConfigError) as caught:
        find_source(words)
    assert hint in caught.value.hint


def test_a_file_is_fetched_once_and_checked_again(row, server, tmp_path):
    row(url=f"{server.url}/a.hdf5")
    done = download(["x"], tmp_path, SilentProgress())
    assert done.fetched
    assert done.verified_by == ""
    assert done.path == tmp_path / "d4rl/halfcheetah_medium-v2.hdf5"
    assert done.next_command == f"lwdctl ingest d4rl {done.path}"
    record = done.path.with_name(f"{done.path.name}.sha256")
    assert record.read_text() == f"{done.sha256}  {done.path.name}\n"
    asked = len(server.asked)
    again = download(["x"], tmp_path, SilentProgress())
    assert (again.fetched, again.verified_by) == (False, "the first download")
    assert len(server.asked) == asked
    done.path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="exists, but its SHA-256") as caught:
        download(["x"], tmp_path, SilentProgress())
    assert "move it away" in caught.value.hint
    assert done.path.exists()


def test_a_file_put_there_by_hand_is_taken(row, server, tmp_path):
    source = row(url=f"{server.url}/a.hdf5", sha256=hashlib.sha256(CONTENT).hexdigest())
    path = tmp_path / source.file
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    done = download(["x"], tmp_path, SilentProgress())
    assert not done.fetched
    assert server.asked == []


def test_the_hubs_digest_is_what_the_file_must_have(server, tmp_path):
    server.breaks = [5 * 65536]
    done = download(LIFT, tmp_path, SilentProgress())
    assert done.path == tmp_path / "robomimic/lift_mh.hdf5"
    assert (done.fetched, done.verified_by) == (True, "Hugging Face")
    assert done.path.read_bytes() == CONTENT
    asked = [item[0] for item in server.asked if item[1] == HUB_PATH]
    assert asked == ["HEAD", "GET", "GET"], server.asked
    assert server.asked[-1][2] == "bytes=327680-"


def test_another_file_than_the_table_says_is_refused(server, tmp_path):
    words = ["robomimic", "lift", "ph"]  # its digest stands in the table
    server.files[HUB_PATH.replace("/mh/", "/ph/")] = CONTENT
    with pytest.raises(DataError, match="not the file that was published"):
        download(words, tmp_path, SilentProgress())
    assert list((tmp_path / "robomimic").iterdir()) == []


def test_a_hub_that_does_not_know_the_file_is_one_line(server, tmp_path):
    del server.files[HUB_PATH]
    with pytest.raises(DataError, match="does not respond for") as caught:
        download(LIFT, tmp_path, SilentProgress())
    assert "\n" not in caught.value.message
    assert HUB_PATH in caught.value.hint


def test_an_archive_is_unpacked_to_what_ingest_reads(row, server, make_sample, tmp_path):
    sample = make_sample("pusht", tmp_path / "made").path
    archive = tmp_path / "made.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(sample.rglob("*")):
            if file.is_file():
                target.write(file, f"pusht/replay.zarr/{file.relative_to(sample)}")
        target.writestr("pusht/other.txt", "not wanted")
    server.files["/pusht.zip"] = archive.read_bytes()
    row(
        format="pusht",
        file="pusht.zip",
        url=f"{server.url}/pusht.zip",
        unpacked="pusht/replay.zarr",
    )
    data = tmp_path / "data"
    done = download(["x"], data, SilentProgress())
    assert done.path == data / "pusht/replay.zarr"
    assert sorted(item.name for item in (data / "pusht").iterdir()) == ["replay.zarr"]
    with open_source("pusht", (done.path,), IngestConfig()) as reader:
        assert len(reader.episodes) == 12
    assert not download(["x"], data, SilentProgress()).fetched
    (data / "pusht.zip").unlink()
    assert not download(["x"], data, SilentProgress()).fetched


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt"])
def test_an_archive_that_leads_out_of_itself_is_refused(tmp_path, name):
    archive = tmp_path / "in" / "a.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("good/file.txt", "x")
        target.writestr(name, "x")
    with pytest.raises(DataError, match="leads out of it"):
        unpack(archive, "good", tmp_path / "in", SilentProgress())
    assert [item.name for item in tmp_path.rglob("*") if item.is_file()] == ["a.zip"]


def test_an_archive_with_a_link_is_refused(tmp_path):
    archive = tmp_path / "a.zip"
    link = zipfile.ZipInfo("good/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="leads out of it"):
        unpack(archive, "good", tmp_path, SilentProgress())


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_archive_leaves_nothing(tmp_path, compression):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", compression) as target:
        target.writestr("good/file.txt", "some text that is long enough to be damaged")
    content = bytearray(archive.read_bytes())
    content[50] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(archive, "good", tmp_path, SilentProgress())
    assert [item.name for item in tmp_path.iterdir()] == ["a.zip"]


@pytest.fixture
def minari(monkeypatch):
    """minari with its server replaced; what it wrote stands under its own root."""
    package = pytest.importorskip("minari")
    calls = []

    def write(identifier, force_download=False):
        calls.append((identifier, force_download))
        folder = Path(os.environ["MINARI_DATASETS_PATH"]) / identifier / "data"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metadata.json").write_text("{}")
        if len(calls) == 1:
            raise ConnectionResetError(104, "Connection reset by peer")
        (folder / "main_data.hdf5").write_bytes(CONTENT)

    monkeypatch.setattr(package, "download_dataset", write)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    return calls


def test_a_broken_minari_download_is_not_taken_for_the_whole(minari, tmp_path):
    words = ["minari", "mujoco/halfcheetah/expert-v0"]
    with pytest.raises(DataError, match="Connection reset by peer"):
        download(words, tmp_path, SilentProgress())
    done = download(words, tmp_path, SilentProgress())
    assert done.path == tmp_path / "minari/mujoco/halfcheetah/expert-v0"
    assert minari == [(words[1], False), (words[1], True)]
    assert not download(words, tmp_path, SilentProgress()).fetched
    assert len(minari) == 2
    assert "MINARI_DATASETS_PATH" not in os.environ


class Loud:
    def message(self, text):
        pass


@pytest.mark.parametrize(("progress", "told"), [(SilentProgress(), False), (Loud(), True)])
def test_quiet_keeps_the_hubs_retries_quiet(minari, monkeypatch, tmp_path, progress, told):
    import minari as package

    logger = logging.getLogger("huggingface_hub.utils._http")
    lines = []
    write = package.download_dataset

    def retrying(identifier, force_download=False):
        # What the Hub's library does on its first import, which may be minari's.
        import huggingface_hub.utils  # noqa: F401

        lines.append(logger.isEnabledFor(logging.WARNING))
        assert logger.isEnabledFor(logging.ERROR)
        write(identifier, force_download)

    monkeypatch.setattr(package, "download_dataset", retrying)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(DataError):
        download(["minari", "mujoco/halfcheetah/expert-v0"], tmp_path, progress)
    assert lines == [told]
    assert logging.getLogger("huggingface_hub").level == level


@pytest.mark.parametrize("name", ["mujoco/halfcheetah", "../../escape-v0", "a//b-v0"])
def test_a_malformed_minari_name_is_refused(minari, tmp_path, name):
    with pytest.raises(ConfigError):
        download(["minari", name], tmp_path, SilentProgress())
    assert minari == []


def test_minari_that_is_not_installed_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingExtraError) as caught:
        download(["minari", "a/b-v0"], tmp_path, SilentProgress())
    assert caught.value.hint == install_extra("minari")


def test_the_command_answers_with_one_object(server, tmp_path, capfd):
    words = ["download", *LIFT, "--output", str(tmp_path), "--json", "-q"]
    assert main(words) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["artifact"] is None
    assert answer["path"] == str(tmp_path / "robomimic/lift_mh.hdf5")
    assert answer["summary"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert answer["summary"]["fetched"] is True
    assert main(words[:-2]) == 0
    text = capfd.readouterr().out
    assert text.startswith("already here")
    assert "next: lwdctl ingest robomimic" in text


def test_the_list(capfd):
    assert main(["download", "--list"]) == 0
    assert "robomimic lift mh" in capfd.readouterr().out
    assert main(["download", "--list", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["summary"]["sources"]
    assert len(rows) == len(SOURCES)
    assert main(["download"]) == 1
    assert "--list" in capfd.readouterr().err


@pytest.mark.slow
def test_an_interrupted_download_keeps_the_part(server, tmp_path):
    server.pause = 0.3
    words = [sys.executable, "-m", "lwdctl", "download", *LIFT, "--output", str(tmp_path)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "robomimic/lift_mh.hdf5.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_size > 2 * 65536:
                break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "continue with: lwdctl download robomimic lift mh" in said
    size = part.stat().st_size
    assert 0 < size < len(CONTENT)
    server.pause = 0.0
    done = download(LIFT, tmp_path, SilentProgress())
    assert done.path.read_bytes() == CONTENT
    assert server.asked[-1][2] == f"bytes={size}-"
