"""Random layouts and damaged bytes: a reader returns what is in the file, or an `LwdctlError`.

Checksums see damage that would change numbers in zip and npz files, in HDF5 files with Fletcher's
filter and the metadata of its format 1.10, and in zarr chunks with crc32c. HDF5 files as most
people write them, chunks compressed with blosc, parquet files without page checksums and JSON
metadata have none: a flipped bit there may change a number or a name, and nobody can see it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from lwdctl.data.formats import READERS

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SAMPLES
from layouts import copy_of, is_zarr
from limited import COUNTED

sys.path.pop(0)

CHILD = Path(__file__).with_name("damage.py")
FORMATS = [name for name in READERS if name in SAMPLES]
COMPUTED = {("pusht", "block_angle_sincos")}
"""Observations that a reader computes instead of copying."""
GATHERED = {"lerobot"}
"""Formats that number their rows, so that those of an episode may stand in several places."""
PER_FORMAT = 10
"""Damages per format of the slow test; the long one makes a thousand."""


def test_every_format_has_a_small_source():
    assert list(READERS) == FORMATS


# Layouts


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the small source of every format."""
    folder = tmp_path_factory.mktemp("intact")
    made = {}
    for name in FORMATS:
        (folder / name).mkdir()
        made[name] = SAMPLES[name](folder / name)
    return made


def environment_of(folder: Path) -> dict[str, str]:
    return {**os.environ, "LWDCTL_WORKSPACE": str(folder / "runs"), "OMP_NUM_THREADS": "1"}


def try_in_child(script: str, jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the answers of a child to several jobs, each of them a line of JSON."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script))], input=json.dumps(jobs),
        env=environment_of(folder),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_counts(name: str, answer: dict[str, Any], noun: str) -> None:
    """Check that nothing passed a limit, and count it."""
    codes, lost = answer["counted"], answer["lost"]
    COUNTED.append(
        f"{noun} of {name}: {sum(codes.values())} injected, exit 0: {codes.get('0', 0)}, 1:"
        f" {codes.get('1', 0)}, 2: {codes.get('2', 0)}, peak {answer['peak'] / 1e6:.0f} MB,"
        f" longest {answer['seconds']:.1f} s, {len(lost)} lost"
    )
    assert not lost, "\n".join(lost[:5])


def check_layouts(names: list[str], intact: dict[str, Any], folder: Path, count: int) -> None:
    jobs = [
        {
            "name": name, "path": str(intact[name].path), "count": count,
            "options": getattr(intact[name], "options", {}),
        }
        for name in names
    ]  # fmt: skip
    answers = try_in_child("layouts.py", jobs, folder)
    for name, answer in zip(names, answers, strict=True):
        check_counts(name, answer, "layouts")
    refused = sum(answer["counted"].get("1", 0) for answer in answers)
    assert refused >= len(names), "too few changes reached the readers"


@pytest.mark.slow
def test_any_layout_is_read_rightly_or_refused(intact, tmp_path):
    check_layouts(FORMATS, intact, tmp_path, 4)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_layouts_are_read_rightly_or_refused(name, intact, tmp_path):
    check_layouts([name], intact, tmp_path, 1000)


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


def try_damages(
    jobs: list[dict[str, Any]], folder: Path, timeout: float
) -> dict[str, list[dict[str, Any]]]:
    """Run damages in child processes; one that dies is recorded, and the next goes on."""
    answers: dict[str, list[dict[str, Any]]] = {job["name"]: [] for job in jobs}
    left = jobs
    while left:
        done = subprocess.run(
            [sys.executable, str(CHILD)], input=json.dumps(left), env=environment_of(folder),
            capture_output=True, text=True, timeout=timeout, check=False,
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


def count_answers(answers: list[dict[str, Any]]) -> None:
    codes = Counter(str(answer["code"]) for answer in answers if "code" in answer)
    outcomes = Counter(answer["outcome"] for answer in answers)
    lost = outcomes.pop("crash", 0)
    COUNTED.append(
        f"damages of {answers[0]['job']}: {len(answers)} injected, {dict(outcomes)}, of commands"
        f" {dict(codes)}, peak {max(answer.get('peak', 0) for answer in answers) / 1e6:.0f} MB,"
        f" longest {max(answer.get('seconds', 0) for answer in answers):.1f} s, {lost} lost"
    )


def check_answers(answers: list[dict[str, Any]], path: Path, count: int, *, checked: bool) -> None:
    assert len(answers) == count
    count_answers(answers)
    for answer in answers:
        where = f"{answer['job']}, damage {answer['number']}"
        assert answer["outcome"] != "crash", f"{where}: {answer['traceback']}"
        if answer["outcome"] == "error":
            assert "\n" not in answer["message"]
            assert str(path) in answer["message"], f"{where}: {answer['message']}"
        elif checked:
            assert answer["differing"] == 0, f"{where}: wrong numbers: {answer}"
        elif answer["in_data"]:
            # Without checksums, damage stays where it is: no other number changes.
            assert 0 <= answer["differing"] <= answer["high"] - answer["low"], f"{where}: {answer}"
    assert any(answer["outcome"] == "error" for answer in answers)


@pytest.fixture(scope="module")
def damaged(intact, tmp_path_factory):
    """Return the answers to the damages of the slow test, and the jobs, by name."""
    folder = tmp_path_factory.mktemp("damaged")
    jobs = jobs_for(intact, folder, FORMATS, PER_FORMAT)
    return try_damages(jobs, folder, timeout=170), {job["name"]: job for job in jobs}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes_are_an_error_or_harmless(name, damaged):
    answers, jobs = damaged
    for job in (name, f"{name} checked"):
        if job in jobs:
            path = Path(jobs[job]["path"])
            check_answers(answers[job], path, PER_FORMAT, checked=job != name)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_damages_are_an_error_or_harmless(name, intact, tmp_path):
    jobs = jobs_for(intact, tmp_path, [name], 1000)
    answers = try_damages(jobs, tmp_path, timeout=3500)
    for job in jobs:
        path = Path(job["path"])
        check_answers(answers[job["name"]], path, 1000, checked=job["name"] != name)
