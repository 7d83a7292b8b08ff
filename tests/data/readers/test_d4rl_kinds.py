"""D4RL-like files as people have them: odd flags, short arrays, tails, states of other steps."""

from __future__ import annotations

import re
import shlex

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.simulator_facts import REFERENCE_RETURNS
from lwdctl.data.inspection import inspect_file
from lwdctl.data.reader import open_source, recognize

SIZES = (17, 6)


def steps(lengths, seed=0, size=17):
    """Return observations that move slowly within an episode and begin anew in the next."""
    rng = np.random.default_rng(seed)
    episodes = [
        3 * rng.normal(size=size) + np.cumsum(0.05 * rng.normal(size=(length, size)), axis=0)
        for length in lengths
    ]
    return np.concatenate(episodes).astype(np.float32)


def write(path, observations, ends, **arrays):
    """Write a file with a timeout before each of the rows `ends`; None omits an array."""
    rows = len(observations)
    timeouts = np.zeros(rows, bool)
    timeouts[np.asarray(ends, int) - 1] = True
    actions = np.random.default_rng(1).uniform(-1, 1, (rows, 6)).astype(np.float32)
    default = {
        "observations": observations, "actions": actions, "rewards": np.ones(rows),
        "terminals": np.zeros(rows, bool), "timeouts": timeouts,
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for key, values in {**default, **arrays}.items():
            if values is not None:
                file[key.replace("__", "/")] = values
    return path


def opened(path, **options):
    return open_source("d4rl", (path,), IngestConfig(**options))


def found(reader, check, word=""):
    return [item for item in reader.findings if item.check == check and word in item.message]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "recorded.hdf5"


LENGTHS = (60, 60, 60, 60, 60)
ENDS = np.cumsum(LENGTHS)


def test_unknown_environment_has_no_limits_and_no_meaning(path):
    write(path, steps(LENGTHS), ENDS)
    with opened(path) as reader:
        action = reader.spec.action
    assert (action.low, action.high, action.limits, action.units) == ((), (), "", "unknown")


def test_metadata_in_arrays_of_one_element_are_read(path):
    texts = {"metadata__env": np.array([b"Own-v0"]), "metadata__level": np.array([b"expert"])}
    operators = np.repeat([b"ann", b"", b"", b"ann", b"ann"], 60)
    write(path, steps(LENGTHS), ENDS, **texts, infos__operator=operators)
    with opened(path) as reader:
        assert (reader.spec.env.tasks, reader.spec.labels) == (("Own-v0",), ("expert",))
    with opened(path, task_from="operator") as reader:
        assert reader.spec.env.tasks == ("ann",)


def antmaze(path):
    """Write two episodes of 700 steps that reach the goal in steps 400 and 500 and stay there."""
    terminals = np.zeros(1400, bool)
    terminals[400:700] = terminals[1200:1390] = True
    return write(path, steps((700, 700)), (700, 1400), terminals=terminals)


@pytest.mark.parametrize(
    ("mode", "lengths", "left_out"),
    [
        ("first", [401, 501, 10], 299 + 189),
        ("each", [401, *[1] * 299, 501, *[1] * 189, 10], 0),
        ("ignore", [700, 700], 0),
    ],
)
def test_a_run_of_terminal_flags_ends_one_episode(path, mode, lengths, left_out):
    observations = steps((700, 700))
    with opened(antmaze(path), terminals=mode) as reader:
        assert [item.length for item in reader.episodes] == lengths
        reported = found(reader, "left-out", "runs of terminal flags")
        if mode == "first":
            assert reported[0].values == {"rows": left_out, "runs": 2}
            assert reader.episodes[1].source == "rows 700:1201"
            second = reader.read(1).observations["observation"]
            np.testing.assert_array_equal(second, observations[700:1201])
        else:
            assert not reported


def test_hint_of_a_run_lists_the_other_choices(path):
    with opened(antmaze(path)) as reader:
        hint = found(reader, "left-out", "runs of terminal flags")[0].hint
    for mode in re.findall(r"--terminals (\w+)", hint):
        with opened(path, terminals=mode) as reader:
            assert sum(item.length for item in reader.episodes) == 1400


@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("exact", [False, True])
def test_flags_a_row_beside_the_resets_are_moved(path, shift, exact):
    observations = steps((40,) * 12)
    ends = np.cumsum((40,) * 12)
    following = np.concatenate([observations[1:], observations[:1]])
    following[ends - 1] += 1  # the last observation of an episode is no first one
    extra = {"next_observations": following} if exact else {}
    timeouts = np.zeros(480, bool)
    timeouts[ends[:-1] - 1 + shift] = True
    write(path, observations, ends, timeouts=timeouts, **extra)
    with opened(path) as reader:
        assert [item.length for item in reader.episodes] == [40] * 12
        moved = found(reader, "adjusted", "were moved")
        assert len(moved) == (shift != 0)
        if moved:
            assert ("late" if shift > 0 else "early") in moved[0].message
            assert moved[0].severity == "warning"


@pytest.mark.parametrize(("ends", "rows"), [((60, 120), 180), ((), 300), (ENDS, 0)])
def test_rows_that_no_flag_ends_are_said_to_be_an_episode(path, ends, rows):
    write(path, steps(LENGTHS), ends)
    with opened(path) as reader:
        assert reader.episodes[-1].length == (rows or 60)
        said = [item.values for item in found(reader, "adjusted", "no flag ends the last")]
        assert said == ([{"rows": rows}] if rows else [])
    with opened(path, terminals="ignore") as reader:
        assert not found(reader, "adjusted", "no flag ends the last")


def test_flags_that_are_no_ends_are_reported(path):
    observations = steps((600,))
    following = np.concatenate([observations[1:], observations[-1:] + 1])
    write(path, observations, range(50, 601, 50), next_observations=following)
    with opened(path) as reader:
        assert [item.length for item in reader.episodes] == [50] * 12
        (finding,) = found(reader, "flags", "the episode goes on")
    assert finding.values["going_on"] == finding.values["looked_at"] == 11
    write(path, steps((50,) * 12), range(50, 601, 50))
    with opened(path) as reader:
        assert not found(reader, "flags")


def test_late_flags_do_not_move_that_of_the_last_row(path):
    terminals = np.zeros(240, bool)
    terminals[[60, 120, 180, 239]] = True
    write(path, steps((60,) * 4), (), terminals=terminals)
    with opened(path) as reader:
        assert found(reader, "adjusted", "late")
        assert [item.length for item in reader.episodes] == [60] * 4


@pytest.mark.parametrize("ends", [(200, 400), (400,)])
def test_few_flags_that_are_no_ends_are_noticed_beside_others_that_are(path, ends):
    observations = steps((200, 200))
    terminals = np.zeros(400, bool)
    terminals[[90, 330]] = True
    write(path, observations, ends, terminals=terminals)
    with opened(path) as reader:
        noticed = found(reader, "flags", "the episode goes on")
        # Without an end that is one, two flags are too few to judge by.
        assert [item.values["going_on"] for item in noticed] == ([2] if len(ends) > 1 else [])
    with opened(path, terminals="ignore") as reader:
        assert not found(reader, "flags")
        assert [item.length for item in reader.episodes] == np.diff([0, *ends]).tolist()


def test_one_wrong_flag_is_noticed_by_the_next_observations(path):
    observations = steps((100, 100, 100))
    following = np.concatenate([observations[1:], observations[:1]])
    following[[99, 199, 299]] += 1
    write(path, observations, (40, 100, 200, 300), next_observations=following)
    with opened(path) as reader:
        (finding,) = found(reader, "flags", "the episode goes on")
    assert finding.values["going_on"] == 1
    assert "row 39" in finding.message


def test_tail_of_zeros_is_left_out(path):
    observations = np.concatenate([steps(LENGTHS), np.zeros((5000, 17), np.float32)])
    actions = np.ones((len(observations), 6), np.float32)
    actions[300:] = 0
    write(path, observations, ENDS, actions=actions)
    with opened(path) as reader:
        assert [item.length for item in reader.episodes] == list(LENGTHS)
        assert found(reader, "left-out", "all zero")[0].values == {"rows": 5000}


def test_missing_timeouts_without_a_limit_name_an_option_that_works(path):
    write(path, steps(LENGTHS), ENDS, timeouts=None)
    for options in ({}, {"env": "mine/Maze-v3"}):
        with pytest.raises(DataError, match="timeouts: is missing") as caught:
            opened(path, **options)
        option, value, *_ = shlex.split(caught.value.hint)
        assert option == "--max-steps"
        with opened(path, max_steps=int(value), **options) as reader:
            assert [item.length for item in reader.episodes] == [300]
    with opened(path, max_steps=60) as reader:
        assert [item.length for item in reader.episodes] == list(LENGTHS)
        assert reader.spec.env.max_steps == 60
        assert found(reader, "adjusted", "step limit of 60")[0].values["episodes"] == 5


def test_a_missing_flag_is_mended_by_the_step_limit(path):
    write(path, steps(LENGTHS), [60, 180, 240, 300])
    with opened(path) as reader:
        assert [item.length for item in reader.episodes] == [60, 120, 60, 60]
    with opened(path, max_steps=60) as reader:
        assert [item.length for item in reader.episodes] == list(LENGTHS)


@pytest.mark.parametrize(("ends", "longest"), [([], 2500), ([2000], 2000)])
def test_episodes_beyond_the_limit_have_a_hint_that_works(tmp_path, ends, longest):
    path = tmp_path / "halfcheetah-expert-v2.hdf5"
    write(path, steps((1000, 1000, 500)), ends)
    with opened(path) as reader:
        (warning,) = found(reader, "too-long", "" if ends else "no flag is set")
    assert warning.values == {"episodes": 1, "longest": longest, "limit": 1000}
    findings = inspect_file(path, IngestConfig()).findings
    assert [item.check for item in findings].count("too-long") == 1
    option, value, *_ = shlex.split(warning.hint)
    assert option == "--max-steps"
    with opened(path, max_steps=int(value)) as reader:
        assert [item.length for item in reader.episodes] == [1000, 1000, 500]
    findings = inspect_file(path, IngestConfig(max_steps=int(value))).findings
    assert "too-long" not in {item.check for item in findings}


def test_next_observations_a_row_short(path):
    observations = steps(LENGTHS)
    write(path, observations, ENDS, next_observations=observations[1:] + 7)
    with opened(path) as reader:
        finals = [reader.read(index).final_observation for index in range(5)]
        assert found(reader, "adjusted", "a row short")
    np.testing.assert_array_equal(finals[0]["observation"], observations[60] + 7)
    assert finals[4] is None


@pytest.mark.parametrize(
    "following", [np.ones((300, 5)), np.ones((200, 17)), np.array([b"x"] * 300), np.ones(300)]
)
def test_next_observations_that_do_not_fit_are_left_out(path, following):
    write(path, steps(LENGTHS), ENDS, next_observations=following)
    with opened(path) as reader:
        assert reader.read(0).final_observation is None
        assert any("next_observations" in item.where for item in found(reader, "left-out"))


REWARDS = {
    "missing": (None, "is missing"),
    "NaN": (np.where(np.arange(300) == 70, np.nan, 1.0), "1 values are NaN or infinite"),
    "short": (np.ones(299), "has 299 rows"),
    "columns": (np.ones((300, 2)), "has 2 columns"),
    "text": (np.array([b"x"] * 300), "not numbers"),
}


@pytest.mark.parametrize("kind", sorted(REWARDS))
def test_rewards_are_not_needed(path, kind):
    rewards, reason = REWARDS[kind]
    write(path, steps(LENGTHS), ENDS, rewards=rewards)
    with opened(path) as reader:
        assert [reader.read(index).rewards for index in range(5)] == [None] * 5
        (finding,) = found(reader, "left-out", "no rewards")
    assert reason in finding.message
    assert finding.where.endswith(": rewards")


@pytest.mark.parametrize("key", ["rewards", "terminals"])
def test_arrays_that_were_never_written(path, key):
    write(path, steps(LENGTHS), ENDS)
    with h5py.File(path, "a") as file:
        del file[key]
        file.create_dataset(key, 300, np.float32)
    if key == "rewards":
        with opened(path) as reader:
            assert reader.read(1).rewards is None
            assert "row 0: was never written" in found(reader, "left-out", "no rewards")[0].message
    else:
        with pytest.raises(DataError, match="terminals, row 0: was never written") as caught:
            opened(path)
        assert not caught.value.hint  # no option helps: no episode is known that could be left out


@pytest.mark.parametrize("shape", [(300, 1, 17), (300, 17)])
def test_singleton_axes_are_removed(path, shape):
    observations = steps(LENGTHS)
    actions = np.random.default_rng(2).uniform(size=(300, 1, 3)).astype(np.float32)
    write(path, observations.reshape(shape), ENDS, actions=actions)
    with opened(path) as reader:
        episode = reader.read(1)
        assert len(found(reader, "adjusted", "is read as")) == (1 if len(shape) == 2 else 2)
    np.testing.assert_array_equal(episode.observations["observation"], observations[60:120])
    np.testing.assert_array_equal(episode.actions, actions[60:120, 0])


@pytest.mark.parametrize("actions", [np.arange(300) % 4, np.zeros((300, 3), np.int64)])
def test_discrete_actions_are_refused(path, actions):
    write(path, steps(LENGTHS), ENDS, actions=actions)
    with pytest.raises(DataError, match=r"actions: are discrete \(int64\)"):
        opened(path)


def test_another_action_array_can_be_chosen(path):
    other = np.random.default_rng(3).normal(size=(300, 2)).astype(np.float32)
    write(path, steps(LENGTHS), ENDS, infos__mean_action=other)
    with opened(path, action_key="infos/mean_action") as reader:
        np.testing.assert_array_equal(reader.read(2).actions, other[120:180])
        assert found(reader, "left-out", "no observations")[0].values["keys"] == ["actions"]


def test_arrays_that_are_not_read_are_listed(path):
    more = {"infos__goal": np.ones((300, 2)), "notes": np.array([b"x"] * 300)}
    write(path, steps(LENGTHS), ENDS, images=np.ones((300, 4, 4, 3)), **more)
    with opened(path) as reader:
        (finding,) = found(reader, "left-out")
    assert finding.values["keys"] == ["images", "infos/goal", "notes"]


def cheetah(tmp_path, **arrays):
    """Write a HalfCheetah file whose observations hold the joint positions and velocities."""
    qpos, qvel = steps(LENGTHS, 4, 9).astype(np.float64), steps(LENGTHS, 5, 9)
    observations = np.concatenate([qpos[:, 1:], qvel], axis=1)
    path = tmp_path / "halfcheetah-medium-v2.hdf5"
    recorded = {"infos__qpos": qpos, "infos__qvel": qvel}
    recorded |= {key: change(recorded[key]) for key, change in arrays.items()}
    return write(path, observations, ENDS, **recorded), np.concatenate([qpos, qvel], axis=1)


def test_states_are_those_of_the_observations(tmp_path):
    path, states = cheetah(tmp_path)
    with opened(path) as reader:
        for index, start in enumerate([0, *ENDS[:-1]]):
            np.testing.assert_array_equal(reader.read(index).initial_state, states[start])
        assert not found(reader, "initial-state")


@pytest.mark.parametrize("lost", ["first", "last"])
def test_infos_a_row_short_are_aligned(tmp_path, lost):
    cut = (lambda rows: rows[1:]) if lost == "first" else (lambda rows: rows[:-1])
    path, states = cheetah(tmp_path, infos__qpos=cut, infos__qvel=cut)
    with opened(path) as reader:
        for index, start in list(enumerate([0, *ENDS[:-1]]))[1:]:
            np.testing.assert_array_equal(reader.read(index).initial_state, states[start])
        assert found(reader, "adjusted", "a row short")
        first = reader.read(0).initial_state
    if lost == "first":
        assert first is None
    else:
        np.testing.assert_array_equal(first, states[0])


def test_states_of_the_step_before_are_moved(tmp_path):
    def late(rows):
        return np.roll(rows, 1, axis=0)

    path, states = cheetah(tmp_path, infos__qpos=late, infos__qvel=late)
    with opened(path) as reader:
        np.testing.assert_array_equal(reader.read(2).initial_state, states[120])
        assert found(reader, "initial-state")[0].values == {"shift": 1}


def test_a_state_of_the_episode_before_is_noticed(tmp_path):
    def stale(rows):
        changed = rows.copy()
        changed[[60, 180]] = rows[[59, 179]]
        return changed

    path, states = cheetah(tmp_path, infos__qpos=stale)
    with opened(path) as reader:
        begun = [reader.read(index).initial_state for index in range(5)]
        (finding,) = found(reader, "initial-state")
    assert [state is None for state in begun] == [False, True, False, True, False]
    assert finding.values == {"episodes": 2}
    np.testing.assert_array_equal(begun[2], states[120])


def test_states_that_belong_to_nothing_are_noticed(tmp_path):
    path, _ = cheetah(tmp_path, infos__qpos=lambda rows: rows + 1)
    with opened(path) as reader:
        assert found(reader, "initial-state", "not those of the observations")


def test_a_goal_of_the_episode_before_is_corrected(tmp_path):
    """The pen's wanted orientation is fixed, but its first row is that of the episode before."""
    path = tmp_path / "pen-human-v1.hdf5"
    goals = np.repeat(np.arange(5.0), 60)[:, None] * np.ones(4)
    stale = goals.copy()
    stale[[60, 120, 180, 240]] = goals[[59, 119, 179, 239]]
    positions = steps(LENGTHS, 6, 30)
    observations = np.concatenate([positions[:, :24], steps(LENGTHS, 7, 21)], axis=1)
    write(path, observations, ENDS, actions=np.zeros((300, 24), np.float32), infos__qpos=positions,
          infos__qvel=positions, infos__desired_orien=stale)  # fmt: skip
    with opened(path) as reader:
        assert reader.spec.env.tasks == ("AdroitHandPen-v1",)
        for index in range(5):
            assert reader.read(index).initial_state[-4:].tolist() == [float(index)] * 4


def test_incomplete_states_are_left_out(tmp_path):
    path, _ = cheetah(tmp_path, infos__qpos=lambda rows: rows[:-1])
    with opened(path) as reader:
        assert reader.read(0).initial_state is None
        assert found(reader, "left-out", "no initial state")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.repeat(np.arange(5), 60), ["0", "1", "2", "3", "4"]),
        (np.repeat([0.5, 1, 0.5, 1, 2], 60)[:, None], ["0.5", "1", "0.5", "1", "2"]),
        (np.repeat([b"ann", b"bo", b"bo", b"ann", b"eve"], 60), ["ann", "bo", "bo", "ann", "eve"]),
    ],
)  # fmt: skip
def test_labels_and_tasks_come_from_any_column(path, values, expected):
    write(path, steps(LENGTHS), ENDS, infos__operator=values)
    with opened(path, label_from="operator", task_from="infos/operator") as reader:
        assert [item.label for item in reader.episodes] == expected
        assert [item.task for item in reader.episodes] == expected
        assert reader.spec.env.tasks == tuple(dict.fromkeys(expected))
    with pytest.raises(DataError, match="--label-from operater: there is no such column") as caught:
        opened(path, label_from="operater")
    assert "infos/operator" in caught.value.hint


