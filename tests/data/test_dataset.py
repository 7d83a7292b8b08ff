"""Snippet stores built from arrays in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.records import LIMIT_MARGIN, ActionSpec, EnvSpec
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.dataset import store_from_arrays
from lwdctl.data.windows import WindowRule

rng = np.random.default_rng(0)
LENGTHS = (5, 7, 6, 9)
OBSERVATIONS = [rng.normal(size=(length, 3)) for length in LENGTHS]
ACTIONS = [rng.normal(size=(length, 2)) for length in LENGTHS]


def test_arrays_become_a_store_that_training_draws_from():
    store = store_from_arrays(OBSERVATIONS, ACTIONS, validation_fraction=0.25)
    assert store.path is None
    assert store.episodes.length.tolist() == list(LENGTHS)
    assert store.episodes.split.sum() == 1
    np.testing.assert_array_equal(store.read("action", 5, 12), ACTIONS[1].astype(np.float32))
    action, taken = store.spec.action, np.concatenate(ACTIONS)
    low, high = taken.min(axis=0), taken.max(axis=0)
    margin = LIMIT_MARGIN * (high - low)
    np.testing.assert_allclose([action.low, action.high], [low - margin, high + margin], rtol=1e-5)
    assert action.limits == "data"
    assert store.spec.env.max_steps == max(LENGTHS)
    batches = SnippetBatches(store, ("observation",), WindowRule(4), split="train", seed=0)
    batch = batches.batch(0, 8)
    assert batch.observations.shape == (8, 4, 3)
    assert batch.mask.eq(torch.ones(())).all()


def test_keys_tasks_labels_and_the_last_observation():
    observations = [
        {"a": rng.normal(size=(length + 1, 2)), "b": rng.normal(size=(length + 1, 1))}
        for length in LENGTHS
    ]
    rewards = [np.zeros(length) for length in LENGTHS]
    store = store_from_arrays(
        observations, ACTIONS, rewards=rewards, tasks=["x", "y", "x", "y"],
        labels="mine", env="toy/x",
    )  # fmt: skip
    assert [item.name for item in store.spec.observations] == ["a", "b"]
    assert store.spec.env.adapter == "toy"
    assert store.spec.env.tasks == ("x", "y")
    assert store.episodes.task.tolist() == [0, 1, 0, 1]
    assert store.episodes.label.tolist() == [0] * 4
    assert store.has_rewards
    np.testing.assert_allclose(store.final_observation(2)["a"], observations[2]["a"][-1])


def test_a_known_environment_gives_its_step_limit_and_settings():
    targets = [np.abs(item) for item in ACTIONS]
    env = store_from_arrays(OBSERVATIONS, targets, env="pusht").spec.env
    assert (env.tasks, env.max_steps) == (("push_t",), 300)
    cheetah = [np.zeros((9, 6))]
    env = store_from_arrays([np.zeros((9, 17))], cheetah, env="mujoco/HalfCheetah-v5").spec.env
    assert (env.settings, env.max_steps) == ({"id": "HalfCheetah-v5"}, 1000)
    env = store_from_arrays(OBSERVATIONS, ACTIONS, env="my.module:Toy/x", tasks="y").spec.env
    assert (env.adapter, env.tasks, env.max_steps) == ("my.module:Toy", ("y",), max(LENGTHS))
    with pytest.raises(DataError, match="actions have 2 components, 'metaworld/reach' takes 4"):
        store_from_arrays(OBSERVATIONS, ACTIONS, env="metaworld/reach")


@pytest.mark.parametrize("action", [None, ActionSpec(2, "absolute", "unknown", (), (), limits="")])
def test_a_specification_without_a_limit_has_the_environments_own(action):
    targets = [np.abs(item) for item in ACTIONS]
    store = store_from_arrays(
        OBSERVATIONS, targets, env=EnvSpec("pusht", ("push_t",)), action=action
    )
    assert store.spec.env.max_steps == 0


def test_declared_actions_need_not_be_those_that_are_known():
    env, action = EnvSpec("metaworld", ("reach",)), ActionSpec(2, "delta", "unknown", (), ())
    assert store_from_arrays(OBSERVATIONS, ACTIONS, env=env, action=action).spec.action.size == 2


POSITIONS = [256 + 40 * rng.normal(size=(30, 2)).cumsum(axis=0).clip(-6, 6) for _ in range(5)]


def test_a_known_environment_says_what_actions_are(capsys):
    targets = [item[1:] for item in POSITIONS]
    store = store_from_arrays(POSITIONS, targets, env="pusht")
    assert (store.spec.action.semantics, store.spec.action.limits) == ("absolute", "environment")
    assert (store.spec.action.low, store.spec.action.high) == ((0.0, 0.0), (512.0, 512.0))
    assert "note: actions are absolute; of 2 tested components, 2 follow" in capsys.readouterr().err
    own = ActionSpec(2, "absolute", "meters", (-9e3, -9e3), (9e3, 9e3))
    assert store_from_arrays(POSITIONS, targets, env="pusht", action=own).spec.action == own
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("actions", "message", "semantics"),
    [
        ([np.diff(item, axis=0) for item in POSITIONS], "are motions|follow the motion", "delta"),
        ([5 * item[1:] for item in POSITIONS], "outside the limits of the environment", "absolute"),
    ],
)
def test_actions_that_an_environment_does_not_take_are_refused(actions, message, semantics):
    with pytest.raises(DataError, match=f"actions: .*({message})") as error:
        store_from_arrays(POSITIONS, actions, env="pusht")
    assert "--" not in error.value.hint
    written = error.value.hint.partition("action=lwdctl.")[2]
    action = eval(written, {"ActionSpec": ActionSpec})
    assert action.semantics == semantics
    store = store_from_arrays(POSITIONS, actions, env="pusht", action=action)
    assert store.spec.action.limits == "data"


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (OBSERVATIONS[:3], ACTIONS, "observations: has 3 entries for 4 episodes"),
        ([], [], "holds no episodes"),
        ([OBSERVATIONS[0][:3]], ACTIONS[:1], "episode 0: observation: has 3 rows, expected 5 or 6"),
        ([OBSERVATIONS[0][:, 0]], ACTIONS[:1], r"has shape \(5,\)"),
        ([1, 2], [1, 2], r"episode 0: actions: has shape \(\), expected \(time, size\)"),
        ([[[1.0], [2.0, 3.0]]], ACTIONS[:1], "episode 0: observation: is no array"),
        ([[["a"]]], [[[0.0]]], "episode 0: observation: holds <U1, not numbers"),
        ([{}], ACTIONS[:1], "episode 0: observations: has no keys"),
        ([{0: OBSERVATIONS[0]}], ACTIONS[:1], "episode 0: observations: the key 0 is not a string"),
        (None, ACTIONS, "observations: is of type NoneType, expected a sequence"),
        (
            [{"p": OBSERVATIONS[0]}, {"p": OBSERVATIONS[1], "q": OBSERVATIONS[1]}],
            ACTIONS[:2],
            "episode 1: observations: has the keys p, q, expected those of episode 0: p",
        ),
        (
            [{"arm": OBSERVATIONS[0], "arm/q": OBSERVATIONS[0]}],
            ACTIONS[:1],
            "make 'observation/arm' an array of the snippet store that holds another array",
        ),
        ([OBSERVATIONS[0] * np.nan], ACTIONS[:1], "episode 0: observation, row 0: value is nan"),
        ([OBSERVATIONS[0], OBSERVATIONS[1][:, :2]], ACTIONS[:2], "episode 1: observation"),
        (OBSERVATIONS[:2], [ACTIONS[0], ACTIONS[1][:, :1]], "episode 1: actions, row 0: has 1 co"),
        ([OBSERVATIONS[0][:0]], [ACTIONS[0][:0]], "episode 0: actions: has no rows"),
        ([{"action": OBSERVATIONS[0]}], ACTIONS[:1], "the name 'action' is reserved"),
        ([{"reward": OBSERVATIONS[0]}], ACTIONS[:1], "the name 'reward' is reserved"),
    ],
)
def test_what_does_not_fit_is_named(observations, actions, message):
    with pytest.raises(DataError, match=message):
        store_from_arrays(observations, actions)


def test_arrays_per_key_are_refused_with_what_turns_them_into_episodes():
    observations = {"p": OBSERVATIONS[:2], "q": OBSERVATIONS[:2]}
    with pytest.raises(DataError, match="observations: is a mapping, expected a seq") as error:
        store_from_arrays(observations, ACTIONS[:2])
    code = error.value.hint.partition(", where")[0]
    turned = eval(code, {"observations": observations})
    assert len(store_from_arrays(turned, ACTIONS[:2]).episodes) == 2


def test_exchanged_arguments_and_a_single_episode_are_answered():
    observations = {"p": OBSERVATIONS[0]}
    with pytest.raises(DataError, match="episode 0: actions: is a mapping, expected an") as error:
        store_from_arrays(ACTIONS[:1], [observations])
    assert error.value.hint == "observations come first: from_arrays(observations, actions)"
    with pytest.raises(DataError, match="observations: is a single episode, expected a") as error:
        store_from_arrays(observations, ACTIONS[0])
    assert error.value.hint == "from_arrays([observations], [actions])"
    with pytest.raises(DataError, match=r"actions: has shape \(2,\), expected \(time") as error:
        store_from_arrays(OBSERVATIONS[0], ACTIONS[0])
    assert error.value.hint.startswith("[array] is the list of a single episode; ")
    assert len(store_from_arrays([observations], [ACTIONS[0]]).episodes) == 1


def test_actions_are_within_the_limits_that_are_given():
    action = ActionSpec(2, "delta", "normalized", (-0.1, -9.0), (0.1, 9.0))
    with pytest.raises(
        DataError, match=r"component 0\) are outside the limits of action="
    ) as error:
        store_from_arrays(OBSERVATIONS, ACTIONS, action=action)
    assert "action=action.unlimited()" in error.value.hint
    store = store_from_arrays(OBSERVATIONS, ACTIONS, action=action.unlimited())
    assert store.spec.action.semantics == "delta"
    clipped = [np.clip(item, action.low, action.high) for item in ACTIONS]
    assert store_from_arrays(OBSERVATIONS, clipped, action=action).spec.action == action
    with pytest.raises(DataError, match="action: describes 2 components, but actions have 1"):
        store_from_arrays(OBSERVATIONS, [item[:, :1] for item in ACTIONS], action=action)


@pytest.mark.parametrize(
    ("reference", "found"), [("elsewhere", "no observation"), ("short", "1 components")]
)
def test_actions_refer_to_an_observation_of_their_size(reference, found):
    action = ActionSpec(2, "absolute", "meters", (), (), reference=reference, limits="")
    observations = [{"obs": item, "short": item[:, :1]} for item in OBSERVATIONS]
    with pytest.raises(ConfigError, match=f"the reference '{reference}', which is {found}, exp"):
        store_from_arrays(observations, ACTIONS, action=action)


def test_steps_that_float32_rounds_away_are_warned_of():
    coarse = 4198765.2 + 0.015 * np.arange(5)[:, None]
    with pytest.warns(UserWarning, match="episode 0: observation: float32.*subtract an offset"):
        store_from_arrays([coarse], ACTIONS[:1])


@pytest.mark.parametrize("argument", ["tasks", "labels"])
def test_tasks_and_labels_are_strings(argument):
    with pytest.raises(DataError, match=f"{argument}: that of episode 1 is 1, expected a") as error:
        store_from_arrays(OBSERVATIONS, ACTIONS, **{argument: ["0", 1, 0, 1]})
    assert error.value.hint == f"{argument}=[str(item) for item in {argument}]"
    with pytest.raises(DataError, match=f"{argument}: is 3, expected a string or one per episode"):
        store_from_arrays(OBSERVATIONS, ACTIONS, **{argument: 3})
    names = np.array(["a", "b", "a", "b"])
    assert len(store_from_arrays(OBSERVATIONS, ACTIONS, **{argument: names}).episodes) == 4


def test_values_that_are_not_finite_are_no_matter_of_an_option():
    with pytest.raises(DataError, match="episode 0: actions, row 0: value is nan") as error:
        store_from_arrays(OBSERVATIONS[:1], [ACTIONS[0] * np.nan])
    assert "--" not in error.value.hint
    assert "np.isfinite(array).all()" in error.value.hint


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(32, 24, 3), (3, 32, 24)])
def test_images_are_refused_as_images(kind, shape):
    observations = [
        {"state": rows, "camera": np.zeros((len(rows), *shape), kind)} for rows in OBSERVATIONS
    ]
    message = rf"episode 0: camera: holds images \({', '.join(map(str, shape))}\) of {kind}"
    with pytest.raises(DataError, match=message) as caught:
        store_from_arrays(observations, ACTIONS)
    assert caught.value.hint == "leave 'camera' out of the observations"
