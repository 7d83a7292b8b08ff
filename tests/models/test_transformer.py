"""The transformer denoiser: its sizes, its forward pass, its masks, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.flops import denoiser_flops
from lwdctl.models.transformer import TRANSFORMER_SIZES, ConditionalTransformer

LENGTH, CHANNELS, TOKENS, OBS, TASKS = 20, 2, 2, 5, 3


def spec_of(size: str, *, causal: bool = True) -> DenoiserSpec:
    return DenoiserSpec(
        "transformer", LENGTH * CHANNELS, TOKENS * OBS + TASKS, (LENGTH, CHANNELS), "s", 8, 1, 0.0,
        transformer_size=size, observation_tokens=TOKENS, shared_condition=TASKS, causal=causal,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "step", "width", "layers"),
    [("xs", 64, 64, 3), ("s", 128, 128, 4), ("m", 256, 256, 6), ("l", 256, 512, 8),
     ("xl", 512, 768, 12)],
)  # fmt: skip
def test_parameters_are_those_of_the_published_definition(
    size: str, step: int, width: int, layers: int
) -> None:
    with torch.device("meta"):
        network = spec_of(size).build()
    w = width
    attention = 4 * w * w + 4 * w  # query, key, value and output, with biases
    layer = 2 * attention + (8 * w * w + 5 * w) + 3 * 2 * w
    memory = 8 * w * w + 5 * w
    enter = (CHANNELS * w + w) + (OBS + TASKS) * w + w
    positions = LENGTH * w + (1 + TOKENS) * w
    leave = 2 * w + (w * CHANNELS + CHANNELS)
    expected = layers * layer + memory + enter + positions + leave
    expected += 0 if step == width else step * width + width
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", ["xs", "s", "m"])
def test_counted_flops_are_the_analytic_ones(size: str, training: bool) -> None:
    denoiser = spec_of(size)
    state = TOKENS * OBS
    model = LatentDiffusion(DiffusionSpec(denoiser, "epsilon", 10, ("state",), state, TASKS, 0))
    model.train(training)
    row = TRANSFORMER_SIZES[size]
    w, memory = row.width, 1 + TOKENS
    per_layer = LENGTH * 4 * w * w + 2 * LENGTH * LENGTH * w  # over itself
    per_layer += LENGTH * 2 * w * w + memory * 2 * w * w + 2 * LENGTH * memory * w  # over memory
    per_layer += LENGTH * 8 * w * w
    products = row.layers * per_layer + memory * 8 * w * w
    products += 2 * LENGTH * CHANNELS * w + TOKENS * (OBS + TASKS) * w
    assert denoiser_flops(model) == pytest.approx(2 * products, rel=0.01)
    assert torch.backends.mha.get_fastpath_enabled()


def attend(
    w: dict[str, Tensor], name: str, query: Tensor, memory: Tensor, hidden: Tensor, heads: int
) -> Tensor:
    """Multi-head attention, written out; `hidden` is true where a query may not look."""
    width = query.shape[-1]
    kinds = w[f"{name}.in_proj_weight"].split(width), w[f"{name}.in_proj_bias"].split(width)
    q, k, v = (
        functional.linear(source, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for source, weight, bias in zip((query, memory, memory), *kinds, strict=True)
    )
    scores = q @ k.transpose(2, 3) / (width // heads) ** 0.5
    mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    mixed = mixed.transpose(1, 2).flatten(2)
    return functional.linear(mixed, w[f"{name}.out_proj.weight"], w[f"{name}.out_proj.bias"])


def test_the_forward_pass_agrees_with_an_independent_computation() -> None:
    torch.manual_seed(0)
    size = TRANSFORMER_SIZES["xs"]
    network = ConditionalTransformer(6, 2, 2, 5, size, 0.0, causal=True).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    w = dict(network.state_dict())

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    sequence, step, seen = torch.randn(3, 6, 2), torch.randn(3, 64), torch.randn(3, 2, 5)
    memory = torch.cat([step[:, None], linear("observe", seen)], 1) + w["memory_position"]
    memory = linear("remember.2", functional.mish(linear("remember.0", memory)))
    later = torch.ones(6, 6).triu(1).bool()
    unseen = torch.tensor([[s > t + 1 for s in range(3)] for t in range(6)])
    x = linear("enter", sequence) + w["position"]
    for number in range(size.layers):
        name = f"decoder.layers.{number}"
        y = norm(f"{name}.norm1", x)
        x = x + attend(w, f"{name}.self_attn", y, y, later, size.heads)
        y = norm(f"{name}.norm2", x)
        x = x + attend(w, f"{name}.multihead_attn", y, memory, unseen, size.heads)
        y = functional.gelu(linear(f"{name}.linear1", norm(f"{name}.norm3", x)))
        x = x + linear(f"{name}.linear2", y)
    expected = linear("leave", norm("decoder.norm", x))
    torch.testing.assert_close(network(sequence, step, seen), expected, rtol=1e-4, atol=1e-4)


def test_causal_steps_do_not_see_later_steps_or_observations() -> None:
    torch.manual_seed(0)
    network = spec_of("xs").build().eval()
    latent, condition = torch.randn(1, LENGTH * CHANNELS), torch.randn(1, TOKENS * OBS + TASKS)
    step = torch.tensor([3])
    before = network(latent, step, condition).view(LENGTH, CHANNELS)
    changed = latent.clone()
    changed[0, 10 * CHANNELS :] += 1.0
    after = network(changed, step, condition).view(LENGTH, CHANNELS)
    torch.testing.assert_close(after[:10], before[:10])
    assert not torch.allclose(after[10:], before[10:])
    newer = condition.clone()
    newer[0, OBS : 2 * OBS] += 1.0  # the second observation: seen from step 1 on
    after = network(latent, step, newer).view(LENGTH, CHANNELS)
    torch.testing.assert_close(after[:1], before[:1])
    assert not torch.allclose(after[1:], before[1:])


def test_without_causality_every_step_sees_everything() -> None:
    torch.manual_seed(0)
    network = spec_of("xs", causal=False).build().eval()
    latent, condition = torch.randn(1, LENGTH * CHANNELS), torch.randn(1, TOKENS * OBS + TASKS)
    before = network(latent, torch.tensor([3]), condition)
    changed = latent.clone()
    changed[0, -1] += 1.0
    after = network(changed, torch.tensor([3]), condition)
    assert not torch.isclose(after, before)[0, :CHANNELS].any()


def test_a_condition_without_state_or_none_at_all() -> None:
    for size, shared in ((TASKS, TASKS), (0, 0)):
        spec = DenoiserSpec(
            "transformer", 16, size, (4, 4), "s", 8, 1, 0.0, "xs", shared_condition=shared
        )
        out = spec.build()(torch.randn(2, 16), torch.tensor([0, 1]), torch.randn(2, size))
        assert out.shape == (2, 16)


def test_specifications_from_before_the_transformer_still_load() -> None:
    old = {
        "architecture": "mlp", "latent_size": 8, "condition_size": 2, "layout": [1, 8],
        "unet_size": "m", "width": 16, "blocks": 1, "dropout": 0.0,
    }  # fmt: skip
    values = {
        "denoiser": old, "prediction": "sample", "num_train_timesteps": 10, "condition": ["state"],
        "state_size": 2, "tasks": 0, "labels": 0,
    }  # fmt: skip
    spec = DiffusionSpec.from_mapping(values)
    assert spec.clip == 0.0
    assert DiffusionSpec.from_mapping(spec.to_mapping()) == spec
    LatentDiffusion(spec)
