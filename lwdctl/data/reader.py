"""The contract every reader of somebody's data format fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lwdctl.core.records import Episode, SourceSpec


@dataclass(frozen=True)
class ReadOptions:
    """What a user may ask of any reader.

    Attributes:
        observation_keys: Observation keys to keep, or () for the format's default.
        filter_key: Name of a subset in the file (robomimic `mask/NAME`), or "".
        label: Behavior label for every episode, or "" for the format's own.
        env: Environment as `adapter` or `adapter/name` when the file names none, or "".
        max_bytes: Largest declared size in bytes (uncompressed) that is read.
        on_nan: `"error"`, or `"drop"` to leave out episodes with NaN or infinity.
        actions: `"recorded"`, or `"absolute"` to turn motions into targets where the reader
            can; the caller looks at `spec.action.semantics` to see whether it did.
    """

    observation_keys: tuple[str, ...] = ()
    filter_key: str = ""
    label: str = ""
    env: str = ""
    max_bytes: int = 64 * 2**30
    on_nan: str = "error"
    actions: str = "recorded"


class Reader(Protocol):
    """Random access to the episodes of one source, built as `Reader(paths, options)`.

    Construction validates structure (keys, shapes, declared sizes, links) without loading
    steps; `read` loads and validates one episode. Usable as a context manager.

    Attributes:
        spec: What the source says about itself.
        sources: One name per episode, in numeric order (`"demo_2"` before `"demo_10"`).
        lengths: Steps per episode.
    """

    spec: SourceSpec
    sources: Sequence[str]
    lengths: Sequence[int]

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, unequal lengths, changed dimensions; the message
                names file, key and row.
        """

    def close(self) -> None:
        """Close the files."""


def paths_of(words: Sequence[str]) -> tuple[Path, ...]:
    """Turn command-line words into paths with `~` expanded."""
    return tuple(Path(word).expanduser() for word in words)
