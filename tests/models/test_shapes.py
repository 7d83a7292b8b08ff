"""Shapes that the docstrings of the models state, checked by axis name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from lwdctl.models import DENOISERS, generated
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.samplers import SAMPLERS
from lwdctl.models.vae import PolicyVae, VaeSpec

# Annotations below use these sizes as numbers.
BATCH, TIME, OBS, ACTION, LATENT, HISTORY, TASKS = 3, 8, 5, 2, 16, 2, 4
KEYS = ("state",)
checked = jaxtyped(typechecker=beartype)


@dataclass(frozen=True)
class Snippets:
    observations: Tensor
    actions: Tensor
    mask: Tensor
    start: Tensor


BATCH_OF_SNIPPETS = Snippets(
    torch.randn(BATCH, TIME, OBS),
    torch.randn(BATCH, TIME, ACTION),
    torch.ones(BATCH, TIME),
    torch.zeros(BATCH, dtype=torch.long),
)


def diffusion_spec(architecture: str, latent: int = LATENT) -> DiffusionSpec:
    condition = HISTORY * OBS + TASKS
    denoiser = DenoiserSpec(
        architecture, latent, condition, (8, latent // 8), "xs", 32, 1, 0.0, "xs", HISTORY, TASKS
    )
    return DiffusionSpec(
        denoiser, "sample", 10, ("state", "task"), HISTORY * OBS, TASKS, 0, history=HISTORY
    )


@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("time_input", [False, True])
def test_the_policy_vae(start: int | None, time_input: bool) -> None:
    vae = PolicyVae(VaeSpec(KEYS, OBS, ACTION, start, TIME, LATENT, (8,), (16,), time_input))

    @checked
    def encode(
        observations: Float[Tensor, "batch time obs"],
        actions: Float[Tensor, "batch time action"],
    ) -> tuple[Float[Tensor, "batch 16"], Float[Tensor, "batch 16"]]:
        return vae.encode(replace(BATCH_OF_SNIPPETS, observations=observations, actions=actions))

    @checked
    def decode(latent: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch weight"]:
        weights: Tensor = vae.decoder(latent)
        return weights

    @checked
    def act(
        weights: Float[Tensor, "env weight"],
        observations: Float[Tensor, "env obs"],
        phase: Float[Tensor, env],
    ) -> Float[Tensor, "env 2"]:
        layers = generated.unpack(weights, vae.spec.policy_shape)
        return vae.act(layers, observations, phase)

    mean, _ = encode(BATCH_OF_SNIPPETS.observations, BATCH_OF_SNIPPETS.actions)
    act(decode(mean), torch.randn(BATCH, OBS), torch.rand(BATCH))
    index = torch.zeros(BATCH, dtype=torch.long)
    terms = vae.terms(BATCH_OF_SNIPPETS, index, index, torch.Generator(), 3, 0.1)
    assert all(term.shape == () for term in terms.values())


@pytest.mark.parametrize("architecture", list(DENOISERS))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latent_diffusion(architecture: str, sampler: str) -> None:
    model = LatentDiffusion(diffusion_spec(architecture)).eval()

    @checked
    def condition(
        state: Float[Tensor, "batch state"], task: Int[Tensor, batch], label: Int[Tensor, batch]
    ) -> Float[Tensor, "batch state+4"]:
        return model.condition(state, task, label)

    @checked
    def predict(
        latent: Float[Tensor, "batch latent"],
        timestep: Int[Tensor, batch],
        condition: Float[Tensor, "batch condition"],
    ) -> Float[Tensor, "batch latent"]:
        predicted: Tensor = model.denoiser(latent, timestep, condition)
        return predicted

    @checked
    def sample(
        condition: Float[Tensor, "batch condition"], start: Float[Tensor, "batch latent"] | None
    ) -> Float[Tensor, "batch 16"]:
        generators = [torch.Generator().manual_seed(row) for row in range(BATCH)]
        return model.sample(condition, generators, sampler, 3, start, 0.5)

    index = torch.zeros(BATCH, dtype=torch.long)
    given = condition(torch.randn(BATCH, HISTORY * OBS), index, index)
    latent = sample(given, None)
    predict(sample(given, latent), index, given)
    assert model.loss(latent, given, torch.Generator()).shape == ()


@pytest.mark.parametrize("kind", [ActionDiffusion, LatentChunks])
def test_chunks(kind: type) -> None:
    latent = TIME * ACTION if kind is ActionDiffusion else LATENT
    horizon = TIME - HISTORY + 1 if kind is ActionDiffusion else TIME
    spec = ChunkSpec(KEYS, OBS, ACTION, 0, HISTORY, horizon, diffusion_spec("mlp", latent))
    model = kind(spec)

    @checked
    def actions(
        latent: Float[Tensor, "batch latent"], state: Float[Tensor, "batch state"]
    ) -> Float[Tensor, "batch horizon 2"]:
        chunk: Tensor = model.actions(latent, state)
        return chunk

    actions(torch.randn(BATCH, latent), torch.randn(BATCH, HISTORY * OBS))
    index = torch.zeros(BATCH, dtype=torch.long)
    learner = model if kind is ActionDiffusion else model.vae
    terms = learner.terms(BATCH_OF_SNIPPETS, index, index, torch.Generator())
    assert all(term.shape == () for term in terms.values())


def test_behavior_cloning() -> None:
    spec = ClonedSpec(KEYS, OBS, ACTION, None, (16,), TASKS, 0, history=HISTORY, episode_steps=9)
    model = ClonedPolicy(spec)

    @checked
    def act(
        state: Float[Tensor, "batch state"],
        step: Int[Tensor, batch],
        task: Int[Tensor, batch],
        label: Int[Tensor, batch],
    ) -> Float[Tensor, "batch 2"]:
        return model.act(state, step, task, label)

    index = torch.zeros(BATCH, dtype=torch.long)
    act(torch.randn(BATCH, HISTORY * OBS), index, index, index)