def test_success_is_known_where_it_is_recorded(path):
    success = np.zeros(300, bool)
    success[[100, 290]] = True
    write(path, steps(LENGTHS), ENDS, infos__success=success)
    with opened(path) as reader:
        solved = [reader.read(index).success for index in range(5)]
    assert solved == [False, True, False, False, True]
    write(path, steps(LENGTHS), ENDS, infos__success=np.where(success, 1.0, np.nan))
    with opened(path) as reader:
        assert [reader.read(index).success for index in range(5)] == solved
    write(path, steps(LENGTHS), ENDS)
    with opened(path) as reader:
        assert reader.read(0).success is None


def test_a_name_that_does_not_fit_the_sizes_names_no_environment(tmp_path):
    path = tmp_path / "Ant_maze_u-maze_noisy_multistart_False.hdf5"
    write(path, steps(LENGTHS, size=29), ENDS, actions=np.zeros((300, 8), np.float32))
    with opened(path) as reader:
        assert (reader.spec.env.adapter, reader.spec.env.tasks) == ("", ())
        assert reader.spec.action.limits == ""
        (finding,) = found(reader, "metadata", "has 29 components, Ant-v4 has 27 or 111")
    assert finding.severity == "warning"


def test_what_the_name_says_is_said(tmp_path):
    path, _ = cheetah(tmp_path)
    with opened(path) as reader:
        assert found(reader, "metadata", "HalfCheetah-v4")
        assert found(reader, "metadata", "behavior label 'medium'")
    with opened(path, env="mujoco/HalfCheetah-v4", label="mine") as reader:
        assert not found(reader, "metadata")


def test_observations_cannot_all_be_dropped(path):
    write(path, steps(LENGTHS), ENDS)
    with pytest.raises(DataError, match="--drop: no observation 'observations'") as caught:
        opened(path, drop=("observations",))
    assert "observation" in caught.value.hint
    with pytest.raises(DataError, match="--drop leaves no observation"):
        opened(path, drop=("observation",))


@pytest.mark.parametrize("option", ["episode_ends", "terminals_key", "lengths_key"])
def test_options_without_use_are_refused(path, option):
    write(path, steps(LENGTHS), ENDS)
    with pytest.raises(DataError, match=option.replace("_", "-")):
        opened(path, **{option: "x"})


def test_files_are_recognized_by_their_arrays(tmp_path):
    path = write(tmp_path / "no_name_at_all", steps(LENGTHS), ENDS)
    assert recognize(path).format == "d4rl"


def test_reference_returns_are_known_for_every_environment():
    assert REFERENCE_RETURNS["pen"] == (96.262799, 3076.8331017826877)
    assert all(random < expert for random, expert in REFERENCE_RETURNS.values())
    assert len(REFERENCE_RETURNS) == 8
