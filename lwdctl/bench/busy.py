"""What busy neighbors cost: the quick start and training steps, alone and beside busy processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import lwdctl
from lwdctl.bench.comparisons import Comparison, seconds_of
from lwdctl.bench.training import Training
from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.training.threads import Calibration, calibrate

RECIPE = Path(lwdctl.__file__).resolve().parents[1] / "pipelines" / "quickstart.toml"
BUSY = "while True: pass"


def beside_a_busy_process(
    device: torch.device, rounds: int | None = None, *, smoke: bool = False
) -> Iterator[Comparison]:
    """Run the quick start alone and beside one process that computes all the time, in turn.

    Args:
        device: Where to train.
        rounds: Repetitions of both; one by default, because each takes minutes.
        smoke: Run the recipe's short form instead.

    Raises:
        ConfigError: The recipe is not there, because lwdctl runs from a wheel.
    """
    if not RECIPE.exists():
        raise ConfigError(f"there is no recipe {RECIPE}", "run in a checkout of lwdctl")
    alone, beside = [], []
    for _ in range(rounds or 1):
        alone.append(seconds_of(lambda: _run(device, smoke=smoke)))
        with busy_processes(1):
            beside.append(seconds_of(lambda: _run(device, smoke=smoke)))
    yield Comparison(
        "quick start beside one busy process",
        "beside `while True: pass`",
        "the same without it",
        "s",
        at_least=0.5,
    ).measured(beside, alone)


def _run(device: torch.device, *, smoke: bool) -> None:
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lwdctl", "run", str(RECIPE), "--workspace", folder, "-q"]
        flags = ["--smoke"] if smoke else []
        settings = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else None
        words = [*command, *flags]
        subprocess.run(words, check=True, env=settings, stdout=subprocess.DEVNULL)  # noqa: S603


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Have processes beside the context that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]  # noqa: S603
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


ROUNDS = 5
SECONDS = 2.0
"""Length of one measurement, and of the calibration: many time slices of the scheduler."""
NEIGHBORS = {0: "alone", 1: "beside one busy process", 2: "beside two busy processes"}
THREADS = {"1 thread": 1, "2 threads": 2}
WORKS = {
    "latent denoiser, residual MLP, batch 256": "lwdctl.bench.training:denoiser_training",
    "VAE, Metaworld T 500, decoder xs, policy 2 x 256, batch 32, 32 loss steps": (
        "lwdctl.bench.training:metaworld_training"
    ),
}
"""Trainings, and the functions that build them."""
SPINNING = "300000"
"""Turns for which GNU's OpenMP lets a waiting thread look for work before it sleeps, by default."""


def beside_busy_processes(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Train with 1, 2 and the calibrated number of threads, beside 0, 1 and 2 busy processes.

    The reference has torch's threads as they come: as many as cores, which spin while they wait.
    Each side trains in a process of its own, because waiting is settled when torch is imported.

    Args:
        device: Ignored; the rows are about the CPU.
        rounds: Repetitions of each measurement.
    """
    del device
    for title, work in WORKS.items():
        with Trainer(work) as ours, Trainer(work, spinning=True) as reference:
            for trainer in (ours, reference):
                trainer.rate(1)  # both have started when anything is measured
            for count, beside in NEIGHBORS.items():
                with busy_processes(count):
                    yield from _by_threads(f"{title}, {beside}", ours, reference, rounds or ROUNDS)


def _by_threads(title: str, ours: Trainer, reference: Trainer, rounds: int) -> Iterator[Comparison]:
    chosen = ours.calibrate()
    named = {**THREADS, "as many threads as calibrated": chosen.threads}
    rates: dict[int, list[float]] = {count: [] for count in named.values()}
    spinning = []
    for _ in range(rounds):
        for count, found in rates.items():
            found.append(ours.rate(count))
        spinning.append(reference.rate(0))
    for name, count in named.items():
        yield Comparison(
            f"{title}, {name}",
            "waiting threads sleep",
            "torch's defaults: a thread for each core, which spin while they wait",
            "updates/s",
            note="" if name in THREADS else f"chose {count}; {chosen.describe()}",
        ).measured(rates[count], spinning)


class Trainer:
    """A training in a process of its own, which makes training steps when it is asked to.

    Args:
        work: What to train: `module:function`, which returns a `Training` on the CPU.
        spinning: Whether waiting threads spin, instead of sleeping at once.
    """

    def __init__(self, work: str, *, spinning: bool = False) -> None:
        own = {"OMP_NUM_THREADS", "GOMP_SPINCOUNT"}
        settings = {name: value for name, value in os.environ.items() if name not in own}
        settings |= {"GOMP_SPINCOUNT": SPINNING} if spinning else {}
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __name__, work],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=settings,
        )

    def __enter__(self) -> Trainer:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def rate(self, threads: int) -> float:
        """Return training steps per second with a number of threads; 0 takes torch's own."""
        return float(self._ask(threads)["rate"])

    def calibrate(self) -> Calibration:
        """Return the number of threads that a training would choose now."""
        found = self._ask(None)
        return Calibration(
            found["threads"], {int(count): rate for count, rate in found["rates"].items()}
        )

    def _ask(self, threads: int | None) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps([threads, SECONDS]) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise LwdctlError(f"the training ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(work: str) -> None:
    """Do what the lines on stdin ask for, and answer each with a line on stdout."""
    module, _, name = work.partition(":")
    training: Training = getattr(import_module(module), name)()
    own, step = torch.get_num_threads(), partial(training.run, 1)
    for line in sys.stdin:
        threads, seconds = json.loads(line)
        if threads is None:
            torch.set_num_threads(own)
            answer = asdict(calibrate(step, seconds=seconds))
        else:
            torch.set_num_threads(threads or own)
            answer = {"rate": _rate(training, seconds)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _rate(training: Training, seconds: float) -> float:
    training.run(1)  # starts the threads
    steps, started, spent = 0, time.perf_counter(), 0.0
    while spent < seconds:
        training.run(1)
        steps, spent = steps + 1, time.perf_counter() - started
    return steps / spent


if __name__ == "__main__":
    serve(sys.argv[1])
