"""Classifier-free guidance: hidden conditions in training, mixed predictions in sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lwdctl
from lwdctl.analysis.analyses import AnalyzeConvergenceConfig
from lwdctl.analysis.convergence import analyze_convergence
from lwdctl.core.errors import ConfigError
from lwdctl.models.denoiser import Denoiser, DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion, check_sampling
from lwdctl.training.objectives import DiffusionObjective, LatentTable

LATENT = 8


def model_of(architecture: str = "mlp", network: nn.Module | None = None) -> LatentDiffusion:
    denoiser = DenoiserSpec(
        architecture, LATENT, 3, (LATENT, 1), "xs", 64, 2, 0.0, "xs", 1, shared_condition=3
    )
    torch.manual_seed(0)
    spec = DiffusionSpec(denoiser, "sample", 50, ("task",), 0, 2, 0, can_hide=True)
    return LatentDiffusion(spec, network).eval()


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


def task_conditions(model: LatentDiffusion) -> Tensor:
    task = torch.tensor([0, 1, 1])
    return model.condition(torch.zeros(3, 0), task, task)


def test_a_condition_that_is_given_says_so() -> None:
    expected = torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 1, 1]])
    assert torch.equal(task_conditions(model_of()), expected)


def test_sizes_must_hold_the_component_that_says_so() -> None:
    spec = model_of().spec
    spec.check()
    with pytest.raises(ValueError, match="condition_size"):
        replace(spec, can_hide=False).check()


class Recorded(nn.Module):
    """Predicts 2 under a condition and 1 where it is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        self.rows.append(len(latent))
        return (1.0 + condition[:, -1:]).expand_as(latent)


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (3.0, 4.0)])
def test_predictions_follow_the_condition_by_the_factor(guidance: float, expected: float) -> None:
    network = Recorded()
    model = model_of("custom", network)
    found = model.sample(task_conditions(model), seeded(3), steps=5, guidance=guidance)
    torch.testing.assert_close(found, torch.full((3, LATENT), expected), rtol=1e-4, atol=1e-4)
    assert network.rows == [3 if guidance == 1 else 6] * 5


@pytest.mark.parametrize("architecture", ["mlp", "unet", "transformer"])
def test_every_network_is_guided_as_two_calls_would(architecture: str) -> None:
    model = model_of(architecture)
    for parameter in model.denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    condition = task_conditions(model)
    noise = torch.stack([torch.randn(LATENT, generator=row) for row in seeded(3)])
    step = torch.full((3,), 49)
    with torch.no_grad():
        given = model.denoiser(noise, step, condition)
        hidden = model.denoiser(noise, step, torch.zeros_like(condition))
    assert (given - hidden).abs().max() > 1e-3
    found = model.sample(condition, seeded(3), steps=1, guidance=2.5)
    torch.testing.assert_close(found, hidden + 2.5 * (given - hidden), rtol=1e-4, atol=1e-4)


def test_as_many_conditions_are_hidden_as_was_asked_for() -> None:
    seen = []

    class Watching(Recorded):
        def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
            seen.append(condition)
            return latent

    rows = 5000
    none = torch.zeros(rows, dtype=torch.long)
    table = LatentTable(
        torch.zeros(rows, LATENT), torch.ones(rows, LATENT), torch.zeros(rows, 0), none, none
    )
    objective = DiffusionObjective(table, table, rows, 0, dropout=0.3)
    model = model_of("custom", Watching())
    objective.load(0, 1)
    objective.loss(model, torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(0))
    is_given = seen[0][:, -1]
    assert 0.27 < 1.0 - float(is_given.mean()) < 0.33
    assert torch.equal(seen[0][is_given == 0], torch.zeros(int((is_given == 0).sum()), 3))
    objective.validate(model)
    assert (seen[1][:, -1] == 1).all()  # held-out losses compare with those of other models


WALKS = np.random.default_rng(0).normal(size=(4, 20, 3)).astype(np.float32)
SMALL = {"updates": 2, "device": "cpu", "threads": 1, "snippet_length": 4}


