"""Chunks that are written beside zarr are those that zarr writes, today and before."""

import json
import threading

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from lwdctl.artifacts import zarr_chunks
from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.artifacts.zarr_chunks import CODECS, ChunkWriter
from lwdctl.artifacts.zarr_columns import Column, create_group, read_every_chunk
from lwdctl.core.errors import ArtifactError, DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec

BEFORE = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()
SPEC = SourceSpec(
    observations=(ObservationSpec("arm", 7), ObservationSpec("gap", 1)),
    action=ActionSpec(3, "delta", "normalized", (-1.0,) * 3, (1.0,) * 3),
    env=EnvSpec("", ("task",)),
    labels=("",),
    source_format="random",
)


def episode(steps, seed=0):
    rng = np.random.default_rng(seed)
    return Episode(
        f"demo_{seed}",
        {"arm": rng.normal(size=(steps, 7)).astype("f4"), "gap": np.zeros((steps, 1), "f4")},
        rng.uniform(-1, 1, (steps, 3)).astype("f4"),
        rewards=rng.normal(size=steps).astype("f4"),
    )


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1", "i1"])
@pytest.mark.parametrize(("shape", "rows"), [((), 70), ((3,), 64), ((2, 5), 1), ((1,), 33)])
def test_files_are_those_that_zarr_writes(tmp_path, dtype, shape, rows):
    values = np.random.default_rng(1).integers(0, 50, (rows, *shape)).astype(dtype)
    column = Column(create_group(tmp_path / "ours"), "inner/name", shape, dtype, 32)
    for part in np.array_split(values, 7):  # neither chunks nor their ends
        column.append(part)
    assert column.rows == rows
    column.close()
    assert column.rows == rows
    theirs = zarr.create_group(tmp_path / "theirs", zarr_format=3)
    array = theirs.create_array(
        "inner/name",
        shape=values.shape,
        chunks=(min(32, rows), *shape),
        dtype=dtype,
        compressors=CODECS,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    array[:] = values
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")


def test_a_store_in_memory_holds_the_same_chunks(tmp_path):
    episodes = [episode(9000, seed) for seed in range(4)]
    writer = SnippetWriter(tmp_path / "snippets.zarr", SPEC)
    for item in episodes:
        writer.append(item)
    writer.close()
    memory = SnippetStore.in_memory(episodes, SPEC)._group.store
    assert {key: value.to_bytes() for key, value in memory.content.items()} == files_of(
        tmp_path / "snippets.zarr"
    )


def written_before(folder):
    """Write every array of a store again as it was written before."""
    group = zarr.open_group(folder, mode="r+")
    for name, array in list(group.members(max_depth=None)):
        if isinstance(array, zarr.Array):
            values = array[:]
            again = group.create_array(
                name,
                shape=values.shape,
                chunks=(8192, *values.shape[1:]),
                dtype=values.dtype,
                compressors=BEFORE,
                chunk_key_encoding={"name": "default", "separator": "."},
                config={"write_empty_chunks": True},
                overwrite=True,
            )
            again[:] = values


def test_stores_that_were_written_before_are_read(tmp_path):
    place = tmp_path / "snippets.zarr"
    writer = SnippetWriter(place, SPEC)
    episodes = [episode(5000, seed) for seed in range(3)]
    for item in episodes:
        writer.append(item)
    writer.close()
    written_before(place)
    assert json.loads((place / "action" / "zarr.json").read_text())["codecs"][1]["configuration"][
        "cname"
    ] == ("zstd")
    store = SnippetStore.open(place)
    for index, item in enumerate(episodes):
        found = store.episode(index)
        np.testing.assert_array_equal(found.actions, item.actions)
        np.testing.assert_array_equal(found.observations["arm"], item.observations["arm"])
        np.testing.assert_array_equal(found.rewards, item.rewards)
    assert read_every_chunk(place)


@pytest.mark.parametrize(
    "configuration",
    [
        {"cname": "lz4", "shuffle": "bitshuffle"}, {"cname": "zstd", "shuffle": "shuffle"},
        {"cname": "zlib"}, {"cname": "blosclz"}, {"shuffle": "noshuffle"}, {"cname": ["lz4"]},
        {"cname": None},
    ],
)  # fmt: skip
def test_other_compressions_are_refused(tmp_path, configuration):
    place = tmp_path / "snippets.zarr"
    writer = SnippetWriter(place, SPEC)
    writer.append(episode(30))
    writer.close()
    path = place / "action" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["codecs"][1]["configuration"] |= configuration
    path.write_text(json.dumps(metadata))
    with pytest.raises(ArtifactError, match="codecs"):
        SnippetStore.open(place)


def test_a_chunk_that_cannot_be_written_ends_the_work(tmp_path):
    writer = SnippetWriter(tmp_path / "snippets.zarr", SPEC)
    (tmp_path / "snippets.zarr" / "action").write_text("in the way")

    def fill():
        with writer:
            for seed in range(40):
                writer.append(episode(30_000, seed))
            writer.close()

    with pytest.raises(OSError, match="action"):
        fill()


def test_after_an_error_nothing_is_written_any_more(tmp_path, monkeypatch):
    """The run's directory is removed then: a chunk that is written later would bring it back."""
    going, begun = threading.Event(), []
    encode = zarr_chunks.encode

    def slow(values):
        begun.append(values)
        going.wait(10)
        return encode(values)

    monkeypatch.setattr(zarr_chunks, "encode", slow)
    place, others = tmp_path / "snippets.zarr", set(threading.enumerate())
    timer = threading.Timer(0.3, going.set)
    timer.start()

    def fill():
        with SnippetWriter(place, SPEC) as writer:
            writer.append(episode(30_000))
            writer.append(episode(0))

    with pytest.raises(DataError, match="no steps"):
        fill()
    timer.join()
    count, before = len(begun), files_of(place)
    assert count == 1  # of three
    assert set(threading.enumerate()) <= others
    assert files_of(place) == before


@pytest.mark.parametrize(("limit", "value"), [("_PENDING_BYTES", 1000), ("_PENDING", 2)])
def test_what_waits_to_be_written_is_bounded(monkeypatch, limit, value):
    going = threading.Event()
    waiting = []
    monkeypatch.setattr(zarr_chunks, "encode", lambda _: (going.wait(10), b"")[1:] * 2)
    monkeypatch.setattr(zarr_chunks, limit, value)
    chunks = ChunkWriter(create_group(None))

    def fill():
        for number in range(20):
            chunks.write("name", number, np.zeros(100, "f4"))
            waiting.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(0.3)
    assert len(waiting) == 2  # 800 bytes
    going.set()
    thread.join(10)
    chunks.close()
    assert len(waiting) == 20
