"""LeRobot datasets downloaded from a server that answers as the Hugging Face Hub does."""

import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lwdctl.cli.main import main
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import SilentProgress
from lwdctl.data.download import download
from lwdctl.data.reader import open_source

sys.path.insert(0, str(Path(__file__).parents[1]))
from file_server import FileServer
from lerobot_maker import ACTION, make_episodes, write_v3

sys.path.pop(0)

NAME, REVISION = "someone/cups", "1" * 40
WORDS = ["lerobot", NAME]
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def episodes():
    return make_episodes((3, 4))


@pytest.fixture
def server(monkeypatch, tmp_path, episodes):
    """Serve a dataset with a video, a readme, and a name that leads out of the folder."""
    monkeypatch.setattr("lwdctl.data.fetch.PAUSES", (0.01,))
    root = write_v3(tmp_path / "made", [episodes])
    content = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    content |= {"README.md": b"#", "videos/top/file-000.mp4": b"x", "data/../../out.json": b"{}"}
    siblings = []
    for name, value in content.items():
        digest = hashlib.sha256(value).hexdigest()
        large = {"sha256": digest, "size": len(value), "pointerSize": 130}
        item = {"rfilename": name, "size": len(value), "blobId": "0" * 40}
        siblings.append({**item, **({"lfs": large} if name.endswith(".parquet") else {})})
    listing = {"id": NAME, "sha": REVISION, "siblings": siblings, "tags": []}
    place = f"/datasets/{NAME}/resolve/{REVISION}/"
    files = {place + name: value for name, value in content.items()}
    with FileServer(files) as running:
        running.files[f"/api/datasets/{NAME}?blobs=True"] = json.dumps(listing).encode()
        running.files[f"/api/datasets/{NAME}?blobs=true"] = json.dumps(listing).encode()
        running.place = place
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_data_and_metadata_are_downloaded_and_read(server, tmp_path, episodes):
    server.breaks = [10**6, 10]  # the second answer is a file
    done = download(WORDS, tmp_path / "data", SilentProgress())
    root = tmp_path / "data/lerobot/someone/cups"
    assert (done.path, done.fetched, done.verified_by) == (root, True, "Hugging Face")
    assert done.next_command == f"lwdctl ingest lerobot {root}"
    assert {path.suffix for path in root.rglob("*") if path.is_file()} == {".json", ".parquet"}
    assert not list(tmp_path.rglob("out.json"))
    with open_source("lerobot", (root,), IngestConfig()) as source:
        np.testing.assert_array_equal(source.read(1).actions, np.float32(episodes[1][ACTION]))
    asked = len(server.asked)
    assert not download(WORDS, tmp_path / "data", SilentProgress()).fetched
    assert len(server.asked) == asked


def test_a_broken_download_goes_on_with_the_missing_files(server, tmp_path):
    path = server.place + DATA
    content = server.files.pop(path)
    with pytest.raises(DataError, match="404"):
        download(WORDS, tmp_path / "data", SilentProgress())
    server.files[path] = content
    server.asked.clear()
    assert download(WORDS, tmp_path / "data", SilentProgress()).fetched
    assert server.place + "meta/info.json" not in [item[1] for item in server.asked]


def test_another_file_than_the_hub_lists_is_refused(server, tmp_path):
    path = server.place + DATA
    server.files[path] = server.files[path][:-1] + b"x"
    with pytest.raises(DataError, match="not the file that was published"):
        download(WORDS, tmp_path / "data", SilentProgress())
    assert not (tmp_path / "data/lerobot/someone/cups" / DATA).exists()


def test_a_file_that_was_changed_is_noticed_and_the_hint_works(server, tmp_path):
    path = download(WORDS, tmp_path / "data", SilentProgress()).path / DATA
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match="exists, but its SHA-256") as caught:
        download(WORDS, tmp_path / "data", SilentProgress())
    subprocess.run(shlex.split(caught.value.hint.split(", and")[0]), check=True)
    assert download(WORDS, tmp_path / "data", SilentProgress()).fetched
    assert path.read_bytes() == server.files[server.place + DATA]


def test_a_dataset_of_another_kind_is_refused(server, tmp_path):
    listing = {"id": NAME, "sha": REVISION, "siblings": [{"rfilename": "data/a.parquet"}]}
    for text in ("True", "true"):
        server.files[f"/api/datasets/{NAME}?blobs={text}"] = json.dumps(listing).encode()
    with pytest.raises(DataError, match="no LeRobot dataset"):
        download(WORDS, tmp_path / "data", SilentProgress())


def test_a_name_that_the_hub_does_not_know_is_one_line(server, tmp_path):
    with pytest.raises(DataError, match="does not respond for the dataset no/body") as caught:
        download(["lerobot", "no/body"], tmp_path / "data", SilentProgress())
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["cups", "../../x", "a/../b", "a/b/c", ""])
def test_a_malformed_name_is_refused(server, tmp_path, name):
    with pytest.raises(ConfigError, match="not the name of a dataset"):
        download(["lerobot", name], tmp_path, SilentProgress())
    assert server.asked == []


def test_the_command_line(server, tmp_path, capfd):
    words = ["download", *WORDS, "--output", str(tmp_path / "my data")]
    assert main([*words, "-q"]) == 0
    command = shlex.split(capfd.readouterr().out.partition("next: ")[2])
    assert command == ["lwdctl", "ingest", "lerobot", str(tmp_path / "my data/lerobot" / NAME)]
    assert main(["download", "--list"]) == 0
    assert "lwdctl download lerobot USER/NAME" in capfd.readouterr().out
