"""How files with keys of their own hold episodes: one per row of the arrays, or one per group."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source

sys.path.insert(0, str(Path(__file__).parent))
from test_keyed import ACTION, CONTAINERS, KEYS, OBS, ROWS, checks, follow, read_all, save

sys.path.pop(0)

EPISODES, STEPS = 3, 9
STACKED_OBS = 1 + np.arange(EPISODES * STEPS * 3, dtype=np.float32).reshape(EPISODES, STEPS, 3)
STACKED_ACTION = -np.arange(EPISODES * STEPS * 2, dtype=np.float32).reshape(EPISODES, STEPS, 2)
LENGTHS = np.array([9, 4, 7])


@pytest.fixture(params=CONTAINERS)
def container(request):
    return request.param


@pytest.fixture
def stack(container, tmp_path):
    """Return a writer of a file with whole episodes in the rows of `obs` and `action`."""

    def write(**more):
        arrays = {"obs": STACKED_OBS, "action": STACKED_ACTION, **more}
        return save(tmp_path / f"a.{container}", arrays)

    return write


# --- one row per episode


def test_rows_of_arrays_of_whole_episodes_are_episodes(container, stack):
    path = stack(reward=STACKED_OBS[:, :, 0], success=np.array([1, 0, 1]), who=np.arange(3) + 5)
    _, episodes, findings = read_all(container, path, **KEYS, label_from="who")
    assert [item.length for item in episodes] == [STEPS] * EPISODES
    assert [item.source for item in episodes] == ["rows 0:9", "rows 9:18", "rows 18:27"]
    for index, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.observations["obs"], STACKED_OBS[index])
        np.testing.assert_array_equal(episode.actions, STACKED_ACTION[index])
        np.testing.assert_array_equal(episode.rewards, STACKED_OBS[index, :, 0])
    assert [item.success for item in episodes] == [True, False, True]
    assert [item.label for item in episodes] == ["5", "6", "7"]
    (said,) = checks(findings, "adjusted")
    assert "3 episodes of 9 steps" in said.message
    assert said.severity == "note"


def test_lengths_cut_arrays_of_whole_episodes(container, stack):
    path = stack(ep_len=LENGTHS)
    with pytest.raises(DataError) as caught:
        read_all(container, path)
    assert caught.value.hint.endswith("--action-key action --lengths-key ep_len")
    _, episodes, _ = follow(caught.value.hint)
    assert [item.length for item in episodes] == LENGTHS.tolist()
    np.testing.assert_array_equal(episodes[2].observations["obs"], STACKED_OBS[2, :7])
    np.testing.assert_array_equal(episodes[1].actions, STACKED_ACTION[1, :4])


def test_hint_for_arrays_of_whole_episodes_reads_them(container, stack):
    path = stack(q=STACKED_OBS[:, :, 0])
    for given in ({}, {"observation_keys": ("obs",)}, {"action_key": "action"}):
        with pytest.raises(DataError, match=r"obs \(3, 9, 3\)") as caught:
            read_all(container, path, **given)
        assert "one of --episode-ends" not in caught.value.message
        _, episodes, _ = follow(caught.value.hint)
        assert [item.length for item in episodes] == [STEPS] * EPISODES
        np.testing.assert_array_equal(episodes[1].actions, STACKED_ACTION[1])


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("lengths_key", np.array([9, 10, 3]), "row 1: an episode of 10 steps, but 9 are stored"),
        ("lengths_key", np.array([9, -1, 3]), "row 1: an episode of -1 steps"),
        ("lengths_key", np.array([9, 9]), "has 2 rows, but action has 3"),
        ("lengths_key", np.array([0, 0, 0]), "no episodes with steps"),
        ("episode_ends", np.array([1, 2, 3]), "--episode-ends: action holds 3 episodes of 9"),
        ("terminals_key", np.ones((3, 9)), "--terminals-key: action holds 3 episodes of 9"),
    ],
)
def test_ends_that_do_not_belong_to_whole_episodes_are_refused(
    container, stack, option, values, message
):
    with pytest.raises(DataError, match=message):
        read_all(container, stack(e=values), **KEYS, **{option: "e"})


def test_terminals_do_not_end_whole_episodes(container, stack):
    with pytest.raises(DataError, match="--terminals: an array of whole episodes"):
        read_all(container, stack(), **KEYS, terminals="ignore")


def test_empty_whole_episodes_are_left_out(container, stack):
    _, episodes, findings = read_all(
        container, stack(n=np.array([9, 0, 7])), **KEYS, lengths_key="n"
    )
    np.testing.assert_array_equal(episodes[1].actions, STACKED_ACTION[2, :7])
    assert "1 episodes have no steps" in checks(findings, "left-out")[0].message


def test_zeros_that_fill_whole_episodes_up_are_left_out(container, stack):
    obs, action = STACKED_OBS.copy(), STACKED_ACTION.copy()
    obs[1, 4:] = action[1, 4:] = 0
    path = stack(obs=obs, action=action)
    config = IngestConfig(**KEYS, validation_fraction=0)
    with open_source(container, (path,), config) as source:
        store, _ = ingest(source, config)
    lengths = {item.source: item.length for item in map(store.episode, range(EPISODES))}
    assert lengths == {"rows 0:9": 9, "rows 9:18": 4, "rows 18:27": 9}


def test_nan_that_fills_whole_episodes_up_is_named_with_its_episode(container, stack):
    obs = STACKED_OBS.copy()
    obs[1, 4:] = np.nan
    with pytest.raises(DataError, match=r"row 13: .*a row of episode 1") as caught:
        read_all(container, stack(obs=obs), **KEYS)
    assert "--lengths-key" in caught.value.hint
    _, episodes, _ = read_all(container, stack(obs=obs, n=LENGTHS), **KEYS, lengths_key="n")
    assert [item.length for item in episodes] == LENGTHS.tolist()


@pytest.mark.parametrize(
    "observations",
    [OBS, np.zeros((EPISODES, STEPS + 1, 3)), np.zeros((EPISODES * STEPS, 3))],
    ids=["rows", "one more", "end to end"],
)
@pytest.mark.parametrize("given", [{}, {"terminals": "ignore"}, {"lengths_key": "n"}])
def test_actions_of_several_axes_are_refused(container, stack, observations, given):
    path = stack(obs=observations, n=LENGTHS)
    with pytest.raises(DataError, match=r"action: has shape \(3, 9, 2\), expected") as caught:
        read_all(container, path, **KEYS, **given)
    assert "reshape(len(ARRAY), -1)" in caught.value.hint


def test_two_arms_are_no_episodes_of_two_steps(container, stack):
    arms = {"obs": np.zeros((ROWS, 2, 3)), "action": np.zeros((ROWS, 2, 4))}
    spec, _, _ = read_all(container, stack(**arms), **KEYS, terminals="ignore")
    assert (spec.action.size, spec.observations[0].size) == (8, 6)


def test_actions_of_several_axes_in_groups_are_refused(tmp_path):
    path = tmp_path / "a.hdf5"
    save(path, {"ep_0/obs": OBS, "ep_0/action": np.zeros((ROWS, 9, 2))})
    with pytest.raises(DataError, match=r"ep_0/action: has shape \(12, 9, 2\), expected"):
        read_all("hdf5", path, **KEYS)


# --- one group per episode


def groups(path, names, **arrays):
    return save(path, {f"{name}/{key}": array for name in names for key, array in arrays.items()})


def test_hint_for_groups_is_a_command_that_reads_them(container, tmp_path):
    names = [f"traj_{index:03d}" for index in range(4)]
    path = groups(tmp_path / f"a.{container}", names, pos=OBS, goal=OBS + 1, cmd=ACTION)
    for given in (
        {},
        {"observation_keys": ("pos", "goal")},
        {"action_key": "cmd"},
        {"observation_keys": ("pos", "goal"), "action_key": "cmdd"},
        {"observation_keys": ("traj_000/goal", "traj_000/pos"), "action_key": "traj_000/cmd"},
    ):
        with pytest.raises(DataError, match="4 groups, one per episode; traj_000 has") as caught:
            read_all(container, path, **given)
        assert "--episode-ends" not in caught.value.message
        assert "traj_001" not in caught.value.message
        _, episodes, _ = follow(caught.value.hint)
        assert [item.source for item in episodes] == names
        assert {*episodes[0].observations} == {"pos", "goal"}
        np.testing.assert_array_equal(episodes[3].actions, ACTION)


def test_keys_inside_groups_of_any_name_are_proposed_for_the_action(container, tmp_path):
    path = groups(tmp_path / f"a.{container}", ("left", "right"), state=OBS, move=ACTION)
    with pytest.raises(DataError, match="2 groups, one per episode; left has") as caught:
        read_all(container, path, action_key="move")
    _, episodes, _ = follow(caught.value.hint)
    assert [item.source for item in episodes] == ["left", "right"]


def test_groups_in_which_nothing_looks_like_actions_are_named(container, tmp_path):
    path = groups(tmp_path / f"a.{container}", ("t0", "t1"), x=OBS, y=ACTION)
    with pytest.raises(DataError, match=r"needs --observation-keys, --action-key; it") as caught:
        read_all(container, path)
    assert caught.value.hint.startswith("name them, as they are called in a group: lwdctl ingest")
    assert caught.value.hint.endswith("--observation-keys KEY,... --action-key KEY")
    save(tmp_path / f"b.{container}", {"t0/x": OBS, "t1/x": OBS, "y": ACTION})
    with pytest.raises(DataError, match="one of --episode-ends"):
        read_all(container, tmp_path / f"b.{container}")


def test_observation_that_no_group_holds_is_refused_with_those_they_hold(tmp_path):
    path = groups(tmp_path / "a.hdf5", ("t0", "t1"), pos=OBS, cmd=ACTION)
    with pytest.raises(DataError, match="no observation 't0/pos'") as caught:
        read_all("hdf5", path, observation_keys=("t0/pos",), action_key="cmd")
    assert caught.value.hint == "did you mean 'pos'?"


def test_misspelled_action_of_a_flat_file_is_named(container, stack):
    path = stack(obs=OBS, action=ACTION)
    with pytest.raises(DataError, match="and has no array 'acton'; it holds") as caught:
        read_all(container, path, observation_keys=("obs",), action_key="acton")
    _, episodes, _ = follow(caught.value.hint)
    np.testing.assert_array_equal(episodes[0].actions, ACTION)


# --- lengths for ends


@pytest.mark.parametrize(
    ("option", "other", "values"),
    [
        ("episode_ends", "--lengths-key", [7, 5]),
        ("episode_ends", "--lengths-key", [4, 4, 4]),
        ("lengths_key", "--episode-ends", [4, 8, 12]),
    ],
)
def test_lengths_that_are_given_as_ends_are_proposed_as_lengths(
    container, stack, option, other, values
):
    path = stack(obs=OBS, action=ACTION, **{"ep n": np.array(values)})
    with pytest.raises(DataError, match="ep n, row") as caught:
        read_all(container, path, **KEYS, **{option: "ep n"})
    name, key = shlex.split(caught.value.hint.partition(":")[0])
    assert name == other
    field = name[2:].replace("-", "_")
    _, episodes, _ = read_all(container, path, **KEYS, **{field: key})
    assert len(episodes) == len(values)
    path = stack(obs=OBS, action=ACTION, **{"ep n": np.array([7, 6])})
    with pytest.raises(DataError) as caught:
        read_all(container, path, **KEYS, **{option: "ep n"})
    assert not caught.value.hint


# --- initial states

SEEDS = np.array([7, 3, 5])


def states_of(episodes):
    return [None if item.initial_state is None else [*item.initial_state] for item in episodes]


@pytest.mark.parametrize(("key", "action"), [("initial_state", "u"), ("d/initial_state", "d/u")])
@pytest.mark.parametrize("states", [SEEDS, np.arange(6.0).reshape(3, 2)], ids=["seeds", "states"])
def test_states_of_a_flat_file_have_a_row_per_episode(container, tmp_path, key, action, states):
    arrays = {"obs": OBS, action: ACTION, key: states, "n": np.array([5, 0, 7])}
    path = save(tmp_path / f"a.{container}", arrays)
    _, episodes, findings = read_all(
        container, path, observation_keys=("obs",), action_key=action, lengths_key="n"
    )
    assert states_of(episodes) == [[*np.atleast_1d(states[row])] for row in (0, 2)]
    assert any(f"{key} is read as the state" in item.message for item in checks(findings, "read"))
    assert not any(key in item.message for item in checks(findings, "left-out"))


@pytest.mark.parametrize("states", [SEEDS, STACKED_OBS[:, :, 0]], ids=["seeds", "as steps"])
def test_states_of_whole_episodes_have_a_row_per_episode(container, stack, states):
    _, episodes, _ = read_all(container, stack(initial_state=states), **KEYS)
    assert states_of(episodes) == [[*np.atleast_1d(row)] for row in states]


@pytest.mark.parametrize("state", [np.float32(7), np.array([7.5]), np.arange(3)], ids=str)
def test_states_of_groups_are_in_the_groups(container, tmp_path, state):
    arrays = {}
    for index in range(3):
        arrays |= {f"t{index}/obs": OBS, f"t{index}/action": ACTION}
    arrays["t0/initial_state"], arrays["t2/initial_state"] = state, state + 1
    _, episodes, _ = read_all(container, save(tmp_path / f"a.{container}", arrays), **KEYS)
    first = [*np.atleast_1d(state)]
    assert states_of(episodes) == [first, None, [number + 1 for number in first]]


@pytest.mark.parametrize("container", ["hdf5", "zarr"])
def test_states_of_groups_are_attributes(container, tmp_path):
    path = groups(tmp_path / f"a.{container}", ("t0", "t1"), obs=OBS, action=ACTION)

    def write(*states):
        opened = h5py.File(path, "a") if container == "hdf5" else nullcontext(zarr.open_group(path))
        with opened as file:
            for index, state in enumerate(states):
                file[f"t{index}"].attrs["initial_state"] = state

    write(7, [1.5, 2.5])
    _, episodes, _ = read_all(container, path, **KEYS)
    assert states_of(episodes) == [[7], [1.5, 2.5]]
    write(7, float("nan"))
    assert states_of(read_all(container, path, **KEYS)[1]) == [[7], None]
    write("seven")
    _, episodes, findings = read_all(container, path, **KEYS)
    assert states_of(episodes) == [None, None]
    (said,) = [item for item in findings if "initial_state" in item.message]
    assert said.message == "initial_state: holds no numbers, not one state per episode"


@pytest.mark.parametrize("states", [np.arange(ROWS), np.array([[["a"]]] * 2), np.zeros((2, 1, 1))])
def test_states_that_are_not_one_per_episode_are_left_out(tmp_path, states):
    path = save(tmp_path / "a.npz", {"obs": OBS, "action": ACTION, "initial_state": states})
    _, episodes, findings = read_all("npz", path, **KEYS, terminals="ignore")
    assert states_of(episodes) == [None]
    (said,) = [item for item in findings if "initial_state" in item.message]
    assert said.check == "left-out"
    assert "not one state per episode" in said.message


# --- images


@pytest.mark.parametrize("shape", [(32, 24, 3), (8, 8, 1), (4, 32, 24)])
def test_images_of_other_numbers_are_refused_as_those_of_8_bits(container, stack, shape):
    path = stack(obs=OBS, action=ACTION, camera=np.zeros((ROWS, *shape), np.float32))
    options = {"action_key": "action", "terminals": "ignore"}
    with pytest.raises(DataError, match=r"camera: holds images .* of float32; networks") as caught:
        read_all(container, path, observation_keys=("obs", "camera"), **options)
    assert caught.value.hint == "leave it out of --observation-keys"


@pytest.mark.parametrize("shape", [(4, 4, 3), (32, 24, 2), (9, 3)])
def test_other_arrays_of_several_axes_are_no_images(container, stack, shape):
    path = stack(obs=OBS, action=ACTION, points=np.zeros((ROWS, *shape), np.float32))
    spec, _, _ = read_all(
        container, path, observation_keys=("points",), action_key="action", terminals="ignore"
    )
    assert spec.observations[0].size == np.prod(shape)
