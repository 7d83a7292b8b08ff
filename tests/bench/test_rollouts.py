"""The row of rollouts: both sides run in processes of their own and leave none behind."""

import multiprocessing

import pytest
import torch

from lwdctl.bench.rollouts import NUM_ENVS, rollouts


@pytest.mark.slow
def test_rollouts_are_compared_with_the_bare_simulators() -> None:
    pytest.importorskip("metaworld")
    (found,) = rollouts(torch.device("cpu"), rounds=1, steps=2)
    assert found.unit == "rollouts/s"
    assert found.rounds == 1
    assert found.value.median > 0
    assert found.ratio == pytest.approx(found.value.median / found.reference_value.median)
    assert f"{NUM_ENVS} environments" in found.name
    assert multiprocessing.active_children() == []
