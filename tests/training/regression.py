"""A small regression that loop tests train, interrupt and resume."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lwdctl.core.progress import SilentProgress
from lwdctl.training.loop import TrainingLoop
from lwdctl.training.update import LoopSettings

SETTINGS = LoopSettings(
    updates=40,
    learning_rate=1e-2,
    warmup=5,
    weight_decay=1e-3,
    clip_norm=1.0,
    ema_decay=0.9,
    seed=3,
    batch_size=8,
    log_every=1,
    validate_every=10,
)


class Regression:
    """Fit a sine with noise, dropout and all, so that hidden state would show."""

    def __init__(self, stop_at: int = -1, diverge_at: int = -1) -> None:
        self.stop_at, self.diverge_at = stop_at, diverge_at
        self.first = 0

    def load(self, update: int, left: int) -> int:
        self.first = update
        return 7

    def loss(
        self, model: nn.Module, place: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        update = self.first + int(place)
        if update == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        inputs = torch.randn(8, 3, generator=generator)
        error = (model(inputs) - inputs.sin()).square().mean()
        if update == self.diverge_at:
            error = error * float("nan")
        return error, {"error": error.detach()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return {"held_out": float(model(torch.ones(1, 3)).sum())}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))


def train(
    path: Path, objective: Regression, settings: LoopSettings = SETTINGS
) -> tuple[dict[str, float], TrainingLoop]:
    path.mkdir(exist_ok=True)
    loop = TrainingLoop(network(), objective, settings, path, SilentProgress())
    return loop.run("train"), loop


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
