"""Random layouts and damaged bytes: a reader returns what is in the file, or an `LwdctlError`.

Checksums see damage that would change numbers in zip and npz files, in HDF5 files with Fletcher's
filter and the metadata of its format 1.10, and in zarr chunks with crc32c. HDF5 files as most
people write them, chunks compressed with blosc, parquet files without page checksums and JSON
metadata have none: a flipped bit there may change a number or a name, and nobody can see it.

One damage is not tried: HDF5 2.0 loops for ever over a heap of texts whose sizes became zero, and
nothing in Python can stop it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from zarr.codecs import BloscCodec, Crc32cCodec

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import SilentProgress
from lwdctl.data.formats import READERS
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import MergedReader, open_source, recognize

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SAMPLES
from mutations import MUTATIONS, Mutation, mutate

sys.path.pop(0)

CHILD = Path(__file__).with_name("damage.py")
FORMATS = [name for name in READERS if name in SAMPLES]
COMPUTED = {("pusht", "block_angle_sincos")}
"""Observations that a reader computes instead of copying."""
GATHERED = {"lerobot"}
"""Formats that number their rows, so that those of an episode may stand in several places."""
PER_FORMAT = 10
"""Damages per format of the default run."""


def test_every_format_has_a_small_source():
    assert list(READERS) == FORMATS


# Layouts


def arrays_in(path: Path) -> Iterator[np.ndarray]:
    """Return every array of numbers of a source as float32 (row, component)."""
    if path.is_dir() and not is_zarr(path):
        for file in filter(Path.is_file, sorted(path.rglob("*"))):
            yield from arrays_in(file)
        return
    for load in loaders(path):
        with suppress(Exception):  # an array that its own library does not read
            yield from flat(load())


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


def read_or_refuse(name: str, path: Path, options: dict[str, Any]) -> str:
    """Return "read", or the message with which the source is refused."""
    config = IngestConfig(**{"max_bytes": 2**26, **options})
    try:
        recognize(path)
        with open_source(name, (path,), config) as source:
            check_source(source, name, path)
            ingest(source, config, None, SilentProgress())
    except LwdctlError as error:
        return error.message
    return "read"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the small source of every format."""
    folder = tmp_path_factory.mktemp("intact")
    made = {}
    for name in FORMATS:
        (folder / name).mkdir()
        made[name] = SAMPLES[name](folder / name)
    return made


