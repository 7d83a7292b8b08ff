"""Rows with busy neighbors: each run has the threads and the busy processes that it names."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from joblib import cpu_count

from lwdctl.bench import busy
from lwdctl.bench.busy import NEIGHBORS, THREADS, Trainer
from lwdctl.core.errors import LwdctlError

TOY = """
import os
import time

import torch


class Toy:
    def run(self, count):
        # Slower with one thread of torch, and where waiting threads spin.
        time.sleep(0.002 if torch.get_num_threads() > 1 else 0.02)
        time.sleep(0.02 if "GOMP_SPINCOUNT" in os.environ else 0.0)


def broken():
    raise SystemExit(5)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A work in the place of the trainings, and short measurements."""
    (tmp_path / "toy_of_threads.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", f"{Path(busy.__file__).parents[2]}:{tmp_path}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(busy, "SECONDS", 0.05)
    monkeypatch.setattr(busy, "WORKS", {"toy": "toy_of_threads:Toy"})


@pytest.mark.slow
@pytest.mark.skipif(cpu_count() < 2, reason="there is one number of threads to choose")
def test_every_number_of_threads_is_measured_beside_every_number_of_processes(
    toy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    ask = Trainer._ask

    def watched(self: Trainer, count: int | None) -> object:
        children = psutil.Process().children()
        seen.append(sum(busy.BUSY in child.cmdline() for child in children))
        return ask(self, count)

    monkeypatch.setattr(Trainer, "_ask", watched)
    rows = list(busy.beside_busy_processes(torch.device("cpu"), rounds=2))
    assert [row.name for row in rows] == [
        f"toy, {beside}, {name}"
        for beside in NEIGHBORS.values()
        for name in (*THREADS, "as many threads as calibrated")
    ]
    assert sorted(set(seen)) == [0, 1, 2]
    assert seen == sorted(seen)
    assert all(row.rounds == 2 for row in rows)
    one, two, calibrated = rows[:3]
    assert calibrated.note.startswith("chose 2; measured training steps per second: ")
    assert not one.note
    assert one.value.median < two.value.median
    assert calibrated.value == two.value
    assert two.ratio > 1  # the reference spins
    children = psutil.Process().children()
    assert not [child for child in children if "lwdctl.bench.busy" in child.cmdline()]


@pytest.mark.slow
def test_a_training_that_ends_is_said(toy: None) -> None:
    with (
        Trainer("toy_of_threads:broken") as trainer,
        pytest.raises(LwdctlError, match="exit code 5"),
    ):
        trainer.rate(1)


@pytest.mark.slow
@pytest.mark.parametrize("work", busy.WORKS.values())
def test_the_trainings_of_the_rows_can_be_built(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "SECONDS", 0.01)
    with Trainer(work) as trainer:
        assert trainer.rate(1) > 0


def test_the_busy_process_lives_during_every_second_run_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def count(device: torch.device, *, smoke: bool) -> None:
        children = psutil.Process().children()
        seen.append(sum(busy.BUSY in child.cmdline() for child in children))

    monkeypatch.setattr(busy, "_run", count)
    found = next(iter(busy.beside_a_busy_process(torch.device("cpu"), rounds=2)))
    assert seen == [0, 1, 0, 1]
    assert found.rounds == 2
    assert not [c for c in psutil.Process().children() if busy.BUSY in c.cmdline()]


def test_the_recipe_is_the_quick_start() -> None:
    assert busy.RECIPE.exists()
