"""Chunks of zarr stores are decoded within bounds, whatever codec they name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
import zarr.codecs.numcodecs as wrapped

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.files.zarr_files import ZarrFile
from lwdctl.data.reader import open_source

VALUES = np.random.default_rng(0).integers(0, 5, (1000, 3)).astype(np.float32)
MANY = 10**8


def zstd_frame(blocks: list[tuple[int, int, bytes]]) -> bytes:
    """Return a frame of Zstandard that does not say how much it holds, made of blocks."""
    content = b"\x28\xb5\x2f\xfd\x00\x38"
    for number, (kind, size, data) in enumerate(blocks):
        is_last = number == len(blocks) - 1
        content += (is_last | kind << 1 | size << 3).to_bytes(3, "little") + data
    return content


VERSION_2 = {
    "blosc": numcodecs.Blosc(), "lz4": numcodecs.LZ4(), "zstd": numcodecs.Zstd(),
    "gzip": numcodecs.GZip(), "zlib": numcodecs.Zlib(), "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
}  # fmt: skip
VERSION_3 = {
    "blosc": zarr.codecs.BloscCodec, "zstd": zarr.codecs.ZstdCodec, "gzip": zarr.codecs.GzipCodec,
    "numcodecs.blosc": wrapped.Blosc, "numcodecs.lz4": wrapped.LZ4, "numcodecs.zstd": wrapped.Zstd,
    "numcodecs.gzip": wrapped.GZip, "numcodecs.zlib": wrapped.Zlib, "numcodecs.bz2": wrapped.BZ2,
    "numcodecs.lzma": wrapped.LZMA,
}  # fmt: skip
CASES = [(2, name) for name in VERSION_2] + [(3, name) for name in VERSION_3]
BOMBS = {
    "zstd": lambda: numcodecs.Zstd().encode(bytes(MANY)),
    "gzip": lambda: gzip.compress(bytes(MANY)),
    "zlib": lambda: zlib.compress(bytes(MANY)),
    "bz2": lambda: bz2.compress(bytes(MANY)),
    "lzma": lambda: lzma.compress(bytes(MANY)),
    "lz4": lambda: MANY.to_bytes(4, "little") + bytes(100),
    "blosc": lambda: numcodecs.Blosc().encode(bytes(MANY)),
}


def make(path: Path, version: int, name: str) -> Path:
    """Write `VALUES` with a codec; return the file of its first chunk."""
    codec = VERSION_2[name] if version == 2 else VERSION_3[name]()
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("act", data=VALUES, chunks=(400, 3), compressors=codec)
    return path / ("act/0.0" if version == 2 else "act/c/0/0")


def read(path: Path) -> np.ndarray:
    file = ZarrFile(path, 2**30)
    file.open(["act"])
    return file.rows("act")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("version", "name"), CASES)
def test_every_codec_is_read_and_none_decodes_to_more_than_a_chunk(tmp_path, version, name):
    chunk = make(tmp_path / "a.zarr", version, name)
    np.testing.assert_array_equal(read(tmp_path / "a.zarr"), VALUES)
    content = chunk.read_bytes()
    chunk.write_bytes(BOMBS[name.removeprefix("numcodecs.")]())
    with pytest.raises(DataError, match=r"decodes to [\d,]+ bytes or more, expected at most"):
        read(tmp_path / "a.zarr")
    for size in (0, 3, 6, len(content) // 2):
        chunk.write_bytes(content[:size])
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_zstd_frames_that_do_not_say_their_size_are_bounded(tmp_path, version):
    chunk = make(tmp_path / "a.zarr", version, "zstd")
    raw = VALUES[:400].tobytes()
    chunk.write_bytes(zstd_frame([(0, len(raw), raw)]))
    np.testing.assert_array_equal(read(tmp_path / "a.zarr"), VALUES)
    chunk.write_bytes(zstd_frame([(1, 2**17, b"\0")] * 1000))
    with pytest.raises(DataError, match="decodes to"):
        read(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("first", [zstd_frame([(0, 1, b"x")]), numcodecs.Zstd().encode(b"x")])
def test_all_zstd_frames_of_a_chunk_are_bounded(tmp_path, version, first):
    chunk = make(tmp_path / "a.zarr", version, "zstd")
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    raw = VALUES[:400].tobytes()
    halves = [numcodecs.Zstd(checksum=True).encode(part) for part in (raw[:999], raw[999:])]
    chunk.write_bytes(skipped.join(halves))
    np.testing.assert_array_equal(read(tmp_path / "a.zarr"), VALUES)
    for more in (zstd_frame([(1, 2**17, b"\0")] * 1000), numcodecs.Zstd().encode(bytes(MANY))):
        chunk.write_bytes(first + skipped + more)
        with pytest.raises(DataError, match="decodes to"):
            read(tmp_path / "a.zarr")


def test_shards_are_bounded(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    codec = zarr.codecs.ZstdCodec()
    group.create_array("act", data=VALUES, chunks=(100, 3), shards=(500, 3), compressors=codec)
    np.testing.assert_array_equal(read(tmp_path / "a.zarr"), VALUES)
    shard = tmp_path / "a.zarr/act/c/0/0"
    with shard.open("r+b") as file:
        file.truncate(2**26)
    with pytest.raises(DataError, match="has 67,108,864 bytes, expected at most"):
        read(tmp_path / "a.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("node", ["", "act/"])
def test_attributes_are_bounded_before_they_are_read(tmp_path, version, zipped, node):
    """A few hundred kilobytes in a zip file may be gigabytes of attributes."""
    path = tmp_path / "a.zarr"
    make(path, version, "zlib" if version == 2 else "gzip")
    file = path / (f"{node}.zattrs" if version == 2 else f"{node}zarr.json")
    text = file.read_text() if file.exists() else "{}"
    size = 2**24 + 1
    file.write_text(text.rstrip().removesuffix("}") + " " * size + "}")
    if zipped:
        path = Path(shutil.make_archive(str(path), "zip", path))
        assert path.stat().st_size < size / 100
    with pytest.raises(DataError, match=r"(has|declares) 16,777,\d+ bytes"):
        ZarrFile(path, 2**30)


@pytest.mark.filterwarnings("ignore:The data type")
@pytest.mark.parametrize("dtype", ["U3", "S3"])
def test_texts_of_one_length_in_version_3_are_read(tmp_path: Path, dtype: str) -> None:
    path, rows = tmp_path / "a.zarr", np.arange(12, dtype=np.float32)[:, None]
    arrays = {"obs": rows, "action": rows, "ends": np.array([5, 12])}
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for key, values in {**arrays, "who": np.array(["ann", "bob"], dtype)}.items():
        group.create_array(key, data=values)
    keys = {"observation_keys": ("obs",), "action_key": "action", "episode_ends": "ends"}
    with open_source("zarr", (path,), IngestConfig(**keys, label_from="who")) as source:
        assert [item.label for item in source.episodes] == ["ann", "bob"]
