"""The policy VAE: masks, reduction, time input, relative targets, and overfitting one snippet."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lwdctl.core.moments import Moments
from lwdctl.models import generated
from lwdctl.models.normalizer import Normalizer
from lwdctl.models.vae import Focus, PolicyVae, VaeSpec

NONE = torch.zeros(0, dtype=torch.long)
SPEC = VaeSpec(
    snippet_length=8,
    observation_keys=("state",),
    observation_size=5,
    action_size=2,
    latent_size=16,
    decoder_layers=(20, 20),
    policy_hidden=(32, 32),
    time_input=False,
    reference_start=None,
)


@dataclass
class Snippets:
    observations: torch.Tensor
    actions: torch.Tensor
    mask: torch.Tensor
    start: torch.Tensor = NONE
    left: torch.Tensor = NONE


def batch_of(count: int, seed: int = 0) -> Snippets:
    """Make random snippets whose last three steps are padding in every second row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, 8)
    mask[1::2, 5:] = 0.0
    return Snippets(
        torch.randn(count, 8, 5, generator=generator),
        torch.randn(count, 8, 2, generator=generator),
        mask,
        torch.zeros(count, dtype=torch.long),
        mask.sum(1).long(),
    )


def test_padding_changes_neither_encoding_nor_loss() -> None:
    model = PolicyVae(SPEC)
    batch = batch_of(4)
    hidden = (1.0 - batch.mask).unsqueeze(-1)
    other = replace(
        batch,
        observations=batch.observations + 100.0 * hidden,
        actions=batch.actions - 50.0 * hidden,
    )
    for ours, theirs in zip(model.encode(batch), model.encode(other), strict=True):
        assert torch.equal(ours, theirs)
    one = model.terms(batch, NONE, NONE, torch.Generator().manual_seed(1))
    two = model.terms(other, NONE, NONE, torch.Generator().manual_seed(1))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_counted_padding_is_part_of_the_loss_and_not_of_the_encoding() -> None:
    model = PolicyVae(SPEC)
    batch = batch_of(4)
    padded = (1.0 - batch.mask).unsqueeze(-1)
    other = replace(batch, actions=batch.actions + padded)

    def reconstruction(snippets: Snippets, **options: str | int) -> float:
        generator = torch.Generator().manual_seed(1)
        return model.terms(snippets, NONE, NONE, generator, **options)["reconstruction"].item()

    whole = replace(batch, mask=torch.ones_like(batch.mask))
    rows = [slice(0, None, 2), slice(1, None, 2)]  # without and with padding
    for row, changes in zip(rows, (False, True), strict=True):
        part, shifted, unmasked = (
            Snippets(item.observations[row], item.actions[row], item.mask[row])
            for item in (batch, other, whole)
        )
        before = reconstruction(part, padding="counted")
        assert (reconstruction(shifted, padding="counted") != before) == changes
        assert reconstruction(shifted) == reconstruction(part)
        encoded = model.encode(part)
        assert torch.equal(model.encode(shifted)[0], encoded[0])
        if not changes:
            assert before == reconstruction(part) == reconstruction(unmasked)
    drawn = {"padding": "counted", "loss_steps": 3}  # padding is drawn, too
    assert reconstruction(other, **drawn) != reconstruction(batch, **drawn)


def test_drawn_loss_steps_avoid_padding() -> None:
    model = PolicyVae(SPEC)
    batch = batch_of(2)
    shifted = replace(batch, actions=batch.actions + 1e6 * (1.0 - batch.mask).unsqueeze(-1))
    for seed in range(20):
        losses = [
            model.terms(item, NONE, NONE, torch.Generator().manual_seed(seed), 5)["reconstruction"]
            for item in (batch, shifted)
        ]
        assert torch.equal(losses[0], losses[1])


def test_focus_is_on_the_first_and_last_steps_of_demonstrations() -> None:
    batch = replace(batch_of(4), start=torch.tensor([0, 0, 1, 5]), left=torch.tensor([9, 5, 8, 5]))
    expected = torch.ones(4, 8)
    expected[:2, :3] = 4.0
    expected[2, :2] = 4.0
    assert torch.equal(Focus("first", 3, 4.0).weights(batch), expected)
    expected = torch.ones(4, 8)
    expected[0, 7] = 4.0  # the demonstration's last step but one
    expected[1::2, 3:5] = 4.0  # what follows is padding
    expected[2, 6:] = 4.0  # ends with its demonstration
    assert torch.equal(Focus("last", 2, 4.0).weights(batch), expected)


