"""Decoding of zarr chunks that Blosc compressed, without trust in what they say about themselves.

The first 16 bytes of such a chunk declare its sizes. The C library takes them for true: where they
are damaged, or the file was cut off, it reads beyond the chunk, which ends the process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, ShardingCodec

HEADER_BYTES = 16
LARGEST_CHUNK = 2**30


def check_header(chunk: Any) -> None:
    """Check the sizes that a compressed chunk declares.

    Raises:
        ValueError: They are not the chunk's, or larger than any chunk that is read.
    """
    content = memoryview(chunk).cast("B")
    if len(content) < HEADER_BYTES:
        raise ValueError(f"the chunk has {len(content)} bytes, expected a header of {HEADER_BYTES}")
    size, _, stored = np.frombuffer(content[4:HEADER_BYTES], "<u4").tolist()
    if stored != len(content):
        raise ValueError(f"the chunk has {len(content)} bytes, but declares {stored}")
    if size > LARGEST_CHUNK:
        raise ValueError(f"the chunk declares {size} bytes of content")


class CheckedBlosc(Blosc):  # type: ignore[misc]
    """Blosc of version 2 stores that checks a chunk's header first."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Return the decompressed chunk.

        Raises:
            ValueError: The header is damaged.
        """
        check_header(buf)
        return super().decode(buf, out)


class CheckedBloscCodec(BloscCodec):
    """Blosc of version 3 stores that checks a chunk's header first."""

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        check_header(chunk_bytes.as_numpy_array())
        return super()._decode_sync(chunk_bytes, chunk_spec)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        check_header(chunk_bytes.as_numpy_array())
        return await super()._decode_single(chunk_bytes, chunk_spec)


def with_checked_blosc(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return an array that checks every chunk that Blosc compressed before it decodes it."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        metadata = replace(metadata, compressor=_checked(metadata.compressor))
    else:
        metadata = replace(metadata, codecs=tuple(map(_checked, metadata.codecs)))
    inner = array._async_array  # noqa: SLF001 - zarr has no other way to change a codec
    return zarr.Array(type(inner)(metadata, inner.store_path, inner.config))


def _checked(codec: Any) -> Any:
    """Return a codec with its Blosc replaced."""
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(map(_checked, codec.codecs)))
    if isinstance(codec, BloscCodec):
        names = ("typesize", "cname", "clevel", "shuffle", "blocksize")
        return CheckedBloscCodec(**{name: getattr(codec, name) for name in names})
    if isinstance(codec, Blosc):
        settings = {name: value for name, value in codec.get_config().items() if name != "id"}
        return CheckedBlosc(**settings)
    return codec
