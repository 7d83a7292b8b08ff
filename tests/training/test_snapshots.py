"""Averaged weights kept during training: evenly spaced, safe to resume, harmless."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lwdctl.core.errors import ArtifactError
from lwdctl.core.progress import SilentProgress
from lwdctl.training import snapshots
from lwdctl.training.loop import LoopSettings, TrainingLoop
from lwdctl.training.schedule import Budget

SETTINGS = LoopSettings(
    budget=Budget(40),
    learning_rate=1e-2,
    warmup=5,
    weight_decay=0.0,
    clip_norm=1.0,
    ema_decay=0.9,
    seed=3,
    batch_size=8,
    snapshots=4,
)


class Regression:
    """Fit a sine; may interrupt itself."""

    def __init__(self, stop_at: int = -1) -> None:
        self.stop_at = stop_at

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        if update == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        inputs = torch.randn(8, 3, generator=generator)
        error = (model(inputs) - inputs.sin()).square().mean()
        return error, {"error": error.detach()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return {}


def train(path: Path, objective: Regression, settings: LoopSettings = SETTINGS) -> TrainingLoop:
    path.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    loop = TrainingLoop(model, objective, settings, path, SilentProgress())
    loop.run("train")
    return loop


def contents(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in sorted((path / "snapshots").iterdir())}


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def test_they_are_evenly_spaced_and_the_last_is_the_final_average(tmp_path: Path) -> None:
    loop = train(tmp_path / "run", Regression())
    assert snapshots.updates_kept(tmp_path / "run") == [10, 20, 30, 40]
    loaded = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    snapshots.load(loaded, tmp_path / "run", 40)
    assert torch.equal(weights(loaded), weights(loop.averaged_model))
    snapshots.load(loaded, tmp_path / "run", 30)
    assert not torch.equal(weights(loaded), weights(loop.averaged_model))
    uneven = train(tmp_path / "uneven", Regression(), replace(SETTINGS, snapshots=3))
    assert snapshots.updates_kept(tmp_path / "uneven") == [14, 27, 40]
    assert torch.equal(weights(uneven.model), weights(loop.model))


def test_a_resumed_run_keeps_the_same_ones(tmp_path: Path) -> None:
    train(tmp_path / "whole", Regression())
    for stop in (4, 23):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", Regression(stop_at=stop))
    assert snapshots.updates_kept(tmp_path / "parts") == [10, 20]
    # As a process leaves it that was killed after its newest checkpoint.
    (tmp_path / "parts" / "snapshots" / "30.safetensors").write_bytes(b"of another course")
    train(tmp_path / "parts", Regression())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_none_are_kept_unasked_and_more_than_updates_are_one_each(tmp_path: Path) -> None:
    train(tmp_path / "none", Regression(), replace(SETTINGS, snapshots=0))
    assert not (tmp_path / "none" / "snapshots").exists()
    train(tmp_path / "many", Regression(), replace(SETTINGS, snapshots=99, budget=Budget(5)))
    assert snapshots.updates_kept(tmp_path / "many") == [1, 2, 3, 4, 5]


def test_a_time_limit_ends_with_a_snapshot(tmp_path: Path) -> None:
    budget = Budget(10_000_000, time_limit=0.5 / 60)
    loop = train(tmp_path / "run", Regression(), replace(SETTINGS, budget=budget))
    assert snapshots.updates_kept(tmp_path / "run")[-1] == loop.state.update


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    loop = train(tmp_path / "run", Regression())
    (tmp_path / "run" / "snapshots" / "40.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        snapshots.load(loop.model, tmp_path / "run", 40)
