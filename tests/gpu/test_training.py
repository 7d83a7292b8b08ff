"""Training on CUDA: captured steps are the eager ones, and resuming is exact."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig, DiffusionConfig, EncodeConfig, VaeConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.methods import BASELINES
from lwdctl.training.diffusion import train_diffusion
from lwdctl.training.encode import encode
from lwdctl.training.loop import TrainingLoop
from lwdctl.training.update import LoopSettings, Update
from lwdctl.training.vae import train_vae

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from made import random_walks

sys.path.pop(0)

pytestmark = pytest.mark.gpu
VAE = VaeConfig(
    snippet_length=16, latent_size=32, policy_width=32, batch_size=16, updates=150, device="cuda",
    precision="fp32", observation_noise=0.1,
)  # fmt: skip
DIFFUSION = DiffusionConfig(
    width=64, blocks=2, batch_size=32, updates=150, device="cuda", precision="fp32", dropout=0.1
)
BASELINE = BaselineConfig(
    snippet_length=16, batch_size=16, updates=150, device="cuda", unet_size="xs", precision="fp32",
    latent_size=32, warmup=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> SnippetStore:
    return random_walks(episodes=12, steps=60, state=5)


def weights(model: nn.Module) -> list[Tensor]:
    return [value.cpu() for value in model.state_dict().values()]


def largest_difference(one: nn.Module, two: nn.Module) -> float:
    pairs = zip(weights(one), weights(two), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def train(kind: str, data: SnippetStore, directory: Path, **changes: Any) -> Any:
    quiet = SilentProgress()
    if kind == "vae":
        return train_vae(data, replace(VAE, **changes), directory=directory, progress=quiet)
    if kind == "diffusion":
        vae = train_vae(data, VAE, directory=directory / "vae", progress=quiet).model
        latents = encode(vae, data, EncodeConfig(device="cuda"), None, quiet)
        config = replace(DIFFUSION, **changes)
        return train_diffusion(latents, data, vae, config, directory=directory, progress=quiet)
    method, _, denoiser = kind.partition("-")
    config = replace(BASELINE, method=method, denoiser=denoiser or None, **changes)
    return BASELINES.load(method).train(data, config, directory, quiet)


def test_steps_on_the_device_are_not_uploaded_again(data: SnippetStore) -> None:
    batches = SnippetBatches(
        data, ("state",), WindowRule(16), split="train", seed=0, device=torch.device("cuda")
    )
    assert batches.resident
    assert len(batches.prepare(*batches.drawn(0, 4))) == 1


KINDS = ["vae", "diffusion", "dp-unet", "dp-transformer", "ldp", "mlp"]


@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_are_the_eager_ones(kind: str, data: SnippetStore, tmp_path: Path) -> None:
    for name in ("captured", "eager", "again"):
        (tmp_path / name / "vae").mkdir(parents=True)
    captured = train(kind, data, tmp_path / "captured")
    eager = train(kind, data, tmp_path / "eager", cuda_graphs="off")
    again = train(kind, data, tmp_path / "again")
    assert largest_difference(captured.model, again.model) == 0.0
    assert largest_difference(captured.model, eager.model) < 1e-3
    for name in ("error", "denoising", "reconstruction", "squared_error"):
        if name in captured.summary:
            assert captured.summary[name] == pytest.approx(eager.summary[name], rel=1e-2)


LOOPS = {"diffusion": 2, "ldp": 2}
"""Trainings that follow one another, where it is not one."""


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_exact(
    kind: str, data: SnippetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loop of a training is interrupted once."""
    for name in ("whole", "parts"):
        (tmp_path / name / "vae").mkdir(parents=True)
    whole = train(kind, data, tmp_path / "whole")
    step, seen = TrainingLoop._step, set[Path]()

    def interrupted(self: TrainingLoop[Any]) -> None:
        if self.state.update == 77 and self.directory not in seen:
            seen.add(self.directory)
            self.save()
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(TrainingLoop, "_step", interrupted)
    for _ in range(LOOPS.get(kind, 1)):
        with pytest.raises(KeyboardInterrupt):
            train(kind, data, tmp_path / "parts")
    resumed = train(kind, data, tmp_path / "parts")
    assert len(seen) == LOOPS.get(kind, 1)
    assert largest_difference(whole.model, resumed.model) == 0.0
    assert largest_difference(whole.last, resumed.last) == 0.0


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_other_precisions_train(precision: str, data: SnippetStore, tmp_path: Path) -> None:
    for name in ("exact", "other"):
        (tmp_path / name).mkdir()
    exact = train("vae", data, tmp_path / "exact").summary
    other = train("vae", data, tmp_path / "other", precision=precision).summary
    assert other["reconstruction"] == pytest.approx(exact["reconstruction"], rel=0.1)


class Waiting:
    """An objective that waits for the device in every step, so that capture must fail."""

    def load(self, update: int, left: int) -> int:
        return 8

    def loss(
        self, model: nn.Module, place: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        inputs = torch.randn(8, 2, generator=generator, device=place.device)
        error = model(inputs).square().mean()
        if float(error) < 0.0:
            raise AssertionError
        return error, {"error": error.detach()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return {}


def test_a_step_that_cannot_be_captured_runs_eagerly_and_says_why() -> None:
    settings = LoopSettings(
        updates=10, learning_rate=1e-2, warmup=1, clip_norm=1.0, ema_decay=0.9, seed=0, batch_size=8
    )
    said: list[str] = []
    torch.manual_seed(0)
    model = nn.Linear(2, 1).cuda()
    update = Update(model, Waiting(), settings, said.append)
    update.step(0, 10)
    first = update.loss.item()
    for number in range(1, 10):
        update.step(number, 10)
    assert len(said) == 1
    assert "CUDA graph" in said[0]
    assert update.loss.item() < first
    assert not update.not_finite()


def test_the_device_is_not_waited_for_between_looks(data: SnippetStore, tmp_path: Path) -> None:
    """A synchronisation inside the steps of a block is an error in this mode."""
    step = TrainingLoop._step

    def strict(self: TrainingLoop[Any]) -> None:
        loaded = self.state.update in self.update._block
        torch.cuda.set_sync_debug_mode("error" if loaded and self.update._replay else "default")
        try:
            step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_step", strict)
        train("vae", data, tmp_path)
