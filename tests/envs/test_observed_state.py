"""Adapters that read a state from an observation: restoring it shows the same again."""

import numpy as np
import pytest

from lwdctl.core.records import EnvSpec
from lwdctl.envs.gym_mujoco import BODIES
from lwdctl.envs.table import make_simulator

pytestmark = pytest.mark.sim

CASES = [("pusht", "push_t"), *[("mujoco", f"{body}-v4") for body in BODIES]]


@pytest.mark.parametrize(("adapter", "task"), CASES, ids=lambda item: item)
def test_the_state_read_shows_the_observation_it_was_read_from(adapter, task):
    simulator = make_simulator(EnvSpec(adapter, (task,)), task)
    rng = np.random.default_rng(0)
    low, high = np.array(simulator.action.low), np.array(simulator.action.high)
    simulator.reset(3)
    for _ in range(4):
        seen = simulator.step(rng.uniform(low, high).astype(np.float32)).observation
    again = simulator.restore(simulator.state_at(seen))
    for name, values in seen.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-4, atol=1e-3)
    simulator.close()


def test_a_mujoco_body_goes_on_as_it_would_have():
    task = "HalfCheetah-v4"
    simulator = make_simulator(EnvSpec("mujoco", (task,)), task)
    actions = np.random.default_rng(0).uniform(-1, 1, (9, 6)).astype(np.float32)
    simulator.reset(3)
    rows = [simulator.step(action).observation for action in actions]
    simulator.restore(simulator.state_at(rows[5]))
    for action, expected in zip(actions[6:], rows[6:], strict=True):
        found = simulator.step(action).observation
        np.testing.assert_allclose(found["observation"], expected["observation"], atol=5e-3)
    simulator.close()
