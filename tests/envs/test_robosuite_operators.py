"""The scripted operators in a weightless world; no simulator needed."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lwdctl.core.seeding import generator
from lwdctl.envs.robosuite_expert import OPERATORS, TASKS, ScriptedOperator

LEVELS = ("better", "okay", "worse")
# The can's bin: a quarter of robosuite's second bin.
BIN_LOW, BIN_HIGH = np.array([0.1, 0.28]), np.array([0.295, 0.525])


class World:
    """A hand that goes where it is told, and an object it can hold."""

    def __init__(self, task, seed):
        rng = np.random.default_rng(seed)
        self.task, self.closed, self.held, self.steps = task, 0, False, []
        self.hand = np.array([-0.1, 0.0, 1.0]) + rng.normal(0, 0.02, 3)
        self.turn = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))
        self.rest = 0.83 if task == "Lift" else 0.86
        middle = np.zeros(2) if task == "Lift" else np.array([0.1, -0.25])
        self.thing = np.array([*(middle + rng.uniform(-0.03, 0.03, 2)), self.rest])
        self.angle = Rotation.from_rotvec([0, 0, rng.uniform(-np.pi, np.pi)]).as_quat()

    def observe(self):
        relative = np.zeros(3)
        parts = (self.thing, self.angle, relative)
        if self.task != "Lift":
            parts = (relative, np.array([0, 0, 0, 1.0]), self.thing, self.angle)
        return {
            "object": np.concatenate(parts).astype(np.float32),
            "robot0_eef_pos": self.hand.astype(np.float32),
            "robot0_eef_quat": self.turn.as_quat().astype(np.float32),
        }

    def step(self, action):
        self.steps.append(action)
        self.hand = self.hand + 0.015 * action[:3]
        self.turn = Rotation.from_rotvec(0.3 * action[3:6]) * self.turn
        self.closed = self.closed + 1 if action[6] > 0 else 0
        offset = np.abs(self.thing - self.hand)
        if self.closed == 4 and offset[:2].max() < 0.015 and offset[2] < 0.03:
            self.held = True
        self.held = self.held and self.closed > 0
        if self.held:
            self.thing = self.thing + 0.015 * action[:3]
        else:
            self.thing = np.array([*self.thing[:2], self.rest])
        return self.solved()

    def solved(self):
        if self.task == "Lift":
            return self.thing[2] > 0.84
        inside = (self.thing[:2] > BIN_LOW).all() and (self.thing[:2] < BIN_HIGH).all()
        return bool(inside and not self.held)


def fly(name, task, seed, limit=500):
    """Return the world after an episode, and whether it ended solved."""
    world = World(task, seed)
    operator = ScriptedOperator(OPERATORS[name], task, generator("test", name, seed))
    for _ in range(limit):
        action = operator.act(world.observe())
        assert action.shape == (7,)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        if operator.finished(world.step(action)):
            return world, True
    return world, False


@pytest.fixture(scope="module", params=tuple(TASKS))
def flights(request):
    return {name: [fly(name, request.param, seed) for seed in range(8)] for name in OPERATORS}


def mean_length(flights, level):
    own = [
        world for name, all_of in flights.items() if name.startswith(level) for world, _ in all_of
    ]
    return np.mean([len(world.steps) for world in own])


def closings(world):
    grips = np.array([action[6] for action in world.steps])
    return int(((grips[1:] > 0) & (grips[:-1] < 0)).sum())


def test_there_are_six_operators_named_as_in_robomimics_masks():
    assert list(OPERATORS) == [f"{level}_operator_{n}" for level in LEVELS for n in (1, 2)]
    assert [item.level for item in OPERATORS.values()] == [
        level for level in LEVELS for _ in range(2)
    ]


@pytest.mark.slow
def test_everybody_solves_the_task(flights):
    rates = {name: np.mean([solved for _, solved in own]) for name, own in flights.items()}
    assert min(rates.values()) >= 0.9, rates


def test_the_better_an_operator_the_shorter_the_demonstrations(flights):
    lengths = [mean_length(flights, level) for level in LEVELS]
    assert all(first * 1.15 < second for first, second in pairwise(lengths)), lengths


def test_only_the_worse_ones_often_grasp_twice(flights):
    again = {
        name: np.mean([closings(world) > 1 for world, _ in own]) for name, own in flights.items()
    }
    assert again["better_operator_1"] == again["better_operator_2"] == 0
    assert again["worse_operator_1"] + again["worse_operator_2"] > 0.5


def test_an_episode_is_fixed_by_its_generator():
    one, other = (fly("worse_operator_2", "Lift", 3)[0].steps for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_operators_differ_in_style():
    ways = {name: fly(name, "Lift", 1)[0].steps for name in OPERATORS}
    moves = np.array(ways["worse_operator_2"])[:, :3]
    moves = moves[np.abs(moves).max(axis=1) > 0.15]  # without the pauses
    assert (moves * 4 % 1 == 0).all()
    assert max(abs(step[:3]).max() for step in ways["worse_operator_1"]) < 0.85
    first = ways["okay_operator_2"][0][:3]
    assert sorted(abs(first))[1] < 0.5 * max(abs(first))  # one axis at a time


def test_the_bow_is_on_the_operators_own_side():
    sides = {}
    for name in ("better_operator_2", "okay_operator_1", "better_operator_1"):
        total = 0.0
        for seed in range(12):
            world = World("PickPlaceCan", seed)
            way = (world.thing - world.hand)[:2]
            across = np.array([-way[1], way[0]]) / np.linalg.norm(way)
            operator = ScriptedOperator(
                OPERATORS[name], "PickPlaceCan", generator("test", name, seed)
            )
            start = world.hand.copy()
            for _ in range(8):
                world.step(operator.act(world.observe()))
            total += (world.hand - start)[:2] @ across
        sides[name] = total
    assert sides["okay_operator_1"] < 0 < sides["better_operator_2"]
    assert abs(sides["better_operator_1"]) < min(
        map(abs, (sides["okay_operator_1"], sides["better_operator_2"]))
    )


def test_a_lost_object_is_grasped_again():
    world = World("Lift", 0)
    operator = ScriptedOperator(OPERATORS["better_operator_1"], "Lift", generator("test", "lost"))
    while not world.held:
        world.step(operator.act(world.observe()))
    for _ in range(6):
        world.step(operator.act(world.observe()))
    world.held = False
    for _ in range(100):
        if operator.finished(world.step(operator.act(world.observe()))):
            break
    assert world.solved()
    assert closings(world) == 2