def copy_of(path: Path, folder: Path) -> Path:
    """Return a fresh copy of a source, under its own name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = shutil.copytree if path.is_dir() else shutil.copy
    return Path(copy(path, folder / path.name))


def check_layouts(name: str, sample: Any, folder: Path, examples: int) -> None:
    outcomes = []

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutations=MUTATIONS)
    def check(mutations: list[Mutation]) -> None:
        path = copy_of(sample.path, folder / "copy")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for mutation in mutations:
                mutate(path, mutation)
            outcomes.append(read_or_refuse(name, path, getattr(sample, "options", {})))
        assert "\n" not in outcomes[-1]

    check()
    assert len(set(outcomes)) > 1


@pytest.mark.parametrize("name", FORMATS)
def test_any_layout_is_read_rightly_or_refused(name, intact, tmp_path):
    check_layouts(name, intact[name], tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_layouts_are_read_rightly_or_refused(name, intact, tmp_path):
    check_layouts(name, intact[name], tmp_path, 1000)


@pytest.mark.parametrize("name", FORMATS)
def test_the_intact_source_is_read(name, intact):
    assert read_or_refuse(name, intact[name].path, getattr(intact[name], "options", {})) == "read"


# Bytes


def with_checksums(sample: Any, folder: Path) -> dict[str, Any] | None:
    """Write a source again so that all bytes that numbers depend on have checksums."""
    path = copy_of(sample.path, folder)
    if path.is_file() and path.suffix == ".npz":
        return {"path": path}
    if path.is_dir() and is_zarr(path):
        old, new = zarr.open_group(path, mode="r"), folder / "checked.zarr"
        group = zarr.open_group(new, mode="w", zarr_format=3)
        for key, item in old.members(max_depth=None):
            if isinstance(item, zarr.Array):
                group.create_array(
                    key, data=item[...], chunks=item.chunks,
                    compressors=[BloscCodec(), Crc32cCodec()],
                )  # fmt: skip
        # Its metadata are JSON, which has none.
        return {"path": new, "suffixes": [str(digit) for digit in range(10)]}
    files = [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("*")))
    files = [file for file in files if h5py.is_hdf5(file)]
    for file in files:
        write_checked_hdf5(file)
    return {"path": path, "suffixes": [file.name for file in files]} if files else None


def write_checked_hdf5(path: Path) -> None:
    """Write an HDF5 file again, with checksums of its metadata and its arrays."""
    old = path.with_suffix(".old")
    path.rename(old)
    with h5py.File(old, "r") as source, h5py.File(path, "w", libver="latest") as target:
        texts: list[tuple[str, Any]] = [("/", source)]
        source.visititems(lambda name, item: texts.append((name, item)))
        for name, item in texts:
            if isinstance(item, h5py.Dataset):
                options = {"fletcher32": True, "chunks": True} if item.shape else {}
                made: Any = target.create_dataset(name, data=item[()], **options)
            else:
                made = target.require_group(name)
            for key, value in item.attrs.items():
                # Texts of variable length lie in a heap without checksums.
                made.attrs[key] = np.bytes_(value.encode()) if isinstance(value, str) else value
    old.unlink()


def try_damages(jobs: list[dict[str, Any]], timeout: float) -> dict[str, list[dict[str, Any]]]:
    """Run damages in child processes; one that dies is recorded, and the next goes on."""
    answers: dict[str, list[dict[str, Any]]] = {job["name"]: [] for job in jobs}
    left = jobs
    while left:
        done = subprocess.run(
            [sys.executable, str(CHILD)], input=json.dumps(left), capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            if "outcome" in line:
                answers[line["job"]].append(line)
        assert lines, done.stderr
        if done.returncode == 0:
            break
        last = lines[-1]
        dead = {**last, "outcome": "crash", "traceback": f"{done.returncode}: {done.stderr}"}
        answers[last["job"]].append(dead)
        names = [job["name"] for job in left]
        left = left[names.index(last["job"]) :]
        numbers = [number for number in left[0]["numbers"] if number > last["number"]]
        left = [{**left[0], "numbers": numbers}, *left[1:]]
    return answers


def jobs_for(
    intact: dict[str, Any], folder: Path, names: list[str], count: int
) -> list[dict[str, Any]]:
    """Return damages of the plain sources, and of copies with checksums."""
    jobs = []
    for name in names:
        sample, common = intact[name], {"format": name, "seed": 0}
        common["options"] = getattr(sample, "options", {})
        plain, checked = folder / f"{name}-plain", folder / f"{name}-checked"
        path = copy_of(sample.path, plain)
        jobs.append({**common, "name": name, "path": str(path), "numbers": list(range(count))})
        variant = with_checksums(sample, checked)
        if variant is not None:
            numbers = list(range(count, 2 * count))
            variant["path"] = str(variant["path"])
            jobs.append({**common, **variant, "name": f"{name} checked", "numbers": numbers})
    return jobs


def check_answers(answers: list[dict[str, Any]], path: Path, count: int, *, checked: bool) -> None:
    assert len(answers) == count
    for answer in answers:
        where = f"{answer['job']}, damage {answer['number']}"
        assert answer["outcome"] != "crash", f"{where}: {answer['traceback']}"
        if answer["outcome"] == "error":
            assert "\n" not in answer["message"]
            assert str(path) in answer["message"], f"{where}: {answer['message']}"
        elif answer["outcome"] == "skipped":
            continue
        elif checked:
            assert answer["differing"] == 0, f"{where}: wrong numbers: {answer}"
        elif answer["in_data"]:
            # Without checksums, damage stays where it is: no other number changes.
            assert 0 <= answer["differing"] <= answer["high"] - answer["low"], f"{where}: {answer}"
    assert any(answer["outcome"] == "error" for answer in answers)


@pytest.fixture(scope="module")
def damaged(intact, tmp_path_factory):
    """Return the answers to the damages of the default run, and the jobs, by name."""
    folder = tmp_path_factory.mktemp("damaged")
    jobs = jobs_for(intact, folder, FORMATS, PER_FORMAT)
    return try_damages(jobs, timeout=170), {job["name"]: job for job in jobs}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes_are_an_error_or_harmless(name, damaged):
    answers, jobs = damaged
    for job in (name, f"{name} checked"):
        if job in jobs:
            path = Path(jobs[job]["path"])
            check_answers(answers[job], path, PER_FORMAT, checked=job != name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_damages_are_an_error_or_harmless(name, intact, tmp_path):
    jobs = jobs_for(intact, tmp_path, [name], 1000)
    answers = try_damages(jobs, timeout=1700)
    for job in jobs:
        path = Path(job["path"])
        check_answers(answers[job["name"]], path, 1000, checked=job["name"] != name)
