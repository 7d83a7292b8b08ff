import numpy as np
import pytest

from lwdctl.core.errors import ConfigError, MissingExtraError
from lwdctl.core.records import ActionSpec, EnvSpec, SourceSpec
from lwdctl.core.simulator_facts import HAMMER
from lwdctl.envs.table import ENVIRONMENTS, make_simulator
from lwdctl.methods.untrained import StillPolicy, still_action

LIMITS = (-1.0, -1.0), (1.0, 1.0)
ACTIVE = np.ones(2, dtype=np.bool_)


class Hand:
    """An environment that knows what keeps its hand still."""

    @staticmethod
    def still_action(env):
        return lambda observation: env.settings["sign"] * observation["hand"]


class Armless:
    """An environment that does not."""


def source(action, adapter="", tasks=(), **settings):
    return SourceSpec((), action, EnvSpec(adapter, tasks, settings), (), "test")


def policy_for(spec):
    return StillPolicy(still_action(spec), spec.action.size, 2)


def seen(*rows):
    return {"hand": np.array(rows, dtype=np.float32)}


@pytest.mark.parametrize("semantics", ["delta", "torque"])
def test_motions_and_torques_are_zero(semantics):
    policy = policy_for(source(ActionSpec(2, semantics, "", *LIMITS, gripper=(1,))))
    policy.reset([None, None])
    assert not policy.act(seen([3, 4], [5, 6]), ACTIVE).any()
    assert policy.cost().num_replans.tolist() == [0, 0]


def test_a_target_is_where_the_robot_was_when_its_episode_began():
    policy = policy_for(source(ActionSpec(2, "absolute", "", *LIMITS, reference="hand")))
    policy.reset([None, None])
    first = policy.act(seen([1, 2], [9, 9]), np.array([True, False]))
    assert first[0].tolist() == [1, 2]
    later = policy.act(seen([5, 6], [3, 4]), ACTIVE)
    assert later.tolist() == [[1, 2], [3, 4]]
    policy.reset([None, None])
    assert policy.act(seen([5, 6], [7, 8]), ACTIVE).tolist() == [[5, 6], [7, 8]]


def test_an_environment_says_what_keeps_its_robot_still():
    spec = source(ActionSpec(2, "absolute", "", *LIMITS), f"{__name__}:Hand", sign=-1)
    policy = policy_for(spec)
    policy.reset([None, None])
    assert policy.act(seen([1, 2], [3, 4]), ACTIVE).tolist() == [[-1, -2], [-3, -4]]


@pytest.mark.parametrize("adapter", ["", f"{__name__}:Armless"])
def test_where_nobody_says_it_the_error_names_what_is_missing(adapter):
    with pytest.raises(ConfigError, match="still is not known") as caught:
        still_action(source(ActionSpec(2, "absolute", "unknown", *LIMITS), adapter))
    assert "reference" in caught.value.hint
    assert "still_action(env)" in caught.value.hint


def test_targets_of_other_robosuite_controllers_are_named():
    spec = source(ActionSpec(2, "absolute", "", *LIMITS), "robosuite")
    try:
        ENVIRONMENTS.load("robosuite")
    except MissingExtraError as error:
        pytest.skip(error.message)
    with pytest.raises(ConfigError, match="absolute targets") as caught:
        still_action(spec)
    assert "--actions absolute" in caught.value.hint


OSC = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "damping_ratio": 1,
    "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_ratio_limits": [0, 10],
    "output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3,
    "position_limits": None, "orientation_limits": None, "uncouple_pos_ori": True,
    "input_type": "delta", "input_ref_frame": "base", "interpolation": None, "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}  # fmt: skip
POSES = {
    "actions": "absolute",
    "env_args": {
        "env_version": "1.5.1",
        "env_kwargs": {"controller_configs": {"type": "BASIC", "body_parts": {"right": OSC}}},
    },
}
# What shows where the robot is: components of an observation, and by how much they may change
# (pixels, meters, radians).
CASES = {
    "pusht": ("pusht", "push_t", {}, "agent_position", slice(None), 1e-3),
    "metaworld": ("metaworld", "reach", {}, "observation", slice(3), 1e-2),
    "robosuite": ("robosuite", "Lift", {}, "robot0_eef_pos", slice(None), 5e-3),
    "robosuite turn": ("robosuite", "Lift", {}, "robot0_eef_quat", slice(None), 2e-2),
    "robosuite poses": ("robosuite", "Lift", POSES, "robot0_eef_pos", slice(None), 5e-3),
    "robosuite poses turn": ("robosuite", "Lift", POSES, "robot0_eef_quat", slice(None), 2e-2),
    "adroit": ("adroit", HAMMER, {}, "observation", slice(26), 0.1),
}


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.parametrize("case", CASES)
def test_the_robot_stays_where_its_episode_begins(case):
    adapter, task, settings, key, components, tolerance = CASES[case]
    try:
        simulator = make_simulator(EnvSpec(adapter, (task,), settings), task)
    except MissingExtraError as error:
        pytest.skip(error.message)
    policy = policy_for(source(simulator.action, adapter, (task,), **settings))
    policy.reset([None, None])
    first = observation = simulator.reset(100_001)
    for _ in range(100):
        rows = {name: np.stack([values] * 2) for name, values in observation.items()}
        observation = simulator.step(policy.act(rows, ACTIVE)[0]).observation
    change = np.abs(observation[key][components] - first[key][components]).max()
    simulator.close()
    assert change <= tolerance
