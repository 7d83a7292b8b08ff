"""The base of the readers of files that hold arrays with names: HDF5, zarr or npz."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.records import Finding, FloatArray
from lwdctl.data.checks import ReportsFindings, closed_on_error, finite_rows
from lwdctl.data.files.contents import ArrayEntry
from lwdctl.data.reader import EPISODE_OPTIONS, check_no_subset, check_unused


class ArrayFile(Protocol):
    """A file that holds arrays with names: HDF5, zarr or npz.

    Args:
        path: The file.
        max_bytes: Largest total uncompressed size of its arrays.

    Attributes:
        path: The file.
    """

    path: Path

    def __init__(self, path: Path, max_bytes: int) -> None: ...

    @property
    def arrays(self) -> Mapping[str, ArrayEntry]:
        """Every array as the file declares it, by its path from the root."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What `open` found."""

    def open(self, steps: Sequence[str], others: Sequence[str] = ()) -> None:
        """Open arrays; `steps` are those with one row per step that every episode needs.

        Raises:
            DataError: One is missing or cannot be read safely.
        """

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return rows of an opened array as they are stored.

        Raises:
            DataError: They cannot be read.
        """

    def attributes(self, group: str) -> Mapping[str, Any]:
        """Return the attributes of a group."""

    def close(self) -> None:
        """Close the file."""


class ArrayReader(ReportsFindings, ABC):
    """Opens a file, checks the options and the structure, and closes it on errors.

    Attributes:
        opener: What opens the file.
        what: What the file is, for messages.
        unused: Fields of `IngestConfig` that the format has no use for.

    Raises:
        DataError: The structure is not the format's; the message names file and key.
    """

    opener: ClassVar[type[ArrayFile]]
    what: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = EPISODE_OPTIONS

    def __init__(self, path: Path, config: IngestConfig) -> None:
        self.path = path
        self.findings = []
        check_no_subset(config, path, self.what)
        check_unused(config, path, self.what, *self.unused)
        self._file = self.opener(path, config.max_bytes)
        with closed_on_error(self._file):
            self._scan(config)

    @abstractmethod
    def _scan(self, config: IngestConfig) -> None:
        """Check the structure and set `spec` and `episodes`."""

    def _rows(self, key: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Return rows (time, components) of an array as finite float32."""
        values = self._file.rows(key, start, stop)
        values = values.reshape(len(values), -1)
        return finite_rows(values, f"{self.path}: {key}", start, self.findings)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
