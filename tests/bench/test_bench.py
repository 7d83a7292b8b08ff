"""Both sides of a benchmark do the same work, and the command reports ratios."""

from __future__ import annotations

import json

import pytest
import torch

from lwdctl.bench.comparisons import METAWORLD, compare, hypnettorch_weights
from lwdctl.cli.main import main
from lwdctl.models import generated
from lwdctl.models.generated import PolicyDecoder


def test_the_reference_path_gives_the_same_actions() -> None:
    from hypnettorch.mnets import MLP

    weights = PolicyDecoder(METAWORLD, 8, (5,))(torch.randn(2, 8)).detach()
    observations = torch.randn(2, 1, 39)
    ours = generated.run(generated.unpack(weights, METAWORLD), observations)
    network = MLP(n_in=39, n_out=4, hidden_layers=[256, 256], no_weights=True, verbose=False)
    for env in range(2):
        theirs = network(observations[env], weights=hypnettorch_weights(weights[env]))
        torch.testing.assert_close(ours[env], theirs, rtol=1e-4, atol=1e-5)


def test_ratios_compare_medians_of_alternating_rounds() -> None:
    order: list[str] = []
    answer = compare(
        "x", ("a", lambda: order.append("a")), ("b", lambda: order.append("b")), rounds=3
    )
    assert order == ["a", "b"] * 4
    assert answer.speedup == pytest.approx(answer.reference_seconds / answer.seconds)


def test_the_command_prints_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rounds", "1", "--json", "-q", "--device", "cpu"]) == 0
    summary = json.loads(capfd.readouterr().out)["summary"]
    assert len(summary["comparisons"]) == 4
    assert all(row["speedup"] > 0 for row in summary["comparisons"])
