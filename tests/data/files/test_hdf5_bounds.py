"""HDF5 files that ask for time, memory or other files: one line of the real commands, in limits."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from lwdctl.data.files import bounds

sys.path.insert(0, str(Path(__file__).parents[1]))
from limited import Served

sys.path.pop(0)

SHOW_ATTRIBUTES = """
import sys
from pathlib import Path
from lwdctl.data.files.contents import look_into
print(look_into(Path(sys.argv[1])).attributes[""])
"""
OBSERVED = "data/demo_2/obs/observation"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return what runs a command with limits."""
    with Served(tmp_path_factory.mktemp("workspace")) as served:
        yield served


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


def soft_through_external(file, fifo):
    file["zz"], file["aa"] = h5py.ExternalLink(fifo, "/x"), h5py.SoftLink("/zz/q")


def unlimited_virtual(file, fifo):
    space = h5py.h5s.create_simple((4,), (h5py.h5s.UNLIMITED,))
    space.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (1,), (1,))
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_virtual(space, fifo.encode(), b"x", space)
    whole = h5py.h5s.create_simple((4,), (h5py.h5s.UNLIMITED,))
    h5py.h5d.create(file.id, b"aaa", h5py.h5t.NATIVE_FLOAT, whole, settings)


def huge_text(file, fifo):
    file.create_dataset("aa", (), "S2000000000")


def huge_element(file, fifo):
    element = h5py.h5t.array_create(h5py.h5t.NATIVE_DOUBLE, (250_000_000,))
    h5py.h5d.create(file.id, b"aa", element, h5py.h5s.create(h5py.h5s.SCALAR))


def nested_element(file, fifo):
    element = h5py.h5t.NATIVE_FLOAT.copy()
    for _ in range(3000):
        element = h5py.h5t.vlen_create(element)
    h5py.h5d.create(file.id, b"aa", element, h5py.h5s.create_simple((3,)))


def replaced(file, shape, chunks, content, **settings):
    """Replace observations by an array of one compressed chunk."""
    del file[OBSERVED]
    made = file.create_dataset(OBSERVED, shape, "f8", chunks=chunks, compression="gzip", **settings)
    made.id.write_direct_chunk((0, 0), content)


def huge_chunk(file, fifo):
    replaced(file, (5, 5), (10**8, 5), zlib.compress(bytes(10**6)), maxshape=(None, None))


def chunk_that_grows(file, fifo):
    stream = zlib.compressobj(9)
    first, more = (
        stream.compress(bytes(10**7)) + stream.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    replaced(file, (5, 5), (5, 5), first + 300 * more)


def array_that_grows(file, fifo):
    replaced(file, (10**7, 5), (10**6, 5), zlib.compress(bytes(4 * 10**7), 9))


REFUSED = [
    (soft_through_external, "zz: is an external link"),
    (unlimited_virtual, "aaa: is a virtual dataset"),
    (huge_text, "aa: declares elements of 2,000,000,000 bytes"),
    (huge_element, "aa: declares elements of 2,000,000,000 bytes"),
    (nested_element, "aa: declares elements of more than 8 nested types"),
    (huge_chunk, f"{OBSERVED}: has shape (5, 5) in chunks of 4,000,000,000 bytes"),
    (chunk_that_grows, f"{OBSERVED}, row 0: cannot be read"),
    (array_that_grows, "bytes that grow to 400,0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "expected"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_a_file_takes_no_time_and_no_memory(run, make_sample, tmp_path, fifo, damage, expected):
    path = make_sample("robomimic", tmp_path / "data").path
    with h5py.File(path, "a") as file:
        damage(file, fifo)
    for words in (["ingest", str(path), "-q"], ["inspect", str(path), "-q"]):
        ended = run(words)
        assert not ended.problem(), ended
        assert ended.code == 1
        assert expected in ended.text or words[0] == "inspect"


@pytest.mark.slow
def test_a_heap_of_texts_without_an_end_is_not_walked(run, make_sample, tmp_path):
    """HDF5 would walk it for ever, at the first attribute."""
    path = make_sample("robomimic", tmp_path).path
    content = bytearray(path.read_bytes())
    start = content.index(b"GCOL")
    place = start + 16
    while int.from_bytes(content[place : place + 2], "little"):  # to the free space behind texts
        place += 16 + (int.from_bytes(content[place + 8 : place + 16], "little") + 7) // 8 * 8
    content[place + 8 : place + 16] = bytes(8)
    path.write_bytes(content)
    for command in ("ingest", "inspect"):
        ended = run([command, str(path), "-q"])
        assert not ended.problem(), ended
        assert ended.code == 1
        assert f"the heap of texts at byte {start:,} has no end" in ended.text


def many_digits(file):
    """Give a demonstration a name over which a search for its number runs squared."""
    file.move("data/demo_2", "data/" + "1" * 60_000 + "x")


def long_number(file):
    file.move("episode_2", "episode_" + "1" * 5000)


def long_environment(file):
    file["metadata/env"] = "x" * 3_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [("robomimic", many_digits), ("minari", long_number), ("d4rl", long_environment)],
)
def test_long_names_take_no_time(run, make_sample, tmp_path, name, change):
    sample = make_sample(name, tmp_path / "data")
    with h5py.File(sample.hdf5, "a") as file:
        change(file)
    for command in ("ingest", "inspect"):
        ended = run([command, str(sample.path), "-q"])
        assert not ended.problem(), ended


@pytest.mark.slow
def test_attributes_are_bounded(run, make_sample, tmp_path):
    """In new processes: memory that a process has freed and kept is used beyond the limit."""
    path, large = make_sample("robomimic", tmp_path).path, tmp_path / "large.hdf5"
    with h5py.File(path, "r") as old, h5py.File(large, "w", libver="latest") as new:
        for key in old:
            old.copy(key, new)
        new.attrs["level"] = np.zeros(bounds.MOST_VALUE_BYTES)  # 8 bytes each
    ingested = run(["ingest", "robomimic", str(large), "-q"])
    inspected = run(["inspect", str(large), "-q"])
    seen = subprocess.run(
        [sys.executable, "-c", SHOW_ATTRIBUTES, str(large)],
        capture_output=True,
        text=True,
        check=True,
    )
    large.unlink()  # half a gigabyte
    assert not ingested.problem(), ingested
    assert ingested.code == 1
    assert "large.hdf5: its attributes cannot be read" in ingested.text
    assert not inspected.problem(), inspected
    assert seen.stdout.strip() == "{}"


def test_the_limit_of_memory_ends():
    before = bounds.resource.getrlimit(bounds.resource.RLIMIT_AS)
    with pytest.raises(MemoryError), bounds.memory_limit(2**26):
        bytearray(2**30)
    assert bounds.resource.getrlimit(bounds.resource.RLIMIT_AS) == before