@pytest.fixture
def data() -> lwdctl.Dataset:
    actions = [walk[:, :2] for walk in WALKS]
    return lwdctl.Dataset.from_arrays(observations=[*WALKS], actions=actions)


def trained_lwd(data: lwdctl.Dataset) -> Any:
    vae = lwdctl.train_vae(data, lwdctl.VaeConfig(policy_width=8, decoder="xs", **SMALL))
    small = {name: value for name, value in SMALL.items() if name != "snippet_length"}
    config = lwdctl.DiffusionConfig(width=16, condition_dropout=0.5, **small)
    return lwdctl.train_diffusion(lwdctl.encode(vae), config)


def trained_chunks(data: lwdctl.Dataset, method: str) -> Any:
    config = lwdctl.BaselineConfig(
        method=method, denoiser="mlp", width=16, latent_size=8, condition_dropout=0.5, **SMALL
    )
    return lwdctl.train_baseline(config.method, data, config)


@pytest.mark.parametrize("method", ["lwd", "dp", "ldp"])
def test_a_saved_model_is_guided(tmp_path: Path, data: lwdctl.Dataset, method: str) -> None:
    trained = trained_lwd(data) if method == "lwd" else trained_chunks(data, method)
    diffusion = trained.model if method == "lwd" else trained.model.diffusion
    for parameter in diffusion.denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    trained.save(tmp_path / "saved")
    actions = []
    for guidance in (0.0, 1.0):
        policy = lwdctl.load_policy(tmp_path / "saved", guidance=guidance)
        policy.reset(seed=0)
        actions.append(policy.act(WALKS[0][0]))
    assert np.isfinite(actions).all()
    assert not np.array_equal(*actions)


@pytest.mark.parametrize("method", ["dp", "ldp"])
def test_baselines_hide_conditions_in_training(
    monkeypatch: pytest.MonkeyPatch, data: lwdctl.Dataset, method: str
) -> None:
    """Hidden conditions are all zeros; the others end with a 1."""
    seen, forward = [], Denoiser.forward

    def watched(self: Denoiser, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        if self.training:
            seen.append(condition)
        return forward(self, latent, step, condition)

    monkeypatch.setattr(Denoiser, "forward", watched)
    trained_chunks(data, method)
    conditions = torch.cat(seen)
    is_given = conditions[:, -1] == 1
    assert 0.4 < is_given.float().mean() < 0.6
    assert (conditions[is_given][:, :-1].abs().sum(1) > 0).all()
    assert (conditions[~is_given] == 0).all()


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("mlp", {"guidance": 2.0}),
        ("mlp", {"warm_start": 0.5}),
        ("lwd", {"temporal_ensemble": 0.1}),
        ("lwd", {"inpainting": 0.5}),
        ("ldp", {"inpainting": 0.5}),
        ("ldp", {"replan_beyond": 1.0}),
        ("lwd", {"replan_after": 2}),
    ],
)
def test_a_setting_without_effect_is_refused(
    data: lwdctl.Dataset, method: str, setting: dict[str, float]
) -> None:
    if method == "mlp":
        small = lwdctl.BaselineConfig(method="mlp", policy_width=8, updates=2, device="cpu")
        trained: Any = lwdctl.train_baseline("mlp", data, small)
    else:
        trained = trained_lwd(data) if method == "lwd" else trained_chunks(data, method)
    (name,) = setting
    with pytest.raises(ConfigError, match=f"'{name}' has no effect"):
        lwdctl.load_policy(trained, horizon=2, **setting)
    if name == "guidance":
        config = AnalyzeConvergenceConfig(**setting)
        with pytest.raises(ConfigError, match="has no effect"):
            analyze_convergence(config, trained=(trained.policy, [1, 2, 3], lambda _: None))


def test_a_model_that_was_never_hidden_its_condition_cannot_be_guided() -> None:
    plain = DenoiserSpec("mlp", LATENT, 2, (1, LATENT), "xs", 64, 2, 0.0)
    spec = DiffusionSpec(plain, "sample", 50, ("task",), 0, 2, 0)
    check_sampling(spec, "ddim", 10)
    with pytest.raises(ConfigError, match="cannot be guided"):
        check_sampling(spec, "ddim", 10, 0.5)
