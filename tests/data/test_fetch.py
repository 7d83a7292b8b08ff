"""Downloads over a connection that breaks off, against a server of our own."""

import gzip
import hashlib
import socket
import sys
from pathlib import Path

import pytest

from lwdctl.core.errors import DataError
from lwdctl.core.progress import SilentProgress
from lwdctl.data import fetch as module
from lwdctl.data.fetch import fetch

sys.path.insert(0, str(Path(__file__).parent))
from file_server import FileServer, hdf5_bytes

sys.path.pop(0)

CONTENT = hdf5_bytes(1_497_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Told(SilentProgress):
    def __init__(self):
        self.lines, self.tasks = [], []

    def message(self, text):
        self.lines.append(text)

    def task(self, title, total, unit="it", start=0):
        self.tasks.append((title, total, start))
        return super().task(title, total, unit, start)


@pytest.fixture
def server():
    with FileServer({"/a.hdf5": CONTENT}) as running:
        yield running


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    return tmp_path / "deep" / "a.hdf5"


def fetch_a(server, path, progress, known=True):
    return fetch(f"{server.url}/a.hdf5", path, progress, sha256=SHA256 if known else "")


def left(path):
    return sorted(item.name for item in path.parent.iterdir())


@pytest.mark.parametrize("known", [True, False])
def test_a_whole_file_arrives(server, path, known):
    told = Told()
    assert fetch_a(server, path, told, known) == SHA256
    assert path.read_bytes() == CONTENT
    assert left(path) == ["a.hdf5"]
    assert told.tasks == [("download a.hdf5", len(CONTENT) // 1000, 0)]


@pytest.mark.parametrize("known", [True, False])
def test_a_broken_connection_is_gone_on_from_where_it_stopped(server, path, known):
    server.breaks = [6 * 65536, 5 * 65536]
    told = Told()
    assert fetch_a(server, path, told, known) == SHA256
    ranges = [item[2] for item in server.asked]
    assert ranges == ["", "bytes=393216-", "bytes=720896-"]
    assert path.read_bytes() == CONTENT
    assert len(told.lines) == 2
    assert told.tasks[1][2] == 393


@pytest.mark.parametrize("known", [True, False])
def test_a_later_run_goes_on_with_the_part(server, path, known):
    server.breaks = [6 * 65536, 0, 0, 0]
    with pytest.raises(DataError, match="393,216 bytes") as caught:
        fetch_a(server, path, Told(), known)
    assert "again" in caught.value.hint
    assert "a.hdf5.part" in left(path)
    assert not path.exists()
    server.asked.clear()
    assert fetch_a(server, path, Told(), known) == SHA256
    assert [item[2] for item in server.asked] == ["bytes=393216-"]


@pytest.mark.parametrize("known", [True, False])
def test_a_server_without_ranges_starts_over(server, path, known):
    server.breaks, server.ranges = [400_000], False
    told = Told()
    assert fetch_a(server, path, told, known) == SHA256
    assert any("starting over" in line for line in told.lines)


def test_a_server_without_ranges_that_always_breaks_off_ends(server, path):
    server.breaks, server.ranges = [400_000] * 20, False
    with pytest.raises(DataError, match="repeatedly"):
        fetch_a(server, path, Told())
    assert len(server.asked) == 4


def test_a_file_that_changed_meanwhile_is_not_mixed(server, path):
    """Without a digest only the server's tag tells two versions apart."""
    server.breaks = [6 * 65536, 0, 0, 0]
    with pytest.raises(DataError):
        fetch_a(server, path, Told(), known=False)
    fresh = hdf5_bytes(1_497_000, seed=1)
    server.files["/a.hdf5"], server.tag = fresh, '"two"'
    fetch_a(server, path, Told(), known=False)
    assert path.read_bytes() == fresh


def test_without_tag_and_digest_nothing_is_continued(server, path):
    server.breaks, server.tag = [400_000], ""
    assert fetch_a(server, path, Told(), known=False) == SHA256
    assert [item[2] for item in server.asked] == ["", ""]


def test_another_file_is_refused_and_removed(server, path):
    server.files["/a.hdf5"] = CONTENT[::-1]
    with pytest.raises(DataError, match="not the file that was published") as caught:
        fetch_a(server, path, Told())
    assert SHA256 in caught.value.message
    assert "\n" not in caught.value.message
    assert left(path) == []


def test_a_page_in_place_of_a_file_without_digest_is_refused(server, path):
    server.files["/a.hdf5"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match="no HDF5 file"):
        fetch_a(server, path, Told(), known=False)
    assert left(path) == []


def test_a_cut_off_file_of_unknown_length_and_digest_is_refused(server, path):
    server.length, server.breaks = False, [6 * 65536]
    with pytest.raises(DataError, match="cut off or damaged") as caught:
        fetch_a(server, path, Told(), known=False)
    assert "\n" not in caught.value.message
    assert left(path) == []
    assert fetch_a(server, path, Told(), known=False) == SHA256


@pytest.mark.parametrize("known", [True, False])
def test_an_encoded_file_is_refused_with_what_the_server_did(server, path, known):
    server.encoding, server.files["/a.hdf5"] = "gzip", gzip.compress(CONTENT)
    with pytest.raises(DataError, match="sends the file gzip-encoded") as caught:
        fetch_a(server, path, Told(), known)
    assert str(path) in caught.value.hint
    assert len(server.asked) == 1
    server.encoding, server.files["/a.hdf5"] = "identity", CONTENT
    assert fetch_a(server, path, Told(), known) == SHA256


def test_a_part_beyond_the_end_is_dropped(server, path):
    path.parent.mkdir()
    path.with_name("a.hdf5.part").write_bytes(CONTENT + b"more")
    assert fetch_a(server, path, Told()) == SHA256


def test_a_part_that_is_whole_is_only_checked(server, path):
    path.parent.mkdir()
    path.with_name("a.hdf5.part").write_bytes(CONTENT)
    assert fetch_a(server, path, Told()) == SHA256
    assert [item[2] for item in server.asked] == [f"bytes={len(CONTENT)}-"]
    assert left(path) == ["a.hdf5"]


def test_a_missing_file_is_one_line_with_the_way_by_hand(server, path):
    with pytest.raises(DataError, match="404") as caught:
        fetch(f"{server.url}/b.hdf5", path, Told())
    assert str(path) in caught.value.hint
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, path):
    server.fails = [503, 429]
    assert fetch_a(server, path, Told()) == SHA256


def test_nobody_listening_is_one_line_with_the_way_by_hand(path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/a.hdf5"
    with pytest.raises(DataError, match="Connection refused") as caught:
        fetch(url, path, Told())
    assert caught.value.message == f"cannot download from 127.0.0.1:{port} (Connection refused)"
    assert url in caught.value.hint
    assert str(path) in caught.value.hint
    assert left(path) == []
