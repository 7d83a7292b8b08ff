"""Digests of files and directories, also while other work goes on."""

import errno
import hashlib
import os
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from lwdctl.artifacts.files import (
    fingerprint,
    fingerprints_beside,
    sha256_of,
    user_path,
    whole_directory,
    write_durably,
)
from lwdctl.cli.main import main
from lwdctl.core.errors import ArtifactError

TERABYTE = 2**40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 2**17 - 1, 2**17, 2**17 + 1, 3 * 2**17 + 5])
def test_a_digest_covers_every_byte(tmp_path, size):
    content = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "file"
    path.write_bytes(content[:size])
    assert sha256_of(path) == sha256(content[:size])
    assert fingerprint(path) == {
        "path": str(path.resolve()),
        "bytes": size,
        "sha256": sha256(content[:size]),
    }


def test_a_directory_is_known_by_names_and_contents(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"one")
    (tmp_path / "a").write_bytes(b"two")
    lines = f"a\0{sha256(b'two')}\nb/x\0{sha256(b'one')}\n"
    with fingerprints_beside([tmp_path, tmp_path / "a"]) as digests:
        found, file = digests.result()
    assert (found["bytes"], found["sha256"]) == (6, sha256(lines.encode()))
    assert file["sha256"] == sha256(b"two")


def huge(path):
    with path.open("wb") as file:
        file.truncate(TERABYTE)
    return path


def test_an_error_does_not_wait_for_digests(tmp_path):
    """Hashing a terabyte takes a quarter of an hour."""
    path = huge(tmp_path / "huge")

    def work():
        with fingerprints_beside([path, tmp_path / "none"]) as digests:
            found.append(digests)
            raise ValueError("bad file")

    found = []
    with pytest.raises(ValueError, match="bad file"):
        work()
    with pytest.raises(CancelledError):
        found[0].result()


def test_a_file_that_is_refused_is_not_hashed_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    huge(tmp_path / "huge.hdf5")
    assert main(["ingest", "huge.hdf5", "-q"]) == 1
    assert main(["ingest", "robomimic", "huge.hdf5", "-q"]) == 1
    assert "huge.hdf5" in capsys.readouterr().err


def test_nobody_waits_for_a_pipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "pipe")
    assert main(["ingest", "robomimic", "pipe", "-q"]) == 1
    assert "is neither a file nor a directory" in capsys.readouterr().err


def full(*_, **__):
    """Stand for a write on a full disk: the system names no file."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_directory_that_cannot_be_written_whole_is_named_and_nothing_is_left(tmp_path):
    def write():
        with whole_directory(tmp_path / "made") as fresh:
            (fresh / "part").write_text("half")
            full()

    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        write()
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint.startswith("free disk space")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_only_begins_with_a_tilde_is_no_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/made") == user_path(Path("~/made")) == tmp_path / "made"
    assert user_path("~nobody.hdf5") == Path("~nobody.hdf5")


def test_the_current_directory_is_filled_and_stays_the_same_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with whole_directory(Path()) as fresh:
        (fresh / "one").write_text("whole")
    assert [path.name for path in Path().iterdir()] == ["one"]


@pytest.mark.parametrize("exists", [True, False])
def test_what_another_process_has_written_meanwhile_is_kept(tmp_path, exists):
    folder = tmp_path / "made"
    if exists:
        folder.mkdir()

    def write():
        with whole_directory(folder) as fresh:
            (fresh / "one").write_text("late")
            with whole_directory(folder) as other:
                (other / "one").write_text("early")

    with pytest.raises(ArtifactError, match="another process has written into "):
        write()
    assert [path.read_text() for path in folder.rglob("*")] == ["early"]
    assert list(tmp_path.iterdir()) == [folder]


def test_files_are_replaced_in_a_directory_together_or_not_at_all(tmp_path):
    folder = tmp_path / "made"
    (tmp_path / "there").mkdir()
    folder.symlink_to("there")
    for name in ("one", "two", "other"):
        (folder / name).write_text("before")

    def write(*, fail):
        with whole_directory(folder, replace=True) as fresh:
            (fresh / "one").write_text("after")
            if fail:
                raise KeyboardInterrupt
            (fresh / "two").write_text("after")

    with pytest.raises(KeyboardInterrupt):
        write(fail=True)
    assert {path.read_text() for path in folder.iterdir()} == {"before"}
    write(fail=False)
    assert [(folder / name).read_text() for name in ("one", "two", "other")] == [
        "after", "after", "before",
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == [folder, tmp_path / "there"]


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_durably(path, b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_durably(path, b"after")
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"
