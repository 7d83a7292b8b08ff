"""The quick start on a quiet machine and beside a busy process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import lwdctl
from lwdctl.bench.comparisons import Comparison, seconds_of
from lwdctl.core.errors import ConfigError

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
