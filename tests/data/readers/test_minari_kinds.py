"""Minari datasets as people have them: every storage, odd spaces, lengths and columns."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.reader import open_source

LENGTHS = (4, 7, 5)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def box(*shape, dtype="float32", low=-2.0, high=2.0):
    limits = np.ones(shape)
    return {"type": "Box", "dtype": dtype, "shape": list(shape),
            "low": (low * limits).tolist(), "high": (high * limits).tolist()}  # fmt: skip


class Dataset:
    """A dataset in HDF5; `arrays(index, steps)` gives what an episode holds beside the default."""

    def __init__(self, folder, arrays=lambda index, steps: {}, attributes=None, **metadata):
        self.path = folder / "toy" / "expert-v0"
        data = self.path / "data"
        data.mkdir(parents=True, exist_ok=True)
        metadata = {"data_format": "hdf5", "dataset_id": "toy/expert-v0", **metadata}
        spaces = {
            key: json.dumps(value) if isinstance(value, dict) else value
            for key, value in metadata.items()
        }
        (data / "metadata.json").write_text(json.dumps(spaces))
        self.hdf5 = data / "main_data.hdf5"
        with h5py.File(self.hdf5, "w") as file:
            for index, steps in enumerate(LENGTHS):
                group = file.create_group(f"episode_{index}")
                group.attrs.update({"total_steps": steps, **(attributes or {})})
                for key, values in {**self.default(index, steps), **arrays(index, steps)}.items():
                    if values is not None:
                        group[key] = values

    @staticmethod
    def default(index, steps):
        return {
            "observations": numbers(steps + 1, 3, seed=index),
            "actions": numbers(steps, 2, seed=10 + index),
            "rewards": np.arange(steps, dtype=np.float64),
            "terminations": np.zeros(steps, bool),
            "truncations": np.arange(steps) == steps - 1,
        }

    def open(self, **options):
        return open_source("minari", (self.path,), IngestConfig(**options))


def found(reader, check, word=""):
    return [item for item in reader.findings if item.check == check and word in item.message]


def test_good_datasets_have_nothing_to_report(tmp_path):
    with Dataset(tmp_path, action_space=box(2), observation_space=box(3)).open() as reader:
        assert reader.findings == []
        assert reader.spec.action.limits == "file"
        assert reader.spec.action.high == (2.0, 2.0)
        np.testing.assert_array_equal(reader.read(1).rewards, np.arange(7))


@pytest.mark.parametrize("largest", [np.inf, float(np.finfo(np.float32).max)])
def test_unknown_environment_without_limits_has_none(tmp_path, largest):
    endless = {"type": "Box", "dtype": "float32", "shape": [2],
               "low": [-largest] * 2, "high": [largest] * 2}  # fmt: skip
    with Dataset(tmp_path, action_space=endless).open() as reader:
        assert (reader.spec.action.low, reader.spec.action.limits) == ((), "")


DISCRETE = {
    "Discrete": ({"type": "Discrete", "n": 4, "start": 0}, lambda steps: np.arange(steps) % 4),
    "Discrete in a column": (
        {"type": "Discrete", "n": 4, "start": 0},
        lambda steps: np.arange(steps, dtype=np.float32)[:, None],
    ),
    "MultiDiscrete": (
        {"type": "MultiDiscrete", "nvec": [3, 2], "dtype": "int64", "start": [0, 0]},
        lambda steps: np.ones((steps, 2), np.float32),
    ),
    "MultiBinary": ({"type": "MultiBinary", "n": 2}, lambda steps: np.ones((steps, 2), np.int8)),
    "no declared space": (None, lambda steps: np.ones((steps, 2), np.int64)),
}


@pytest.mark.parametrize("kind", sorted(DISCRETE))
def test_discrete_actions_are_refused_by_their_space(tmp_path, kind):
    space, actions = DISCRETE[kind]
    spaces = {"action_space": space} if space else {}
    data = Dataset(tmp_path, lambda index, steps: {"actions": actions(steps)}, **spaces)
    with pytest.raises(DataError, match="episode_0/actions: are discrete") as caught:
        data.open()
    if space:
        assert space["type"] in caught.value.message


def test_whole_numbers_in_a_box_are_noticed(tmp_path):
    data = Dataset(
        tmp_path, lambda i, n: {"actions": np.ones((n, 2), np.int64)},
        action_space=box(2, dtype="int64"),
    )  # fmt: skip
    with data.open() as reader:
        assert reader.read(0).actions.dtype == np.float32
        assert found(reader, "discrete-actions")


def test_actions_of_several_arrays_need_a_key(tmp_path):
    def arrays(index, steps):
        return {"actions": None, "actions/arm": numbers(steps, 4, seed=index),
                "actions/mode": np.zeros(steps, np.int64)}  # fmt: skip

    space = {"type": "Dict", "subspaces": {"arm": box(4), "mode": {"type": "Discrete", "n": 2}}}
    data = Dataset(tmp_path, arrays, action_space=space)
    with pytest.raises(DataError, match="a group of 2 arrays") as caught:
        data.open()
    option, key = caught.value.hint.split()
    assert option == "--action-key"
    with data.open(action_key=key) as reader:
        np.testing.assert_array_equal(reader.read(1).actions, numbers(7, 4, seed=1))
        assert reader.spec.action.low == (-2.0,) * 4
    with pytest.raises(DataError, match="are discrete"):
        data.open(action_key="mode")


def test_observations_without_the_last_one(tmp_path):
    def arrays(index, steps):
        return {"observations": numbers(steps + (index != 1), 3, seed=index)}

    with Dataset(tmp_path, arrays).open() as reader:
        assert [item.length for item in reader.episodes] == list(LENGTHS)
        finals = [reader.read(index).final_observation for index in range(3)]
        np.testing.assert_array_equal(
            reader.read(1).observations["observation"], numbers(7, 3, seed=1)
        )
        (finding,) = found(reader, "adjusted", "as many observations as actions")
    assert finals[1] is None
    np.testing.assert_array_equal(finals[2]["observation"], numbers(6, 3, seed=2)[-1])
    assert finding.values == {"episodes": 1}  # fmt: skip


MIXED_SPACE = {
    "type": "Dict",
    "subspaces": {
        "state": box(3),
        "camera": box(32, 32, 3, dtype="uint8", low=0, high=255),
        "mission": {"type": "Text", "max_length": 20, "min_length": 1, "charset": "a"},
        "hand": {"type": "Dict", "subspaces": {"pose": box(2, 2)}},
    },
}


def mixed(index, steps):
    rows = steps + 1
    return {
        "observations": None,
        "observations/state": numbers(rows, 3, seed=index),
        "observations/camera": np.zeros((rows, 32, 32, 3), np.uint8),
        "observations/mission": [f"fetch {index}".encode()] * rows,
        "observations/hand/pose": numbers(rows, 2, 2, seed=5 + index),
    }


@pytest.mark.parametrize("declared", [True, False])
def test_images_and_texts_beside_vectors_are_left_out(tmp_path, declared):
    spaces = {"observation_space": MIXED_SPACE} if declared else {}
    with Dataset(tmp_path, mixed, **spaces).open() as reader:
        assert [(item.name, item.size) for item in reader.spec.observations] == [
            ("hand.pose", 4), ("state", 3),
        ]  # fmt: skip
        episode = reader.read(1)
        (left_out,) = found(reader, "left-out", "observation arrays")
        reasons, severity = left_out.values["keys"], left_out.severity
        assert found(reader, "adjusted", "several axes")[0].values["keys"] == ["hand.pose"]
    np.testing.assert_array_equal(
        episode.observations["hand.pose"], numbers(8, 2, 2, seed=6).reshape(8, 4)[:-1]
    )
    np.testing.assert_array_equal(episode.final_observation["state"], numbers(8, 3, seed=1)[-1])
    assert severity == "warning"  # a text may be what the policy must be told
    assert "is an image" in reasons["camera"]
    assert ("is a text" if declared else "not numbers") in reasons["mission"]


def test_compressed_images_are_no_vectors(tmp_path):
    """minari stores images of equal length in bytes as rows of bytes."""

    def arrays(index, steps):
        bytes_ = np.full((steps + 1, 40), 7, np.uint8)
        bytes_[:, :3] = (255, 216, 255)
        return {"observations": None, "observations/view": bytes_,
                "observations/state": numbers(steps + 1, 3)}  # fmt: skip

    image = {
        "type": "Dict",
        "subspaces": {"view": MIXED_SPACE["subspaces"]["camera"], "state": box(3)},
    }
    for spaces in ({}, {"observation_space": image}):
        with Dataset(tmp_path / str(len(spaces)), arrays, **spaces).open() as reader:
            assert [item.name for item in reader.spec.observations] == ["state"]
            (finding,) = found(reader, "left-out")
            assert (finding.severity, finding.where.rpartition(": ")[2]) == ("note", "observations")
            message = "1 observation arrays are left out: episode_0/observations/view: is an image"
            assert finding.message == message


def test_images_alone_are_refused_with_the_reason(tmp_path):
    data = Dataset(tmp_path, lambda i, n: {"observations": np.zeros((n + 1, 40, 40, 3), np.uint8)})
    with pytest.raises(DataError, match="episode_0/observations: is an image"):
        data.open()


def test_a_left_out_key_cannot_be_requested(tmp_path):
    data = Dataset(tmp_path, mixed)
    with pytest.raises(DataError, match="camera: is an image"):
        data.open(observation_keys=("state", "camera"))
    with data.open(drop=("hand.pose", "camera")) as reader:
        assert [item.name for item in reader.spec.observations] == ["state"]
    with pytest.raises(DataError, match="--drop: no observation 'stat'") as caught:
        data.open(drop=("stat",))
    assert "state" in caught.value.hint


def test_keys_that_some_episodes_do_not_have_are_left_out(tmp_path):
    def arrays(index, steps):
        rest = {"observations/force": numbers(steps + 1, 2)} if index else {}
        return {"observations": None, "observations/state": numbers(steps + 1, 3), **rest}

    data = Dataset(tmp_path, arrays)
    with data.open() as reader:
        assert [item.name for item in reader.spec.observations] == ["state"]
        reason = found(reader, "left-out")[0].values["keys"]["force"]
    assert "episode_0/observations/force: is missing (1 of 3" in reason
    with pytest.raises(DataError, match="is missing"):
        data.open(observation_keys=("force",))


REWARDS = {
    "missing": lambda steps: None,
    "NaN": lambda steps: np.full(steps, np.nan),
    "short": lambda steps: np.ones(steps - 1),
}


@pytest.mark.parametrize("kind", sorted(REWARDS))
def test_rewards_are_not_needed(tmp_path, kind):
    def arrays(index, steps):
        return {"rewards": REWARDS[kind](steps)} if index == 1 else {}

    with Dataset(tmp_path, arrays).open() as reader:
        assert [reader.read(index).rewards for index in range(3)] == [None] * 3
        assert found(reader, "left-out", "no episode has rewards")[0].values == {"episodes": 1}


@pytest.mark.parametrize("key", ["rewards", "observations"])
def test_an_episode_that_was_never_written_can_be_left_out(tmp_path, key):
    data = Dataset(tmp_path)
    with h5py.File(data.hdf5, "a") as file:
        for name in ("episode_0", "episode_1"):
            shape = file.pop(f"{name}/{key}").shape
            file.create_dataset(f"{name}/{key}", shape, np.float32)
    with data.open() as reader:
        if key == "observations":
            for index in (0, 1):
                with pytest.raises(NonFiniteError, match="was never written"):
                    reader.read(index)
        assert (reader.read(2).rewards is None) == (key == "rewards")


def test_empty_episodes_are_left_out(tmp_path):
    def arrays(index, steps):
        if index != 1:
            return {}
        return {
            "actions": np.zeros((0, 2)),
            "observations": np.zeros((1, 3)),
            "rewards": np.zeros(0),
        }

    with Dataset(tmp_path, arrays).open() as reader:
        assert [item.source for item in reader.episodes] == ["episode_0", "episode_2"]
        np.testing.assert_array_equal(reader.read(1).actions, numbers(5, 2, seed=12))
        assert found(reader, "left-out", "have no steps")[0].values == {"episodes": ["episode_1"]}


def test_metadata_that_contradict_the_rows_are_reported(tmp_path):
    data = Dataset(tmp_path, attributes={"total_steps": 9}, total_episodes=7)
    with data.open() as reader:
        assert [item.length for item in reader.episodes] == list(LENGTHS)
        (finding,) = found(reader, "metadata", "contradict")
    assert "episode_0: total_steps is 9, but there are 4 actions" in finding.message
    assert finding.values == {"contradictions": 4}


def test_labels_and_tasks_come_from_attributes_and_columns(tmp_path):
    def arrays(index, steps):
        return {**mixed(index, steps), "infos/level": np.full(steps + 1, index // 2)}

    data = Dataset(tmp_path, arrays, attributes={"operator": "ann"})
    with data.open(label_from="operator", task_from="mission") as reader:
        assert reader.spec.labels == ("ann",)
        assert [item.task for item in reader.episodes] == ["fetch 0", "fetch 1", "fetch 2"]
        assert reader.spec.env.tasks == ("fetch 0", "fetch 1", "fetch 2")
    with data.open(label_from="infos/level") as reader:
        assert [item.label for item in reader.episodes] == ["0", "0", "1"]
    with pytest.raises(DataError, match="--task-from misson: there is no such") as caught:
        data.open(task_from="misson")
    assert "observations/mission" in caught.value.hint
    with pytest.raises(DataError, match="not one value in every episode"):
        data.open(label_from="state")


def test_nested_metadata_are_read_within_bounds(tmp_path):
    deep = '{"id": ' + "[" * 3000 + "]" * 3000 + "}"
    with Dataset(tmp_path, env_spec=deep).open() as reader:
        assert "env_spec" not in reader.spec.env.settings
    (tmp_path / "toy" / "expert-v0" / "data" / "metadata.json").write_text(deep)
    with pytest.raises(DataError, match=r"metadata\.json: more than 32 levels"):
        open_source("minari", (tmp_path / "toy" / "expert-v0",), IngestConfig())


@pytest.mark.parametrize(("value", "expected"), [(np.nan, False), (0, False), (1, True)])
def test_success_that_is_no_number_is_none(tmp_path, value, expected):
    def arrays(index, steps):
        return {"infos/success": np.full(steps + 1, value)}

    with Dataset(tmp_path, arrays).open() as reader:
        assert reader.read(0).success is expected


def test_links_give_arrays_further_paths(tmp_path):
    data = Dataset(tmp_path)
    with h5py.File(data.hdf5, "a") as file:
        for name in file:
            file.move(f"{name}/observations", f"{name}/recorded")
            file[f"{name}/observations"] = h5py.SoftLink(f"/{name}/recorded")
    with data.open() as reader:
        np.testing.assert_array_equal(
            reader.read(1).observations["observation"], numbers(8, 3, seed=1)[:-1]
        )
        assert found(reader, "left-out")[0].values["keys"] == ["recorded"]


def cheetah(index, steps):
    """Return a HalfCheetah episode whose observations hold the joint positions."""
    qpos, qvel = numbers(steps + 1, 9, seed=index), numbers(steps + 1, 9, seed=9 + index)
    observations = np.concatenate([qpos[:, 1:], qvel], axis=1)
    return {"observations": observations, "actions": np.zeros((steps, 6), np.float32),
            "infos/qpos": qpos, "infos/qvel": qvel}  # fmt: skip


SPEC = {"id": "HalfCheetah-v4", "max_episode_steps": 1000}


def test_infos_a_row_short_begin_after_the_first_step(tmp_path):
    def arrays(index, steps):
        values = cheetah(index, steps)
        return {key: rows[1:] if key.startswith("infos") else rows for key, rows in values.items()}

    with Dataset(tmp_path, arrays, env_spec=SPEC).open() as reader:
        assert [reader.read(index).initial_state for index in range(3)] == [None] * 3
        assert found(reader, "adjusted", "a row short")[0].values == {"episodes": 3}
        assert not found(reader, "initial-state")


def test_infos_that_lack_the_last_row_are_used(tmp_path):
    def arrays(index, steps):
        values = cheetah(index, steps)
        return {key: rows[:-1] if key.startswith("infos") else rows for key, rows in values.items()}

    with Dataset(tmp_path, arrays, env_spec=SPEC).open() as reader:
        state = reader.read(1).initial_state
        assert found(reader, "initial-state")
    expected = cheetah(1, 7)
    np.testing.assert_array_equal(
        state, np.r_[expected["infos/qpos"][0], expected["infos/qvel"][0]]
    )


def test_a_first_state_of_the_episode_before_is_noticed(tmp_path):
    def arrays(index, steps):
        values = cheetah(index, steps)
        if index == 2:
            values["infos/qpos"][0] = cheetah(1, 7)["infos/qpos"][-1]
        return values

    with Dataset(tmp_path, arrays, env_spec=SPEC).open() as reader:
        states = [reader.read(index).initial_state for index in range(3)]
        (finding,) = found(reader, "initial-state")
    assert [state is None for state in states] == [False, False, True]
    assert finding.values == {"episodes": 1}


def test_a_goal_of_the_episode_before_is_replaced(tmp_path):
    def arrays(index, steps):
        goal = np.full((steps + 1, 2), float(index), np.float32)
        goal[0] = max(index - 1, 0)
        return {"observations": None, "observations/desired_goal": goal,
                "observations/state": numbers(steps + 1, 3)}  # fmt: skip

    with Dataset(tmp_path, arrays).open() as reader:
        for index in range(3):
            goals = reader.read(index).observations["desired_goal"]
            np.testing.assert_array_equal(goals, np.full((LENGTHS[index], 2), index))
        assert found(reader, "adjusted", "the goal of the episode before")[0].values == {
            "episodes": 2
        }


def test_a_goal_that_changes_is_kept(tmp_path):
    def arrays(index, steps):
        goal = np.full((steps + 1, 2), 10.0 + index, np.float32)
        goal[0] = 50 + index  # another goal than before
        return {"observations": None, "observations/goal": goal}

    with Dataset(tmp_path, arrays).open() as reader:
        assert reader.read(1).observations["goal"][0].tolist() == [51.0, 51.0]
        assert not found(reader, "adjusted")


def test_max_steps_and_useless_options(tmp_path):
    data = Dataset(tmp_path, env_spec=SPEC | {"id": "Toy-v0"})
    with data.open(max_steps=77) as reader:
        assert reader.spec.env.max_steps == 77
    with pytest.raises(DataError, match="--terminals"):
        data.open(terminals="each")
