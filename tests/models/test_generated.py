"""Generated weights act exactly like a torch.nn MLP that holds them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lwdctl.models import generated
from lwdctl.models.generated import PolicyShape


def mlp_holding(weights: torch.Tensor, shape: PolicyShape) -> nn.Sequential:
    """Load one weight vector into a stock torch.nn network."""
    modules: list[nn.Module] = []
    for width, out in shape.layers:
        modules += [nn.Linear(width, out), nn.ReLU()]
    network = nn.Sequential(*modules[:-1])
    nn.utils.vector_to_parameters(weights, network.parameters())
    return network


@pytest.mark.parametrize("hidden", [(8,), (16, 16), (5, 7, 3)])
def test_acts_like_torch_mlp(hidden: tuple[int, ...]) -> None:
    shape = PolicyShape(6, hidden, 4)
    weights = torch.randn(3, shape.weight_count)
    inputs = torch.randn(3, 11, 6)
    ours = generated.run(generated.unpack(weights, shape), inputs)
    for row in range(3):
        theirs = mlp_holding(weights[row], shape)(inputs[row])
        torch.testing.assert_close(ours[row], theirs, rtol=1e-5, atol=1e-5)


def test_unpacked_layers_follow_their_weights() -> None:
    shape = PolicyShape(2, (3,), 1)
    weights = torch.zeros(2, shape.weight_count)
    layers = generated.unpack(weights, shape)
    assert torch.equal(generated.run(layers, torch.ones(2, 1, 2)), torch.zeros(2, 1, 1))
    weights[1, -1] = 5.0
    assert generated.run(layers, torch.ones(2, 1, 2)).flatten().tolist() == [0.0, 5.0]


def test_flops_count_multiply_adds_twice() -> None:
    shape = PolicyShape(39, (256, 256), 4)
    assert shape.flops == 2 * (39 * 256 + 256 * 256 + 256 * 4)
    assert shape.weight_count == 39 * 256 + 256 + 256 * 256 + 256 + 256 * 4 + 4
