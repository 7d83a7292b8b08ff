"""The U-Net is Diffusion Policy's: its parameter count and its forward pass."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lwdctl.models.flops import count_flops
from lwdctl.models.unet import UNET_SIZES, ConditionalUnet1d, Convolution, UnetSize

KERNEL, GROUPS = 5, 8


def published_count(channels: int, condition: int, step: int, dims: tuple[int, ...]) -> int:
    """Parameters after the published definition (conditional_unet1d.py, cond_predict_scale)."""

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel + outputs

    def block(inputs: int, outputs: int) -> int:
        return conv(inputs, outputs, KERNEL) + 2 * outputs  # the norm's scale and shift

    def residual(inputs: int, outputs: int) -> int:
        film = (step + condition) * 2 * outputs + 2 * outputs
        skip = conv(inputs, outputs, 1) if inputs != outputs else 0
        return block(inputs, outputs) + block(outputs, outputs) + film + skip

    total = (step * 4 * step + 4 * step) + (4 * step * step + step)
    pairs = list(itertools.pairwise((channels, *dims)))
    for number, (inputs, outputs) in enumerate(pairs):
        total += residual(inputs, outputs) + residual(outputs, outputs)
        total += conv(outputs, outputs, 3) if number + 1 < len(pairs) else 0
    total += 2 * residual(dims[-1], dims[-1])
    for inputs, outputs in reversed(pairs[1:]):
        total += residual(2 * outputs, inputs) + residual(inputs, inputs)
        total += conv(inputs, inputs, 4)
    return total + block(dims[0], dims[0]) + conv(dims[0], channels, 1)


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_network_for_pushts_keypoints_has_the_published_count() -> None:
    """Two observations of 20 numbers, actions of 2, down_dims 256, 512, 1024."""
    with torch.device("meta"):
        network = ConditionalUnet1d(2, 2 * 20, UnetSize(256, (256, 512, 1024)))
    assert count(network) == published_count(2, 2 * 20, 256, (256, 512, 1024)) == 65_783_298


@pytest.mark.parametrize("size", ["xs", "s", "m", "l", "xl"])
@pytest.mark.parametrize("condition", [2 * 20, 2 * 5, 0])
def test_every_size_has_the_published_count(size: str, condition: int) -> None:
    row = UNET_SIZES[size]
    with torch.device("meta"):
        network = ConditionalUnet1d(2, condition, row)
    assert count(network) == published_count(2, condition, row.step_embedding, row.channels)


def recomputed(w: dict[str, Tensor], x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
    """The published forward pass, written out with plain functions."""

    def block(name: str, x: Tensor) -> Tensor:
        x = functional.conv1d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], padding=KERNEL // 2)
        x = functional.group_norm(x, GROUPS, w[f"{name}.1.weight"], w[f"{name}.1.bias"])
        return functional.mish(x)

    def residual(name: str, x: Tensor) -> Tensor:
        out = block(f"{name}.first", x)
        film = functional.linear(
            functional.mish(context), w[f"{name}.film.1.weight"], w[f"{name}.film.1.bias"]
        )
        film = film.reshape(len(film), 2, out.shape[1], 1)
        out = block(f"{name}.second", film[:, 0] * out + film[:, 1])
        if f"{name}.skip.weight" in w:
            x = functional.conv1d(x, w[f"{name}.skip.weight"], w[f"{name}.skip.bias"])
        return out + x

    hidden = functional.mish(functional.linear(step, w["step.0.weight"], w["step.0.bias"]))
    hidden = functional.linear(hidden, w["step.2.weight"], w["step.2.bias"])
    context = torch.cat([hidden, condition], dim=-1)
    kept = []
    for level in range(3):
        x = residual(f"down.{level}.1", residual(f"down.{level}.0", x))
        kept.append(x)
        if level < 2:
            name = f"shrink.{level}"
            x = functional.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)
    x = residual("middle.1", residual("middle.0", x))
    for level in range(2):
        x = torch.cat([x, kept[2 - level]], dim=1)
        x = residual(f"up.{level}.1", residual(f"up.{level}.0", x))
        name = f"grow.{level}"
        x = functional.conv_transpose1d(x, w[f"{name}.weight"], w[f"{name}.bias"], 2, 1)
    return functional.conv1d(block("leave.0", x), w["leave.1.weight"], w["leave.1.bias"])


def test_the_forward_pass_agrees_with_an_independent_computation() -> None:
    torch.manual_seed(0)
    network = ConditionalUnet1d(2, 40, UNET_SIZES["xs"])
    x, step, condition = torch.randn(3, 2, 16), torch.randn(3, 64), torch.randn(3, 40)
    expected = recomputed(dict(network.state_dict()), x, step, condition)
    torch.testing.assert_close(network(x, step, condition), expected)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(("length", "kernel", "stride"), [(8, 5, 1), (16, 3, 2), (4, 1, 1)])
def test_a_convolution_of_few_rows_is_torchs(
    batch: int, length: int, kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling for few robots computes a matrix product; training keeps torch's convolution."""
    torch.manual_seed(0)
    layer = Convolution(6, 10, kernel, stride)
    plain = torch.nn.Conv1d(6, 10, kernel, stride, padding=kernel // 2)
    plain.load_state_dict(layer.state_dict())
    sequence = torch.randn(batch, length, 6).transpose(1, 2)  # as the U-Net is given it
    expected = plain(sequence)
    assert torch.equal(layer(sequence), expected)
    products = []
    linear = functional.linear
    monkeypatch.setattr(functional, "linear", lambda *a: products.append(1) or linear(*a))
    with torch.no_grad():
        torch.testing.assert_close(layer(sequence), expected)
        assert len(products) == (batch * length // stride <= Convolution.most_rows)
        assert count_flops(lambda: layer(sequence)) == count_flops(lambda: plain(sequence))
