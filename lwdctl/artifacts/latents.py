"""The latent store: posterior and conditions of every encoded snippet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from lwdctl.artifacts.zarr_chunks import ChunkWriter
from lwdctl.artifacts.zarr_columns import (
    Column,
    array_of,
    create_group,
    open_group,
    read_rows,
    seal_group,
)
from lwdctl.core.errors import ArtifactError
from lwdctl.core.moments import RunningMoments
from lwdctl.core.records import FloatArray

LATENTS_PAYLOAD = "latents.zarr"
FORMAT = "lwdctl-latents"
FORMAT_VERSION = 2
_SCALARS = {"task": np.int32, "label": np.int32, "episode": np.int32, "start": np.int64}


class LatentWriter:
    """Streams encoded snippets into a new store.

    As a context manager it writes nothing more after an error.

    Args:
        path: The zarr directory to create, or None for a store in memory.
        latent_size: Components of a latent.
        state_size: Components of the state up to a snippet's first step: history * obs.

    Raises:
        ArtifactError: `path` exists.
    """

    def __init__(self, path: Path | None, latent_size: int, state_size: int) -> None:
        self.path = path
        self.group = create_group(path)
        self._chunks = ChunkWriter(self.group)
        sizes = {"mean": latent_size, "log_variance": latent_size, "state": state_size}
        self._columns = {
            name: Column(self.group, name, (size,), np.float32, chunks=self._chunks)
            for name, size in sizes.items()
        }
        for name, dtype in _SCALARS.items():
            self._columns[name] = Column(self.group, name, (), dtype, chunks=self._chunks)
        self._means = RunningMoments(latent_size)
        self._variances = RunningMoments(latent_size)

    def __enter__(self) -> LatentWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for what is being written; drop what is not, if the writer is not closed."""
        self._chunks.__exit__(*error)

    def append(
        self,
        mean: npt.ArrayLike,
        log_variance: npt.ArrayLike,
        state: npt.ArrayLike,
        task: npt.ArrayLike,
        label: npt.ArrayLike,
        episode: npt.ArrayLike,
        start: npt.ArrayLike,
        *,
        fit: npt.ArrayLike | None = None,
    ) -> None:
        """Append a batch of snippets.

        Args:
            mean: (batch, latent) posterior mean.
            log_variance: (batch, latent) logarithm of the posterior variance.
            state: (batch, history * obs) what was observed up to the first step, oldest first.
            task: (batch,) index into `spec.env.tasks`, -1 for none.
            label: (batch,) index into `spec.labels`, -1 for none.
            episode: (batch,) row of the snippet store's episode table.
            start: (batch,) first step, counted inside the episode.
            fit: (batch,) bool, which rows the statistics use (training split); None for all.

        Raises:
            ArtifactError: Unequal lengths, a wrong size, or a latent that is not finite.
        """
        rows = {
            "mean": np.asarray(mean, np.float32),
            "log_variance": np.asarray(log_variance, np.float32),
            "state": np.asarray(state, np.float32),
            "task": np.asarray(task),
            "label": np.asarray(label),
            "episode": np.asarray(episode),
            "start": np.asarray(start),
        }
        self._check(rows)
        for name, column in self._columns.items():
            column.append(rows[name])
        used = np.ones(len(rows["mean"]), bool) if fit is None else np.asarray(fit, bool)
        self._means.add(rows["mean"][used])
        self._variances.add(np.exp(rows["log_variance"][used].astype(np.float64)))

    def close(self) -> None:
        """Write what is left, the statistics, and mark the store as complete.

        Raises:
            ArtifactError: No row was used for the statistics.
        """
        if not self._means.count:
            raise ArtifactError("there are no latents to store")
        # Dividing by the standard deviation of the means alone would blow up latent dimensions
        # that the VAE does not use, whose means hardly vary.
        std = np.sqrt(self._means.variance + self._variances.mean)
        for name, value in (("mean", self._means.mean), ("std", std)):
            column = Column(self.group, f"statistics/{name}", (), np.float64, len(value))
            column.append(value)
            column.close()
        for column in self._columns.values():
            column.close()
        self._chunks.close()
        seal_group(self.group, {"format": FORMAT, "format_version": FORMAT_VERSION})

    def _check(self, rows: dict[str, npt.NDArray[Any]]) -> None:
        count = len(rows["mean"])
        for name, value in rows.items():
            expected = (count, *self._columns[name].row_shape)
            if value.shape != expected:
                raise ArtifactError(f"latents: {name} has shape {value.shape}, not {expected}")
        for name in ("mean", "log_variance", "state"):
            if not np.isfinite(rows[name]).all():
                raise ArtifactError(
                    f"latents: {name} has NaN or infinity", "the encoder diverged: train it again"
                )


class LatentStore:
    """A finished latent store, read-only. Use `LatentStore.open`.

    Attributes:
        path: The zarr directory, or None for a store in memory.
        count: Number of snippets.
        latent_size: Components of a latent.
        state_size: Components of the state.
    """

    def __init__(self, path: Path | None, group: zarr.Group) -> None:
        self.path = path
        mean = array_of(group, "mean", (None, None), np.float32)
        self.count, self.latent_size = mean.shape
        state = array_of(group, "state", (self.count, None), np.float32)
        self.state_size = state.shape[1]
        self._arrays = {
            "mean": mean,
            "log_variance": array_of(group, "log_variance", mean.shape, np.float32),
            "state": state,
        }
        for name, dtype in _SCALARS.items():
            self._arrays[name] = array_of(group, name, (self.count,), dtype)
        for name in ("mean", "std"):
            path_inside = f"statistics/{name}"
            self._arrays[path_inside] = array_of(
                group, path_inside, (self.latent_size,), np.float64
            )

    @classmethod
    def open(cls, path: Path) -> LatentStore:
        """Open the store at `path`, a zarr directory or an artifact directory.

        Raises:
            ArtifactError: It is missing, damaged, unfinished, or no latent store.
        """
        inner = path / LATENTS_PAYLOAD
        path = inner if inner.is_dir() else path
        return cls(path, open_group(path, FORMAT, FORMAT_VERSION))

    @classmethod
    def written_by(cls, writer: LatentWriter) -> LatentStore:
        """Return the store that a closed writer has written, on disk or in memory."""
        return cls(writer.path, writer.group)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Read rows of one of the arrays that `LatentWriter.append` takes.

        Raises:
            ArtifactError: No such rows, or a damaged chunk.
        """
        return read_rows(self._arrays[name], start, stop)

    @property
    def mean(self) -> FloatArray:
        """Posterior means (snippet, latent), read from the disk on every access."""
        return self.read("mean")

    @property
    def log_variance(self) -> FloatArray:
        """Logarithms of the posterior variances (snippet, latent)."""
        return self.read("log_variance")

    @property
    def state(self) -> FloatArray:
        """Features at each snippet's first step (snippet, obs)."""
        return self.read("state")

    @property
    def task(self) -> npt.NDArray[np.int32]:
        """Task index (snippet,), -1 for none."""
        return self.read("task")

    @property
    def label(self) -> npt.NDArray[np.int32]:
        """Label index (snippet,), -1 for none."""
        return self.read("label")

    @property
    def episode(self) -> npt.NDArray[np.int32]:
        """Row of the snippet store's episode table (snippet,)."""
        return self.read("episode")

    @property
    def start(self) -> npt.NDArray[np.int64]:
        """First step inside the episode (snippet,)."""
        return self.read("start")

    def statistics(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return mean and total standard deviation, sqrt(var(mu) + mean(sigma^2)): (latent,)."""
        return self.read("statistics/mean"), self.read("statistics/std")
