"""Damage files at random and read them, in a process with limits: a child of test_fuzz_readers.py.

    python damage.py < jobs.json

A job names a data format, the path of its small source, and which damages (numbers of a seeded
sequence) to try. Every damage is one line of JSON on stdout before it is read, and one after.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import LwdctlError
from lwdctl.data.reader import open_source, recognize

sys.path.insert(0, str(Path(__file__).parent))
from limited import load, run, words_of

sys.path.pop(0)

SECONDS = 20
"""Longest time that one reading may take on a busy machine; an ordinary one takes 0.05."""
MEMORY = 2**30
"""Address space beyond what the process has after its imports and an intact reading."""
MAX_BYTES = 2**26
INGEST_EVERY = 5
"""One damage of so many is given to `lwdctl ingest` as well as read."""

Numbers = dict[str, np.ndarray]


def read(name: str, path: Path, options: dict[str, Any]) -> Numbers:
    """Return all numbers of a source by episode and key, and its description."""
    recognize(path)
    config = IngestConfig(**{"max_bytes": MAX_BYTES, **options})
    numbers: Numbers = {}
    with open_source(name, (path,), config) as source:
        for index, outline in enumerate(source.episodes):
            episode = source.read(index)
            parts = {f"obs/{key}": rows for key, rows in episode.observations.items()}
            parts |= {
                f"final/{key}": rows for key, rows in (episode.final_observation or {}).items()
            }
            parts |= {"actions": episode.actions, "rewards": episode.rewards}
            parts["initial"] = episode.initial_state
            numbers |= {
                f"{outline.source}/{key}": rows for key, rows in parts.items() if rows is not None
            }
        numbers["about"] = np.array([repr(source.spec), repr(source.episodes)])
        numbers["findings"] = np.array([repr(source.findings)])
    return numbers


def differing(found: Numbers, expected: Numbers) -> int:
    """Return how many numbers differ; -1 where anything else does.

    Parts that training does not need may be missing, if the reader says so in a finding.
    """
    lost = expected.keys() - found.keys()
    optional = all(key.endswith(("/rewards", "/initial")) or "/final/" in key for key in lost)
    reported = (found["findings"] != expected["findings"]).any()
    if not found.keys() <= expected.keys() or not optional or (lost and not reported):
        return -1
    numbers = found.keys() - ({"findings", "about"} if lost else {"findings"})
    if any(found[key].shape != expected[key].shape for key in numbers):
        return -1
    if not lost and (found["about"] != expected["about"]).any():
        return -1
    return sum(int((found[key] != expected[key]).sum()) for key in numbers)


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())


def extents_of(path: Path) -> list[tuple[int, int]]:
    """Return which bytes of an HDF5 file are floats of contiguous arrays, without checksums."""
    found: list[tuple[int, int]] = []
    if not h5py.is_hdf5(path):
        return found

    def add(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            offset = item.id.get_offset()
            if offset is not None:
                found.append((offset, offset + item.id.get_storage_size()))

    with h5py.File(path, "r") as file:
        file.visititems(add)
    return found


def change(content: bytes, rng: np.random.Generator) -> tuple[bytes, int, int]:
    """Return damaged content, and the first and last byte that may differ."""
    size = len(content)
    kind = rng.choice(["flip", "flip", "flip", "zeros", "noise", "truncate", "insert"])
    # Structure stands at the beginning of most containers, and at the end of zip and parquet.
    place = int(rng.choice([rng.integers(size), rng.integers(min(size, 2048)),
                            size - 1 - rng.integers(min(size, 512))]))  # fmt: skip
    run = int(min(size - place, 1 + rng.integers(64)))
    if kind == "flip":
        byte = content[place] ^ (1 << int(rng.integers(8)))
        return content[:place] + bytes([byte]) + content[place + 1 :], place, place + 1
    if kind == "zeros":
        return content[:place] + bytes(run) + content[place + run :], place, place + run
    if kind == "noise":
        return content[:place] + rng.bytes(run) + content[place + run :], place, place + run
    if kind == "truncate":
        return content[:place], place, size
    return content[:place] + rng.bytes(run) + content[place:], place, size


def try_one(job: dict[str, Any], number: int, expected: Numbers) -> dict[str, Any]:
    """Damage one file of the source, read it, and put the file back."""
    path, suffixes = Path(job["path"]), tuple(job.get("suffixes", ()))
    rng = np.random.default_rng([job["seed"], number])
    files = [file for file in files_of(path) if not suffixes or file.name.endswith(suffixes)]
    file = files[int(rng.integers(len(files)))]
    content = file.read_bytes()
    extents = extents_of(file)
    damaged, low, high = change(content, rng) if content else (rng.bytes(8), 0, 8)
    answer: dict[str, Any] = {"file": file.name, "low": low, "high": high}
    answer["in_data"] = any(start <= low and high <= stop for start, stop in extents)
    file.write_bytes(damaged)
    try:
        if number % INGEST_EVERY == 0:
            words = words_of(job.get("options", {}))
            ended = run(["ingest", job["format"], str(path), *words, "-q"])
            answer |= {"code": ended.code, "peak": ended.peak, "seconds": ended.seconds}
            if problem := ended.problem():
                raise AssertionError(f"{problem}: {ended.text}")
        found = read(job["format"], path, job.get("options", {}))
        answer["outcome"], answer["differing"] = "read", differing(found, expected)
    except LwdctlError as error:
        answer["outcome"], answer["message"] = "error", error.message
    except BaseException:  # noqa: BLE001 - whatever it is, it is a defect
        answer["outcome"], answer["traceback"] = "crash", traceback.format_exc()
    finally:
        file.write_bytes(content)
    return answer


def restore(path: Path) -> None:
    """Put back what a child that died left damaged; keep a copy the first time."""
    kept = path.with_name(f"{path.name}.intact")
    source, target = (kept, path) if kept.exists() else (path, kept)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def write(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    warnings.simplefilter("ignore")
    load()
    jobs = json.load(sys.stdin)
    for job in jobs:
        restore(Path(job["path"]))
    intact = [read(job["format"], Path(job["path"]), job.get("options", {})) for job in jobs]
    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0
    if used:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # commands have a limit of their own
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    for job, expected in zip(jobs, intact, strict=True):
        for number in job["numbers"]:
            write({"job": job["name"], "number": number})
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            answer = try_one(job, number, expected)
            faulthandler.cancel_dump_traceback_later()
            write({"job": job["name"], "number": number, **answer})


if __name__ == "__main__":
    main()
