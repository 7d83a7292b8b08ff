"""AdamW without torch's compiler: the same numbers as torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwdctl.training.update import AdamW


def train(optimizer: type[torch.optim.AdamW]) -> tuple[list[Tensor], torch.optim.AdamW]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    rate = torch.tensor(1e-2, dtype=torch.float64)
    groups = [{"params": list(network[0].parameters()), "weight_decay": 0.1}]
    groups.append({"params": list(network[2].parameters()), "weight_decay": 0.0})
    used = optimizer(groups, lr=rate, fused=True)
    for number in range(5):
        rate.fill_(1e-2 / (1 + number))
        used.zero_grad(set_to_none=True)
        network(torch.randn(16, 5)).square().mean().backward()
        used.step()
    assert torch.is_grad_enabled()
    return list(network.parameters()), used


def test_weights_and_state_equal_those_of_torch() -> None:
    weights, used = train(AdamW)
    expected, reference = train(torch.optim.AdamW)
    assert all(map(torch.equal, weights, expected))
    moments = [row["exp_avg_sq"] for row in used.state_dict()["state"].values()]
    theirs = [row["exp_avg_sq"] for row in reference.state_dict()["state"].values()]
    assert len(moments) == 4
    assert all(map(torch.equal, moments, theirs))
