"""A child process that gives sources of random layout to real commands; see test_fuzz_readers.py.

`python layouts.py < job.json` takes the small source of a data format, changes names, shapes,
types and parts of it, and runs `lwdctl ingest`, sometimes `lwdctl inspect`, each time in a child
with limits. What was ingested is compared with the numbers in the file. The last line printed is
JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import zarr
from hypothesis import HealthCheck, Phase, given, settings

from lwdctl.configs import IngestConfig
from lwdctl.data.reader import MergedReader, open_source

sys.path.insert(0, str(Path(__file__).parent))
from limited import load, run, words_of
from mutations import MUTATIONS, Mutation, mutate

sys.path.pop(0)

COMPUTED = {("pusht", "block_angle_sincos")}
"""Observations that a reader computes instead of copying."""
GATHERED = {"lerobot"}
"""Formats that number their rows, so that those of an episode may stand in several places."""
INSPECT_EVERY = 5
"""One layout of so many is inspected instead of ingested."""


def arrays_in(path: Path) -> Iterator[np.ndarray]:
    """Return every array of numbers of a source as float32 (row, component)."""
    if path.is_dir() and not is_zarr(path):
        for file in filter(Path.is_file, sorted(path.rglob("*"))):
            yield from arrays_in(file)
        return
    for read in loaders(path):
        with suppress(Exception):  # an array that its own library does not read
            yield from flat(read())


def is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def loaders(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    """Return a function per array of a file or zarr store that loads it."""
    if path.is_dir():
        for file in (*path.rglob(".zarray"), *path.rglob("zarr.json")):
            yield lambda file=file: zarr.open_array(file.parent, mode="r")[...]
    elif h5py.is_hdf5(path):
        items: list[Any] = []
        with h5py.File(path, "r") as file:
            file.visititems(lambda _, item: items.append(item))
            for item in items:
                if isinstance(item, h5py.Dataset) and item.shape and item.size < 10**6:
                    yield lambda item=item: item[()]
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                yield lambda name=name: file[name]
    elif path.suffix == ".parquet":
        for column in pq.read_table(path).columns:
            yield lambda column=column: np.array(column.to_pylist(), np.float64)


def flat(values: np.ndarray) -> Iterator[np.ndarray]:
    if values.dtype.kind in "fiub" and values.ndim:
        with np.errstate(all="ignore"):
            yield values.reshape(len(values), -1 if values.size else 0).astype(np.float32)


def check_copied(rows: np.ndarray, arrays: list[np.ndarray], *, together: bool) -> str:
    """Return "" where every component (time,) stands in one of the arrays, else the component.

    Its values stand there row after row, or, unless they must be `together`, anywhere.
    """
    for component in rows.T:
        if not any(_holds(array, component, together=together) for array in arrays):
            return str(component)
    return ""


def _holds(array: np.ndarray, component: np.ndarray, *, together: bool) -> bool:
    if len(array) < len(component):
        return False
    if not together:
        return any(np.isin(component, column).all() for column in array.T)
    windows = np.lib.stride_tricks.sliding_window_view(array, len(component), axis=0)
    return bool((windows == component).all(axis=-1).any())


def check_source(source: MergedReader, name: str, path: Path) -> None:
    """Check every episode against the specification, and its numbers against the file's."""
    arrays = list(arrays_in(path))
    sizes = {item.name: item.size for item in source.spec.observations}
    assert len({outline.source for outline in source.episodes}) == len(source.episodes)
    for index, outline in enumerate(source.episodes):
        episode = source.read(index)
        assert episode.length == outline.length > 0
        assert episode.actions.shape == (outline.length, source.spec.action.size)
        assert episode.observations.keys() == sizes.keys()
        copied = {"actions": episode.actions}
        for key, rows in episode.observations.items():
            assert rows.shape == (outline.length, sizes[key])
            if (name, key) not in COMPUTED:
                copied[key] = rows
        for key, rows in copied.items():
            missing = check_copied(rows, arrays, together=name not in GATHERED)
            assert not missing, f"{outline.source}: {key}: not in the file: {missing}"
        parts = (*episode.observations.values(), episode.actions)
        assert all(np.isfinite(rows).all() and rows.dtype == np.float32 for rows in parts)


def copy_of(path: Path, folder: Path) -> Path:
    """Return a fresh copy of a source, under its own name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = shutil.copytree if path.is_dir() else shutil.copy
    return Path(copy(path, folder / path.name))


def try_layouts(name: str, path: Path, options: dict[str, Any], count: int) -> dict[str, Any]:
    """Return how many layouts ended with each exit status, and what passed a limit."""
    unchanged = run(["ingest", name, str(path), *words_of(options), "-q"])
    assert not unchanged.code, unchanged.text
    folder = path.parent / "changed"
    counted: dict[str, int] = {}
    lost: list[str] = []
    texts: set[str] = set()
    peaks, seconds = [0], [0.0]

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(mutations=MUTATIONS)
    def reads(mutations: list[Mutation]) -> None:
        changed = copy_of(path, folder)
        number = sum(counted.values())

        def prepare() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for mutation in mutations:
                    mutate(changed, mutation)

        def check() -> None:
            with open_source(name, (changed,), IngestConfig(**options)) as source:
                check_source(source, name, changed)

        if number % INSPECT_EVERY:
            ended = run(["ingest", name, str(changed), *words_of(options), "-q"], prepare, check)
        else:
            ended = run(["inspect", name, str(changed), *words_of(options), "-q"], prepare)
        counted[str(ended.code)] = counted.get(str(ended.code), 0) + 1
        texts.add(ended.text)
        peaks.append(ended.peak)
        seconds.append(ended.seconds)
        if problem := ended.problem():
            lost.append(f"{number}: {mutations}: {problem}: {ended.text[-2000:]}")

    reads()
    shutil.rmtree(folder)
    return {
        "counted": counted, "lost": lost, "texts": len(texts), "peak": max(peaks),
        "seconds": max(seconds),
    }  # fmt: skip


if __name__ == "__main__":
    load()
    for job in json.load(sys.stdin):
        answer = try_layouts(job["name"], Path(job["path"]), job["options"], job["count"])
        print(json.dumps(answer), flush=True)  # noqa: T201
