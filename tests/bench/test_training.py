"""Both sides of the training rows make the same training steps."""

from __future__ import annotations

import copy
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.bench import comparisons, reference, sampling
from lwdctl.bench import training as training_rows
from lwdctl.bench.reference import HypnettorchVae, ReferenceLoop
from lwdctl.bench.training import (
    Race,
    Training,
    VaeWork,
    _latents,
    diffusion_policy,
    products_of_step,
)
from lwdctl.configs import DiffusionConfig, VaeConfig
from lwdctl.core.errors import LwdctlError
from lwdctl.data.dataset import store_from_arrays
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.training.diffusion import diffusion_spec
from lwdctl.training.objectives import DiffusionObjective
from lwdctl.training.update import LoopSettings

CPU = torch.device("cpu")
STEPS = 5


@pytest.fixture(scope="module")
def store() -> SnippetStore:
    rng = np.random.default_rng(0)
    lengths = (12, 20, 9, 30)
    observations = [rng.normal(size=(length, 3)).astype(np.float32) for length in lengths]
    actions = [rng.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    return store_from_arrays(observations, actions, tasks="reach", validation_fraction=0.0)


@pytest.fixture(scope="module")
def partly_held_out() -> SnippetStore:
    rng = np.random.default_rng(0)
    observations = [rng.normal(size=(20, 3)).astype(np.float32) for _ in range(8)]
    actions = [np.tanh(rows[:, :2]) for rows in observations]
    return store_from_arrays(observations, actions, validation_fraction=0.25)


def a_vae(store: SnippetStore, **changes: object) -> VaeWork:
    config = VaeConfig(
        snippet_length=10, latent_size=8, policy_width=12, decoder="xs", batch_size=4, warmup=2,
        beta_kl=1e-3, **changes,
    )  # fmt: skip
    return VaeWork.of(store, config, CPU)


def assert_same_training(ours: Training, theirs: ReferenceLoop) -> None:
    ours.run(STEPS)
    theirs.model.train()
    for _ in range(STEPS):
        theirs.step()
    for own, other in ((ours.update.model, theirs.model), (ours.update.average, averaged(theirs))):
        for (name, a), (_, b) in zip(
            own.state_dict().items(), other.state_dict().items(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def averaged(loop: ReferenceLoop) -> nn.Module:
    return loop.average.module


@pytest.mark.parametrize("loss_steps", [4, None])
def test_the_reference_trains_the_same_vae(store: SnippetStore, loss_steps: int | None) -> None:
    work = a_vae(store, loss_steps=loss_steps)
    assert_same_training(work.ours(), work.reference())


def test_the_reference_trains_the_same_denoiser(store: SnippetStore) -> None:
    config = DiffusionConfig(width=16, blocks=1, batch_size=8, warmup=2)
    model = LatentDiffusion(diffusion_spec(config, ("state",), 8, 3, 2, store.spec))
    table, settings = _latents(30, 8, 6, CPU), LoopSettings.of(config)
    ours = DiffusionObjective(table, None, config.batch_size, config.seed)
    theirs = reference.latent_loss(table, config.batch_size, config.seed)
    assert_same_training(
        Training(copy.deepcopy(model), ours, settings), ReferenceLoop(model, theirs, settings)
    )


def test_the_reference_trains_the_same_diffusion_policy(store: SnippetStore) -> None:
    sizes = {"chunk": 8, "batch_size": 4, "unet_size": "xs"}
    assert_same_training(*diffusion_policy(store, CPU, **sizes))


def test_hypnettorchs_path_has_the_same_loss_and_gradients(store: SnippetStore) -> None:
    work = a_vae(store, loss_steps=None)
    ours, theirs = work.model, HypnettorchVae(work.model)
    batch = work.batches.batch(0, 4)
    for model in (ours, theirs):
        draw = torch.Generator().manual_seed(0)
        terms = model.terms(batch, batch.task, batch.label, draw)
        (terms["reconstruction"] + terms["kl"]).backward()
    pairs = [
        *zip(ours.encoder.parameters(), theirs.vae.encoder.parameters(), strict=True),
        *zip(ours.decoder.parameters(), theirs.hypernetwork.parameters(), strict=True),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_recorded_products_hold_all_flops_of_a_training_step(store: SnippetStore) -> None:
    products, flops = products_of_step(a_vae(store).ours())
    assert sum(2 * prod(a) * b[-1] for a, b in products.shapes) == flops > 0


def test_a_race_ends_at_the_held_out_losses(
    partly_held_out: SnippetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_rows, "LEVELS", (0.9, 0.5))
    work = a_vae(partly_held_out, learning_rate=1e-2, loss_steps=None)
    race = Race(work, work.ours(), 10)
    while not race.finished:
        race.advance()
    (first, early), (second, late) = race.reached
    assert 0 < first <= second
    assert 10 <= early <= late
    assert late > 10
    race.advance()
    assert len(race.reached) == 2


def test_a_race_that_nobody_finishes_ends_too(
    partly_held_out: SnippetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_rows, "LEVELS", (0.0,))
    monkeypatch.setattr(training_rows, "MOST_STEPS", 15)
    work = a_vae(partly_held_out)
    race = Race(work, work.ours(), 10)
    race.advance()
    with pytest.raises(LwdctlError, match="are left after 15 steps"):
        race.advance()


def test_the_random_episodes_of_the_rows_can_be_stored() -> None:
    assert len(training_rows.pusht_store(episodes=3).episodes) == 3
    assert training_rows.metaworld_store().steps == 100 * 500


@pytest.mark.parametrize(
    ("row", "goal", "count"),
    [
        ("vae-update", 8.0, 1),
        ("denoiser-update", 8.0, 1),
        ("dp-update", 4.0, 1),
        ("vae-hypnettorch", 40.0, 1),
        ("sampling", 4.0, 4),
    ],
)
def test_goals_on_a_gpu_have_rows_that_say_what_they_lack(
    row: str, goal: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a CUDA device every row with a goal there stands in the table, empty."""
    for module in (training_rows, sampling):
        monkeypatch.setattr(module, "compare", lambda comparison, *_, **__: comparison)
    found = list(comparisons.measure(row, CPU, 1, reraise=True))
    empty = [item for item in found if item.missing]
    assert {item.missing for item in empty} == {"needs a CUDA device"}
    assert [item.at_least for item in empty] == [goal] * count
    assert all(item.name.endswith(("GPU", "cuda")) for item in empty)
    assert len(found) == 2 * count
    assert len({item.name for item in found}) == len(found)
