"""Window batches, ingestion and memory, beside the loaders of other projects and h5py alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.files import fingerprints_beside
from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.bench.comparisons import Comparison, Work, compare
from lwdctl.configs import IngestConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import (
    ActionSpec,
    EnvSpec,
    Episode,
    FloatArray,
    ObservationSpec,
    SourceSpec,
)
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.ingest import ingest as read_into_store
from lwdctl.data.reader import open_source
from lwdctl.data.windows import WindowRule

ROUNDS = 5
OBSERVATION, ACTION, STEPS = 39, 4, 500
EPISODES = 200
INGESTED = ((1500, STEPS),)
"""Demonstrations, and steps of each, of the files that `ingest` reads."""
INGESTED_LARGE = ((10_000, 300), (1_000, 3_000))
"""The same in files of 1 GiB."""
LENGTH, BATCH = 64, 64
BATCHES = 64
"""Batches that one call of either side draws, as many as training draws ahead."""
MEMORY_GIB, FULL_MEMORY_GIB = 0.5, 4.0
ALLOWED_MIB = 1024.0
UPDATES = 60

_CHILD = """
import json, sys, tempfile
from pathlib import Path
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import VaeConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.training.vae import train_vae
def peak():
    # Not getrusage: its peak begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
bare = peak()
config = VaeConfig(
    cache="none", device="cpu", threads=1, updates=int(sys.argv[2]), snippet_length=64
)
with tempfile.TemporaryDirectory() as folder:
    store = SnippetStore.open(Path(sys.argv[1]))
    train_vae(store, config, directory=Path(folder), progress=SilentProgress())
print(json.dumps([bare, peak()]))
"""


def windows(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Draw batches of 64 windows of 64 steps from memory, beside three loaders of others."""
    del device
    with TemporaryDirectory() as folder:
        path = Path(folder) / "demonstrations.hdf5"
        _write_hdf5(path, EPISODES)
        store = SnippetStore.in_memory(_episodes(EPISODES), _spec())
        batches = SnippetBatches(
            store,
            ("state",),
            WindowRule(LENGTH),
            split="all",
            seed=0,
            cache="ram",
            every=True,
        )
        numbers = itertools.count(step=BATCHES)

        def ours() -> None:
            (table,) = batches.prepare(*batches.drawn(next(numbers), BATCH, BATCHES))
            for part in table.view(BATCHES, BATCH, -1):
                batches.assemble(part)

        references = (
            ("robomimic's SequenceDataset, all in memory, DataLoader", _robomimic),
            ("Diffusion Policy's sampler, arrays in memory, DataLoader", _index_sampler),
            ("LeRobot's way: rows of a Parquet table by offset, DataLoader", _parquet),
        )
        for title, make in references:
            row = Comparison(
                f"window batches, {BATCH} x {LENGTH} steps",
                "index table, cache ram",
                title,
                "batches/s",
                at_least=10.0,
            )
            try:
                theirs = make(path)
            except ModuleNotFoundError as error:
                yield replace(row, missing=f"needs the package {error.name}")
                continue
            yield compare(row, ours, theirs, rounds or ROUNDS, count=BATCHES)


