"""Bytes that survive a crash, and their digests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace the file at `path` as a whole and force it to the disk."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync(path.parent)


def fingerprint(path: Path) -> dict[str, Any]:
    """Record which file or directory was read: absolute path, bytes and SHA-256.

    That of a directory is over the names and digests of its files.
    """
    where = str(path.resolve())
    if not path.is_dir():
        return {"path": where, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    files = sorted(item for item in path.rglob("*") if item.is_file())
    lines = (f"{item.relative_to(path).as_posix()}\0{sha256_of(item)}\n" for item in files)
    return {
        "path": where,
        "bytes": sum(item.stat().st_size for item in files),
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }
