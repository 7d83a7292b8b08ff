"""Decoding of zarr chunks that Blosc compressed, without trust in the sizes that they declare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, ShardingCodec

from lwdctl.artifacts.zarr_layout import blosc_sizes

MAX_CHUNK_BYTES = 2**30
"""Most bytes that a chunk may decode to; no chunk of a replay buffer is larger."""


def check_header(chunk: Any) -> None:
    """Check the sizes that a compressed chunk declares.

    Raises:
        ValueError: They are not the chunk's, or larger than any chunk that is read.
    """
    content = memoryview(chunk).cast("B")
    size, stored = blosc_sizes(content)
    if stored != len(content):
        raise ValueError(f"the chunk has {len(content)} bytes, but declares {stored}")
    if size > MAX_CHUNK_BYTES:
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
