"""Small files that declare much: zip, npz, zarr and parquet end with one line of real commands."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from lwdctl.artifacts.zarr_columns import STEP_CHUNK, step_chunk
from lwdctl.artifacts.zarr_layout import MAX_CHUNK_BYTES

sys.path.insert(0, str(Path(__file__).parents[1]))
from limited import Served, words_of

sys.path.pop(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return what runs a command with limits."""
    with Served(tmp_path_factory.mktemp("workspace")) as served:
        yield served


def many_metadata(path):
    """Pack a store with many files of metadata, none of which is large."""
    packed = path.with_name("packed.zarr.zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in filter(Path.is_file, path.rglob("*")):
            archive.write(file, file.relative_to(path).as_posix())
        for number in range(120):
            archive.writestr(f"more/{number}/.zattrs", "[" + "1," * 2**21 + "1]")
    return packed


def long_header(path):
    """Give an array a header of 0.7 GB."""
    arrays = dict(np.load(path))
    del arrays["data/obs"]
    np.savez(path, **arrays)
    size = 700_000_000
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:  # noqa: SIM117
        with archive.open("data/obs.npy", "w", force_zip64=True) as member:
            member.write(b"\x93NUMPY\x02\x00" + size.to_bytes(4, "little"))
            for _ in range(70):
                member.write(b" " * 10**7)
    return path


def equal_rows(path):
    """Write zeros into all arrays of a zarr store, which then are much larger than their files."""
    group = zarr.open_group(path, mode="a")
    for key, width in (("data/obs", 17), ("data/act", 6)):
        made = group.create_array(
            key, shape=(2 * 10**7, width), dtype="f4", chunks=(10**6, width), overwrite=True
        )
        with_empty = made.with_config({"write_empty_chunks": True})
        with_empty[: 10**6] = np.zeros((10**6, width), np.float32)
        first = next(file for file in (path / key).rglob("*") if file.parent.name == "0")
        for number in range(1, 20):
            place = first.parents[1] / str(number) / first.name
            place.parent.mkdir()
            place.write_bytes(first.read_bytes())
    return path


def parquet_rows(path):
    """Append a million equal rows many times, a few bytes each time."""
    file = min(path.glob("data/**/*.parquet"))
    schema, count = pq.read_schema(file), 10**6
    starts = np.arange(count + 1, dtype=np.int32)
    zeros = np.zeros(count, np.int64)
    columns = {
        "observation.state": pa.ListArray.from_arrays(5 * starts, np.zeros(5 * count)),
        "action": pa.ListArray.from_arrays(4 * starts, np.zeros(4 * count)),
    }
    table = pa.table({name: columns.get(name, zeros) for name in schema.names}).cast(schema)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for _ in range(8):
            writer.write_table(table, row_group_size=count)
    return path


def long_task(path):
    table = pa.table({"task_index": [0, 1], "task": ["x" * 400_000_000, "y"]})
    pq.write_table(table, path / "meta/tasks.parquet", compression="zstd")
    return path


def wide_actions(path):
    """Declare and write actions of a width that no network takes."""
    for file in path.glob("data/**/*.parquet"):
        table = pq.read_table(file)
        rows = pa.FixedSizeListArray.from_arrays(
            np.random.default_rng(0).random(1_100_000 * table.num_rows, np.float32), 1_100_000
        )
        column = table.column_names.index("action")
        pq.write_table(table.slice(0, 5).set_column(column, "action", rows[:5]), file)
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["action"]["shape"] = [1_100_000]
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


REFUSED = [
    ("pusht", many_metadata, "its metadata have more than 16,777,216 bytes"),
    ("npz", long_header, "data/obs: is damaged"),
    ("zarr", equal_rows, "no recording compresses so well"),
    ("lerobot", parquet_rows, "no recording compresses so well"),
    ("lerobot", long_task, "no recording compresses so well"),
    ("lerobot", wide_actions, "have 1,100,000 components, expected at most 1,048,576"),
]


LONG = {many_metadata, long_header, long_task}
"""What takes seconds to write."""


def rows():
    for row in REFUSED:
        marks = pytest.mark.long if row[1] in LONG else ()
        yield pytest.param(*row, id=row[1].__name__, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change", "expected"), list(rows()))
def test_a_small_file_takes_no_memory(run, make_sample, tmp_path, name, change, expected):
    sample = make_sample(name, tmp_path / "data")
    path = change(sample.path)
    words = words_of(sample.options)
    ended = run(["ingest", name, str(path), *words, "-q"])
    assert not ended.problem(), ended
    assert ended.code == 1
    assert expected in ended.text
    ended = run(["inspect", name, str(path), *words, "-q"])
    assert not ended.problem(), ended
    assert ended.code == 1


@pytest.mark.slow
def test_holes_are_not_read(run, make_sample, tmp_path):
    """A file may be declared to have any length, of which nothing is on the disk."""
    zeros = tmp_path / "zeros"
    zeros.touch()
    os.truncate(zeros, 10**12)
    ended = run(["inspect", str(zeros), "-q"])
    assert (ended.problem(), ended.code) == ("", 1)
    sample = make_sample("d4rl", tmp_path)
    os.truncate(sample.path, 10**12)
    ended = run(["ingest", str(sample.path), "-q"])
    assert (ended.problem(), ended.code) == ("", 1)
    assert "has holes" in ended.text


@pytest.mark.parametrize("row_bytes", [1, 64, 2**13, 2**15, 2**15 + 4, 2**19 + 4, 2**22, 2**40])
def test_a_chunk_of_steps_can_be_read_again(row_bytes):
    steps = step_chunk(row_bytes)
    assert steps == 1 or steps * row_bytes <= MAX_CHUNK_BYTES
    assert steps >= STEP_CHUNK or row_bytes > 2**15
