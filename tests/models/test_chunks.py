"""The losses of Diffusion Policy and LDP: padding, and noise on the observations."""

from __future__ import annotations

import pytest
import torch

from lwdctl.data.batches import SnippetBatch
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, ChunkVae
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec

HISTORY, LENGTH, OBS, ACTION = 2, 8, 3, 2


def model_of(reference_start: int | None = None) -> ActionDiffusion:
    torch.manual_seed(0)
    denoiser = DenoiserSpec("mlp", LENGTH * ACTION, HISTORY * OBS, (1, 1), "xs", 32, 1, 0.0)
    diffusion = DiffusionSpec(
        denoiser, "sample", 10, ("state",), HISTORY * OBS, 0, 0, clip=1.0, history=HISTORY
    )
    spec = ChunkSpec(("state",), OBS, ACTION, reference_start, HISTORY, LENGTH - 1, diffusion)
    return ActionDiffusion(spec)


def batch_of(real: int) -> SnippetBatch:
    torch.manual_seed(1)
    mask = (torch.arange(LENGTH) < real).float().expand(4, -1)
    rows = torch.randn(4, LENGTH, OBS), torch.randn(4, LENGTH, ACTION)
    return SnippetBatch(*rows, mask, *torch.zeros(4, 4, dtype=torch.long))


def denoising(model: ActionDiffusion, batch: SnippetBatch, **options: object) -> float:
    generator = torch.Generator().manual_seed(2)
    terms = model.terms(batch, batch.task, batch.label, generator, **options)
    return float(terms["denoising"].detach())


def test_masked_padding_does_not_count() -> None:
    model, batch = model_of(), batch_of(5)
    other = batch_of(5)
    other.actions[:, 5:] += 9.0
    # The network sees the padded steps of its noisy input, so only the error there is left out.
    model.diffusion.denoiser = Blind()
    assert denoising(model, batch) == pytest.approx(denoising(model, other))
    counted = [denoising(model, item, padding="counted") for item in (batch, other)]
    assert counted[0] < counted[1]
    expected = batch.actions[:, :5].square().mean()
    assert denoising(model, batch) == pytest.approx(float(expected))


def test_padding_counts_for_ldp_if_it_is_to() -> None:
    chunks = ChunkVae(model_of().spec)
    length = chunks.spec.horizon

    def reconstruction(shift: float, padding: str) -> float:
        batch = batch_of(5)
        batch.actions[:, 5:] += shift
        part = [item[:, :length] for item in (batch.observations, batch.actions, batch.mask)]
        snippets = SnippetBatch(*part, batch.start, batch.task, batch.label, batch.left)
        generator = torch.Generator().manual_seed(2)
        terms = chunks.terms(snippets, batch.task, batch.label, generator, padding=padding)
        return float(terms["reconstruction"].detach())

    assert reconstruction(9.0, "masked") == reconstruction(0.0, "masked")
    assert reconstruction(9.0, "counted") > reconstruction(0.0, "counted")


def test_without_padding_both_ways_are_the_same() -> None:
    model, batch = model_of(), batch_of(LENGTH)
    assert denoising(model, batch) == pytest.approx(denoising(model, batch, padding="counted"))


def test_noise_moves_the_observation_and_not_the_action() -> None:
    """A relative target is what leads from the noisy position to the recorded action."""
    absolute, relative = model_of(), model_of(reference_start=1)
    absolute.diffusion.denoiser = relative.diffusion.denoiser = Blind()
    batch = batch_of(LENGTH)
    plain = denoising(absolute, batch)
    assert denoising(absolute, batch, observation_noise=0.5) == pytest.approx(plain)
    still = denoising(relative, batch)
    assert denoising(relative, batch, observation_noise=0.5) != pytest.approx(still)


class Blind(torch.nn.Module):
    """Predicts zeros, so that the loss is the target's mean square."""

    def forward(self, latent: torch.Tensor, step: torch.Tensor, condition: torch.Tensor):
        del step, condition
        return torch.zeros_like(latent)