def ingest(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Ingest a robomimic file as the command does, beside h5py reading the same arrays once."""
    del device
    for count, steps in INGESTED:
        yield _ingest(count, steps, rounds)


def ingest_of_large_files(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Measure `ingest` with files of 1 GiB, where what a command does once counts for little."""
    del device
    for count, steps in INGESTED_LARGE:
        yield _ingest(count, steps, rounds)


def _ingest(count: int, steps: int, rounds: int | None) -> Comparison:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "demonstrations.hdf5"
        _write_hdf5(path, count, steps)
        config = IngestConfig(format="robomimic", paths=(str(path),), env="metaworld/reach-v3")
        with open_source("robomimic", [path], config) as source:
            names = [item.source for item in source.episodes]
        keys = ("obs/state", "actions", "rewards")

        def read() -> int:
            with h5py.File(path, "r") as file:
                demos = [file["data"][name] for name in names]
                return sum(demo[key][()].nbytes for demo in demos for key in keys)

        def ours() -> None:
            with TemporaryDirectory(dir=folder) as place:
                _ingest_into(Workspace(Path(place)), path, config)

        row = Comparison(
            f"ingest {count} demonstrations of {steps} steps, float64",
            "lwdctl ingest: check, convert, statistics, compress, hash, publish",
            "h5py, the same arrays",
            "bytes/s",
            at_least=0.5,
        )
        return compare(row, ours, read, rounds or ROUNDS, count=read())


def _ingest_into(workspace: Workspace, path: Path, config: IngestConfig) -> None:
    with (
        fingerprints_beside([path]) as digests,
        open_source("robomimic", [path], config) as source,
        workspace.begin("snippets", "x", config={}, inputs=[]) as output,
    ):
        _, summary = read_into_store(
            source, config, output.path / SNIPPETS_PAYLOAD, SilentProgress()
        )
        output.publish({**summary, "sources": digests.result()})


def memory(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Train the VAE from a store on disk; report the memory beyond that of the bare process."""
    yield from _memory(device, rounds, MEMORY_GIB)


def memory_of_a_large_store(
    device: torch.device, rounds: int | None = None
) -> Iterator[Comparison]:
    """Measure `memory` with a store of 4 GiB."""
    yield from _memory(device, rounds, FULL_MEMORY_GIB)


def _memory(device: torch.device, rounds: int | None, gib: float) -> Iterator[Comparison]:
    del device
    row = Comparison(
        f"peak resident memory beyond the bare process, store of {gib:g} GiB",
        "train-vae --cache none",
        "what is allowed",
        "MiB",
        at_least=1.0,
    )
    if not Path("/proc/self/status").exists():
        yield replace(row, missing="needs Linux")
        return
    count = int(gib * 2**30 / (4 * STEPS * (OBSERVATION + ACTION)))
    found = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "large.zarr"
        write_random_snippets(path, count).close()
        for _ in range(rounds or 1):
            command = [sys.executable, "-c", _CHILD, str(path), str(UPDATES)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            bare, peak = json.loads(done.stdout.splitlines()[-1])
            found.append(peak - bare)
    yield row.measured(found, [ALLOWED_MIB] * len(found))


def _robomimic(path: Path) -> Work:
    obs_utils = importlib.import_module("robomimic.utils.obs_utils")
    dataset = importlib.import_module("robomimic.utils.dataset")
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"]}})
        data = dataset.SequenceDataset(
            hdf5_path=str(path),
            obs_keys=("state",),
            dataset_keys=("actions",),
            seq_length=LENGTH,
            hdf5_cache_mode="all",
            load_next_obs=False,
        )
    return _draws(data)


class IndexSampler(Dataset[dict[str, FloatArray]]):
    """Windows as Diffusion Policy samples them: a table of bounds, each window sliced and padded.

    Source: Chi et al., "Diffusion Policy", 2023 (its replay buffer with a sequence sampler).
    """

    def __init__(self, arrays: dict[str, FloatArray], ends: list[int], length: int) -> None:
        self._arrays, self._length = arrays, length
        self._bounds = [
            (max(first, low), min(first + length, high), max(low - first, 0))
            for low, high in itertools.pairwise([0, *ends])
            for first in range(low, high - length + 1)
        ]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._bounds)

    def __getitem__(self, index: int) -> dict[str, FloatArray]:
        """Return key to window (time, dim)."""
        low, high, before = self._bounds[index]
        found = {}
        for key, values in self._arrays.items():
            part = values[low:high]
            window = np.empty((self._length, *values.shape[1:]), values.dtype)
            window[:before] = part[0]
            window[before : before + len(part)] = part
            window[before + len(part) :] = part[-1]
            found[key] = window
        return found


def _index_sampler(path: Path) -> Work:
    return _draws(IndexSampler(*_in_memory(path), LENGTH))


def _in_memory(path: Path) -> tuple[dict[str, FloatArray], list[int]]:
    with h5py.File(path, "r") as file:
        demos = [file[f"data/demo_{number}"] for number in range(EPISODES)]
        state = np.concatenate([demo["obs/state"][()] for demo in demos]).astype(np.float32)
        action = np.concatenate([demo["actions"][()] for demo in demos]).astype(np.float32)
    return {"state": state, "action": action}, [STEPS * (n + 1) for n in range(EPISODES)]


class ParquetWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows as LeRobot reads them: rows of a table, one per time offset of every item."""

    def __init__(self, table: Any, ends: list[int], length: int) -> None:
        self._table, self._length = table, length
        pairs = itertools.pairwise([0, *ends])
        self._starts = [row for low, high in pairs for row in range(low, high - length + 1)]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return key to window (time, dim)."""
        rows = range(self._starts[index], self._starts[index] + self._length)
        part = self._table.take(list(rows))
        return {key: torch.tensor(part[key].to_pylist()) for key in ("state", "action")}


def _parquet(path: Path) -> Work:
    pa, parquet = map(importlib.import_module, ("pyarrow", "pyarrow.parquet"))
    arrays, ends = _in_memory(path)
    columns = {
        key: pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        for key, values in arrays.items()
    }
    file = path.with_suffix(".parquet")
    parquet.write_table(pa.table(columns), file)
    return _draws(ParquetWindows(parquet.read_table(file, memory_map=True), ends, LENGTH))


def _draws(data: Dataset[Any]) -> Work:
    loader = DataLoader(data, BATCH, shuffle=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def draw() -> None:
        for _ in range(BATCHES):
            next(batches)

    return draw


def write_random_snippets(path: Path, count: int) -> SnippetWriter:
    """Write episodes of random numbers, as many steps as a Metaworld task has; not closed yet."""
    writer = SnippetWriter(path, _spec())
    for episode in _episodes(count):
        writer.append(episode)
    return writer


def _spec() -> SourceSpec:
    return SourceSpec(
        observations=(ObservationSpec("state", OBSERVATION),),
        action=ActionSpec(ACTION, "delta", "normalized", (-1.0,) * ACTION, (1.0,) * ACTION),
        env=EnvSpec("", ("random",)),
        labels=("",),
        source_format="random",
    )


def _episodes(count: int, steps: int = STEPS) -> Iterator[Episode]:
    """Yield trajectories of normal numbers, which no compression makes smaller."""
    pool = np.random.default_rng(0).normal(size=(100 * steps, OBSERVATION + ACTION))
    rows = pool.astype(np.float32).reshape(100, steps, -1)
    for number in range(count):
        values = rows[number % 100]
        yield Episode(
            f"demo_{number}",
            {"state": values[:, :OBSERVATION]},
            np.clip(values[:, OBSERVATION:], -1, 1),
            task="random",
            split="validation" if number % 10 == 9 else "train",
        )


def _write_hdf5(path: Path, count: int, steps: int = STEPS) -> None:
    """Write float64 as robomimic does."""
    arguments = {"env_name": "reach-v3", "type": "metaworld", "env_kwargs": {}}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(arguments)
        data.attrs["total"] = count * steps
        for episode in _episodes(count, steps):
            demo = data.create_group(episode.source)
            demo.attrs["num_samples"] = steps
            demo["obs/state"] = episode.observations["state"].astype(np.float64)
            demo["actions"] = episode.actions.astype(np.float64)
            demo["rewards"] = np.zeros(steps)
            demo["dones"] = np.zeros(steps, np.int64)