@pytest.mark.slow
@pytest.mark.parametrize("loss_steps", [None, 4])
def test_the_error_of_a_focused_step_counts_as_often_as_its_weight_says(
    loss_steps: int | None,
) -> None:
    """Also in a snippet that lies within the focus, and where steps are drawn."""
    model = PolicyVae(SPEC)
    torch.nn.init.zeros_(model.decoder.network.layer_weight_tensors[-1])
    torch.nn.init.zeros_(model.decoder.network.layer_bias_vectors[-1])
    batch = replace(batch_of(4), actions=torch.ones(4, 8, 2), start=torch.tensor([0, 0, 3, 6]))

    def errors(focus: Focus | None) -> torch.Tensor:
        rows = []
        for row in range(4):
            part = Snippets(*(value[row : row + 1] for value in vars(batch).values()))
            found = [
                model.terms(
                    part, NONE, NONE, torch.Generator().manual_seed(seed), loss_steps, focus=focus
                )["reconstruction"].detach()
                for seed in range(200 if loss_steps else 1)
            ]
            rows.append(torch.stack(found).mean())
        return torch.stack(rows)

    focused = errors(Focus("first", 5, 3.0)) / errors(None)
    # Of 8, 5, 8 and 5 real steps, 5, 5, 2 and 0 are among the first five of the demonstration.
    expected = 1.0 + 2.0 * torch.tensor([5 / 8, 1.0, 2 / 8, 0.0])
    torch.testing.assert_close(focused, expected, atol=0.12 if loss_steps else 1e-5, rtol=0)


def test_reduction_is_what_the_docstring_says() -> None:
    model = PolicyVae(SPEC)
    torch.nn.init.zeros_(model.decoder.network.layer_weight_tensors[-1])
    torch.nn.init.zeros_(model.decoder.network.layer_bias_vectors[-1])
    torch.nn.init.zeros_(model.encoder.log_variance.weight)
    torch.nn.init.constant_(model.encoder.log_variance.bias, math.log(0.25))
    torch.nn.init.zeros_(model.encoder.mean.weight)
    torch.nn.init.constant_(model.encoder.mean.bias, 2.0)
    batch = batch_of(4)
    error, kl = model.terms(batch, NONE, NONE, torch.Generator().manual_seed(0)).values()
    squared = batch.actions.square().sum(-1)
    expected = torch.stack([squared[i][batch.mask[i] > 0].mean() for i in range(4)]).mean()
    torch.testing.assert_close(error, expected)
    each = 0.25 + 4.0 - 1.0 - math.log(0.25)
    torch.testing.assert_close(kl, torch.tensor(16 * each))


@pytest.mark.slow
@pytest.mark.parametrize("time_input", [False, True])
@pytest.mark.parametrize("start", [None, 0])
def test_one_snippet_can_be_overfitted(time_input: bool, start: int | None) -> None:
    torch.manual_seed(0)
    model = PolicyVae(replace(SPEC, time_input=time_input, reference_start=start))
    batch = batch_of(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for update in range(600):
        error = model.terms(batch, NONE, NONE, torch.Generator().manual_seed(update))[
            "reconstruction"
        ]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert float(error.detach()) < 1e-2
    # What acts in the environment is what the loss measured.
    mean, _ = model.encode(batch)
    layers = generated.unpack(model.decoder(mean), model.spec.policy_shape)
    for step in range(8):
        phase = torch.full((1,), step / 8)
        action = model.act(layers, batch.observations[:, step], phase)
        assert float((action - batch.actions[:, step]).detach().square().sum()) < 0.2


def test_noise_on_observations_keeps_the_relative_target_in_place() -> None:
    """The noisy policy must still reach the recorded target, so its offset grows by the noise."""
    spec = replace(SPEC, reference_start=0)
    model = PolicyVae(spec)
    torch.nn.init.zeros_(model.decoder.network.layer_weight_tensors[-1])
    torch.nn.init.zeros_(model.decoder.network.layer_bias_vectors[-1])
    batch = Snippets(torch.zeros(64, 8, 5), torch.zeros(64, 8, 2), torch.ones(64, 8))
    generator = torch.Generator().manual_seed(0)
    error = model.terms(batch, NONE, NONE, generator, observation_noise=0.5)["reconstruction"]
    # Outputs are zero and targets are minus the noise on two components. Its variance is
    # 0.25 * E[u^2] * (1 + 1) with u uniform in [0, 1]: 1 / 6 per component.
    assert float(error.detach()) == pytest.approx(1 / 3, rel=0.3)


def test_constant_components_do_not_blow_up() -> None:
    model = PolicyVae(SPEC)
    model.observation.fit(torch.zeros(5), torch.tensor([1.0, 0.0, 1e-9, 2.0, 1.0]))
    values = model.observation.normalize(torch.ones(1, 5))
    assert torch.isfinite(values).all()
    assert values.abs().max() <= 1.0


def test_spec_survives_json() -> None:
    import json

    assert VaeSpec.from_mapping(json.loads(json.dumps(SPEC.to_mapping()))) == SPEC


def test_components_far_from_zero_are_scaled() -> None:
    """Map coordinates: millions of meters that vary by tens."""
    rows = np.random.default_rng(0).uniform(-90, 90, (1000, 2)) + np.array([4e6, 4])
    rows[:, 1] = 4.0 + 1e-6 * rows[:, 1]
    normalizer = Normalizer(2)
    normalizer.standardize(Moments.of_rows(rows))
    shown = normalizer.normalize(torch.as_tensor(rows, dtype=torch.float32))
    np.testing.assert_allclose(shown.std(0), [1, 0], atol=0.01)
    normalizer.fit_range(Moments.of_rows(rows), 1)
    np.testing.assert_allclose(normalizer.scale, [90, 1], rtol=0.01)
