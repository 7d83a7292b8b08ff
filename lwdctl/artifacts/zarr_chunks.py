"""Compressed chunks of zarr v3 arrays, written beside the work that fills them.

zarr spends more time on its own layers than on compressing and writing a chunk of a megabyte, and
the caller waits meanwhile. Here a thread does both while the caller goes on; the bytes are those
that zarr itself would write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy.typing as npt
import zarr
from numcodecs import Blosc
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

# LZ4 behind a shuffle of bytes compresses four times as fast as zstd level 1 behind one of bits,
# is read five times as fast, and leaves 3 % more (PERFORMANCE.md).
CODECS = (BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec())
SEPARATOR = "."
_PENDING, _PENDING_BYTES = 4, 2**25
"""The caller waits while more chunks, or more bytes, are to be written."""


class ChunkMemory(MemoryStore):
    """A zarr store in memory whose chunks are set directly.

    Attributes:
        content: Every key with its bytes.
    """

    def __init__(
        self, store_dict: MutableMapping[str, Buffer] | None = None, *, read_only: bool = False
    ) -> None:
        self.content: MutableMapping[str, Buffer] = {} if store_dict is None else store_dict
        super().__init__(self.content, read_only=read_only)


class ChunkWriter:
    """Compresses chunks of the arrays of a group and writes them, in a thread of its own.

    Use it as a context manager, so that nothing is written any more after an error; `close` it
    before anything is read.

    Args:
        group: The zarr group, on disk or in a `ChunkMemory`.

    Attributes:
        group: As given.
    """

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._thread = ThreadPoolExecutor(1, "chunk-writer")
        self._pending: deque[tuple[Future[None], int]] = deque()
        self._pending_bytes = 0

    def write(self, name: str, number: int, values: npt.NDArray[Any]) -> None:
        """Write a chunk.

        Args:
            name: Path of the array inside the group.
            number: Which chunk along the first axis.
            values: All values of the chunk, little-endian; not to be changed from now on.

        Raises:
            OSError: An earlier chunk cannot be written.
        """
        place = SEPARATOR.join(["c", str(number), *("0" for _ in values.shape[1:])])
        key = "/".join(filter(None, (self.group.path, name, place)))
        self._wait(_PENDING - 1, _PENDING_BYTES - values.nbytes)
        self._pending.append((self._thread.submit(self._put, key, values), values.nbytes))
        self._pending_bytes += values.nbytes

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: A chunk cannot be written.
        """
        self._wait(0, 0)
        self._thread.shutdown()

    def __enter__(self) -> ChunkWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what is not written yet, and wait for what is being written."""
        self._thread.shutdown(cancel_futures=True)

    def _wait(self, most: int, most_bytes: int) -> None:
        """Wait until at most so many chunks, of so many bytes, are pending, or none."""
        while self._pending and (len(self._pending) > most or self._pending_bytes > most_bytes):
            chunk, size = self._pending.popleft()
            self._pending_bytes -= size
            chunk.result()

    def _put(self, key: str, values: npt.NDArray[Any]) -> None:
        parts = encode(values)
        store = self.group.store
        if isinstance(store, ChunkMemory):
            store.content[key] = cpu.Buffer.from_bytes(b"".join(parts))
            return
        if not isinstance(store, LocalStore):
            raise TypeError(f"{store} is neither on disk nor in memory")
        path = Path(store.root) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.writelines(parts)


def encode(values: npt.NDArray[Any]) -> tuple[bytes, bytes]:
    """Return a chunk as `CODECS` encode it: compressed, and the crc32c that follows."""
    codec = CODECS[0]
    blosc = Blosc(codec.cname.value, codec.clevel, Blosc.SHUFFLE, typesize=values.itemsize)
    content: bytes = blosc.encode(values)
    return content, google_crc32c.value(content).to_bytes(4, "little")
