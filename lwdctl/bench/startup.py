"""What a stage costs beside its work: imports, opening inputs, publishing."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.workspace import Workspace
from lwdctl.bench.comparisons import Comparison
from lwdctl.bench.data import write_random_snippets

ROUNDS = 5
EPISODES = 4
ONE_STEP = ("--updates", "1", "--batch-size", "4", "--threads", "1")
CHUNKS = ("--snippet-length", "16", *ONE_STEP)
VAE = ("--snippet-length", "16", "--decoder", "xs", "--policy-width", "64", *ONE_STEP)
STAGES = (
    ("train-vae", "T 16, decoder xs, policy 2 x 64, one training step", VAE),
    ("encode", "with that VAE", ()),
    ("train-diffusion", "residual MLP 3 x 64, one training step", ("--width", "64", *ONE_STEP)),
    ("train-baseline mlp", "policy 2 x 64, one training step", ("--policy-width", "64", *ONE_STEP)),
    ("train-baseline dp", "U-Net xs, chunk 16, one training step", ("--unet-size", "xs", *CHUNKS)),
    (
        "train-baseline ldp",
        "chunk 16, residual MLP 3 x 64, one training step of each model",
        ("--width", "64", *CHUNKS),
    ),
)
"""Command, size of the model, and options. The first three read one another's artifacts. The models
are small, so that writing their weights does not count."""


def one_update(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Run stages on four episodes, each in turn with a process that only imports torch.

    Args:
        device: Where to train.
        rounds: Repetitions of both.
    """
    with TemporaryDirectory() as folder:
        with Workspace(Path(folder)).begin("snippets", "random", config={}) as run:
            run.publish(write_random_snippets(run.path / SNIPPETS_PAYLOAD, EPISODES).close())
        places = ["--workspace", folder, "-q", "--device", str(device)]
        for name, size, options in STAGES:
            command = ["-m", "lwdctl", *name.split(), *options, *places]
            pairs = [
                (_cpu_seconds(command), _cpu_seconds(["-c", "import torch"]))
                for _ in range(rounds or ROUNDS)
            ]
            comparison = Comparison(
                f"{name}, {size}", "the command", "import torch", "s", at_least=1 / 1.6
            )
            yield comparison.measured([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _cpu_seconds(arguments: Sequence[str]) -> float:
    """Return the CPU seconds, user and system, of one process of Python."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, *arguments]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
