"""Decoding of zarr chunks without trust in the sizes that they declare or decode to.

A few bytes may declare, or decode to, more than the memory there is; and Blosc's C library believes
the sizes in a chunk's header. Both are decided here before a chunk is decoded.
"""

from __future__ import annotations

import bz2
import copy
import lzma
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import zarr
from numcodecs.abc import Codec
from numcodecs.compat import ndarray_copy
from zarr.codecs import ShardingCodec

from lwdctl.artifacts.zarr_layout import blosc_sizes

_PIECE = 2**20
_ZSTD_BLOCK = 2**17
_ZSTD_SKIPPABLE = 0x184D2A5
_LZMA_MEMORY = 2**28


def with_checked_codecs(array: zarr.Array[Any], limit: int) -> zarr.Array[Any]:
    """Return an array whose chunks are checked before they are decoded.

    Args:
        array: The array.
        limit: Most bytes that a codec may decode a chunk to.
    """
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        filters = metadata.filters and tuple(_checked(item, limit) for item in metadata.filters)
        compressor = _checked(metadata.compressor, limit)
        metadata = replace(metadata, compressor=compressor, filters=filters)
    else:
        metadata = replace(metadata, codecs=tuple(_checked(c, limit) for c in metadata.codecs))
    inner = array._async_array  # noqa: SLF001 - zarr has no other way to change a codec
    return zarr.Array(type(inner)(metadata, inner.store_path, inner.config))


def _checked(codec: Any, limit: int) -> Any:
    """Return a codec that checks chunks, where it is one that compresses."""
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_checked(item, limit) for item in codec.codecs))
    is_version_2 = isinstance(codec, Codec)
    name = codec.codec_id if is_version_2 else codec and codec.to_dict().get("name", "")
    check = _CHECKS.get(str(name).removeprefix("numcodecs."))
    if check is None:
        return codec
    kind = type(codec)
    own = {"decode": _decode} if is_version_2 else {
        key: value
        for key, value in (("_decode_single", _decode_single), ("_decode_sync", _decode_sync))
        if hasattr(kind, key)
    }  # fmt: skip
    settings = codec if is_version_2 else getattr(codec, "_codec", codec)
    changed = copy.copy(codec)
    # The codec stays what it is, with its settings; only how it decodes is another class's.
    object.__setattr__(changed, "__class__", type(kind.__name__, (kind,), {**own, "plain": kind}))
    object.__setattr__(changed, "bounded", lambda chunk: check(chunk, limit, settings))
    return changed


def _decode(codec: Any, buf: Any, out: Any = None) -> Any:
    found = codec.bounded(memoryview(buf).cast("B"))
    return codec.plain.decode(codec, buf, out) if found is None else ndarray_copy(found, out)


async def _decode_single(codec: Any, chunk: Any, spec: Any) -> Any:
    found = codec.bounded(memoryview(chunk.as_numpy_array()).cast("B"))
    if found is None:
        return await codec.plain._decode_single(codec, chunk, spec)  # noqa: SLF001
    return spec.prototype.buffer.from_bytes(found)


def _decode_sync(codec: Any, chunk: Any, spec: Any) -> Any:
    found = codec.bounded(memoryview(chunk.as_numpy_array()).cast("B"))
    if found is None:
        return codec.plain._decode_sync(codec, chunk, spec)  # noqa: SLF001
    return spec.prototype.buffer.from_bytes(found)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"the chunk decodes to {size:,} bytes or more, expected at most {limit:,}")


def _check_blosc(chunk: memoryview, limit: int, _: Any) -> None:
    size, stored = blosc_sizes(chunk)
    if stored != len(chunk):
        raise ValueError(f"the chunk has {len(chunk)} bytes, but declares {stored}")
    _check_size(size, limit)


def _check_lz4(chunk: memoryview, limit: int, _: Any) -> None:
    _check_size(int.from_bytes(chunk[:4], "little"), limit)


def _check_zstd(chunk: memoryview, limit: int, _: Any) -> None:
    """Check the size that a single frame declares (RFC 8878), else what all blocks hold at most.

    numcodecs decodes every frame of a chunk; of several it does not enforce the declared sizes.
    """
    place = size = 0
    while place < len(chunk):
        if len(chunk) < place + 8:
            raise ValueError("the chunk is cut off")
        if int.from_bytes(chunk[place : place + 4], "little") >> 4 == _ZSTD_SKIPPABLE:
            place += 8 + int.from_bytes(chunk[place + 4 : place + 8], "little")
            continue
        descriptor, is_first = chunk[place + 4], not place
        is_single = descriptor >> 5 & 1
        place += 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
        width = (is_single, 2, 4, 8)[descriptor >> 6]
        declared = int.from_bytes(chunk[place : place + width], "little")
        place, held = _zstd_blocks(chunk, place + width)
        place += 4 * (descriptor >> 2 & 1)  # a checksum
        if width and is_first and place >= len(chunk):
            held = declared + (256 if width == 2 else 0)
        size += held
        _check_size(size, limit)


def _zstd_blocks(chunk: memoryview, place: int) -> tuple[int, int]:
    """Return where the blocks of a frame end, and the most bytes that they decode to."""
    size, last = 0, False
    while not last and place + 3 <= len(chunk):
        head = int.from_bytes(chunk[place : place + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        size += _ZSTD_BLOCK if kind == 2 else length
        place += 3 + (1 if kind == 1 else length)
    return place if last else len(chunk), size


def _inflated(make: Callable[[Any], Any]) -> Callable[[memoryview, int, Any], bytes]:
    """Return a function that decodes with a decompressor of Python, a piece at a time."""

    def decode(chunk: memoryview, limit: int, settings: Any) -> bytes:
        found, rest = bytearray(), bytes(chunk)
        while rest:
            source, fed = make(settings), rest
            while not source.eof:
                piece = source.decompress(fed, _PIECE)
                fed = getattr(source, "unconsumed_tail", b"")
                if not piece and not fed:
                    raise ValueError("the chunk is cut off")
                found += piece
                _check_size(len(found), limit)
            rest = source.unused_data
        return bytes(found)

    return decode


_CHECKS: dict[str, Callable[[memoryview, int, Any], bytes | None]] = {
    "blosc": _check_blosc,
    "lz4": _check_lz4,
    "zstd": _check_zstd,
    "gzip": _inflated(lambda _: zlib.decompressobj(31)),
    "zlib": _inflated(lambda _: zlib.decompressobj()),
    "bz2": _inflated(lambda _: bz2.BZ2Decompressor()),
    "lzma": _inflated(
        lambda codec: lzma.LZMADecompressor(
            codec.format, None if codec.format == lzma.FORMAT_RAW else _LZMA_MEMORY, codec.filters
        )
    ),
}
