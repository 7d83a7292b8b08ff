"""The cloned policy: task and label inputs, relative actions, history, time input, noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lwdctl.core.errors import ConfigError
from lwdctl.data.batches import SnippetBatch
from lwdctl.methods.mlp import MlpPolicy
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.flops import matmul_flops
from lwdctl.policies.policy import EpisodePlan

SPEC = ClonedSpec(("a", "b"), 3, 2, None, (16, 16), 2, 2)
SEEN = {
    "b": np.array([[3.0], [3.0]], dtype=np.float32),
    "a": np.array([[1.0, 2.0], [1.0, 2.0]], dtype=np.float32),
}
BOTH = np.ones(2, dtype=bool)


def policy_of(spec: ClonedSpec) -> tuple[ClonedPolicy, MlpPolicy]:
    torch.manual_seed(0)
    model = ClonedPolicy(spec)
    model.observation.fit(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 1.0]))
    model.action.fit(torch.tensor([5.0, -5.0]), torch.tensor([3.0, 3.0]))
    return model, MlpPolicy(model, ("x", "y"), ("slow", "fast"))


def plan(index: int, task: str, label: str) -> EpisodePlan:
    return EpisodePlan(index, 100_000 + index, task, label)


def test_the_network_sees_normalized_observations_task_and_label() -> None:
    model, policy = policy_of(SPEC)
    policy.reset([plan(0, "y", "slow"), plan(1, "x", "fast")])
    actions = policy.act(SEEN, BOTH)
    inputs = torch.tensor([[0.0, 2.0, 1.0, 0, 1, 1, 0], [0.0, 2.0, 1.0, 1, 0, 0, 1]])
    expected = model.network(inputs).detach() * 3.0 + torch.tensor([5.0, -5.0])
    np.testing.assert_allclose(actions, expected.numpy(), rtol=1e-5)
    assert not np.allclose(actions[0], actions[1])
    assert policy.cost().num_replans.tolist() == [0, 0]
    assert policy.cost().seconds["policy"] > 0


def test_relative_actions_add_the_reference() -> None:
    _, absolute = policy_of(SPEC)
    _, relative = policy_of(replace(SPEC, reference_start=1))
    for policy in (absolute, relative):
        policy.reset([plan(0, "x", "slow"), None])
    active = np.array([True, False])
    difference = relative.act(SEEN, active) - absolute.act(SEEN, active)
    np.testing.assert_allclose(difference[0], [2.0, 3.0], rtol=1e-5)


def test_the_actions_of_an_environment_do_not_depend_on_its_neighbors() -> None:
    _, policy = policy_of(SPEC)
    policy.reset([plan(0, "x", "slow"), None])
    alone = policy.act(SEEN, np.array([True, False]))[0]
    policy.reset([plan(0, "x", "slow"), plan(1, "y", "fast")])
    other = {key: np.stack([rows[0], rows[1] + 9.0]) for key, rows in SEEN.items()}
    assert np.array_equal(policy.act(other, BOTH)[0], alone)


@pytest.mark.parametrize(("task", "label"), [("x", ""), ("x", "unheard"), ("", "slow")])
def test_what_the_model_is_conditioned_on_must_be_known(task: str, label: str) -> None:
    _, policy = policy_of(SPEC)
    with pytest.raises(ConfigError, match="conditioned on the"):
        policy.reset([plan(0, task, label), None])


def test_an_unused_label_may_be_anything() -> None:
    _, policy = policy_of(replace(SPEC, labels=0))
    policy.reset([plan(0, "x", "never heard of"), None])
    assert np.isfinite(policy.act(SEEN, BOTH)).all()


@pytest.mark.parametrize(("width", "layers"), [(128, 2), (256, 2), (512, 5)])
def test_flops_are_two_per_weight(width: int, layers: int) -> None:
    spec = replace(SPEC, hidden=(width,) * layers)
    model, _ = policy_of(spec)
    assert matmul_flops(model.network) == spec.shape.flops
    by_hand = 2 * (7 * width + (layers - 1) * width * width + width * 2)
    assert spec.shape.flops == by_hand


def test_history_and_time_are_inputs_when_they_are_trained_on() -> None:
    spec = replace(SPEC, tasks=0, labels=0, history=2, episode_steps=4)
    model, policy = policy_of(spec)
    policy.reset([plan(0, "x", "slow"), plan(1, "x", "slow")])
    later = {key: rows + 2.0 for key, rows in SEEN.items()}
    for number, (before, current) in enumerate([(SEEN, SEEN), (SEEN, later), (later, later)]):
        inputs = np.concatenate(
            [
                *(
                    (np.concatenate([rows["a"], rows["b"]], 1) - [1.0, 0.0, 2.0]) / [2.0, 1.0, 1.0]
                    for rows in (before, current)
                ),
                np.full((2, 1), 2.0 * number / 4 - 1.0),
            ],
            axis=1,
        ).astype(np.float32)
        expected = model.network(torch.from_numpy(inputs)).detach() * 3.0
        expected += torch.tensor([5.0, -5.0])
        np.testing.assert_allclose(policy.act(current, BOTH), expected.numpy(), rtol=1e-5)
    policy.reset([plan(0, "x", "slow"), plan(1, "x", "slow")])
    fresh, other = policy.act(later, BOTH), policy_of(spec)[1]
    other.reset([plan(0, "x", "slow"), plan(1, "x", "slow")])
    assert np.array_equal(fresh, other.act(later, BOTH))


def test_training_sees_the_history_and_the_time_of_acting() -> None:
    """The loss on a snippet of an episode's steps is the error of `act` in that state."""
    spec = replace(SPEC, history=3, episode_steps=10, reference_start=1)
    model, _ = policy_of(spec)
    batch = SnippetBatch(
        torch.randn(4, 3, 3), torch.randn(4, 3, 2), torch.ones(4, 3),
        torch.tensor([-2, 0, 5, 8]), *torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [12, 10, 5, 2]]),
    )  # fmt: skip
    loss = model.terms(batch, batch.task, batch.label, torch.Generator())["squared_error"]
    acted = model.act(batch.observations.flatten(1), batch.start + 2, batch.task, batch.label)
    error = (acted - batch.actions[:, -1]) / model.action.scale
    assert float(loss.detach()) == pytest.approx(float(error.square().sum(1).mean().detach()))
    noisy = model.terms(
        batch, batch.task, batch.label, torch.Generator().manual_seed(0), observation_noise=0.5
    )["squared_error"]
    assert float(noisy.detach()) != pytest.approx(float(loss.detach()))
