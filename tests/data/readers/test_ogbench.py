"""OGBench's npz files in their three layouts, and what people make of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.ingest import assign_splits
from lwdctl.data.reader import open_source, recognize, recognize_all

STEPS = (5, 8, 3)
ROWS = sum(STEPS) + len(STEPS)
ENDS = np.cumsum([steps + 1 for steps in STEPS])
STARTS = np.r_[0, ENDS[:-1]]
NAME = "cube-double-play-v0"


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_downloaded(size=6):
    return {
        "observations": numbers(ROWS, size, seed=1),
        "actions": np.clip(numbers(ROWS, 5, seed=2), -1, 1),
        "terminals": np.isin(np.arange(ROWS), ENDS - 1),
        "qpos": numbers(ROWS, 4, seed=3),
        "qvel": numbers(ROWS, 3, seed=4),
        "button_states": np.arange(ROWS * 2).reshape(ROWS, 2) % 2,
    }


def compact():
    """Return what OGBench's loader makes of it with compact_dataset=True."""
    arrays = as_downloaded()
    ended = arrays["terminals"]
    before = np.r_[ended[1:], True]
    return {**arrays, "valids": 1.0 - ended, "terminals": (ended | before).astype(np.float32)}


def regular():
    """Return what OGBench's loader makes of it: transitions."""
    arrays = as_downloaded()
    ended = arrays["terminals"]
    kept = {key: values[~ended] for key, values in arrays.items()}
    following = np.r_[False, ~ended[:-1]]
    return {
        **kept,
        "next_observations": arrays["observations"][following],
        "terminals": np.r_[ended[1:], True][~ended].astype(np.float32),
    }


LAYOUTS = {
    "as downloaded": as_downloaded,
    "compact": compact,
    "compact without valids": lambda: {k: v for k, v in compact().items() if k != "valids"},
    "regular": regular,
}


def write(folder, arrays, name=NAME, *, compressed=True):
    path = folder / f"{name}.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def opened(path, **options):
    return open_source("ogbench", (path,), IngestConfig(**options))


def found(reader, check, word=""):
    return [item for item in reader.findings if item.check == check and word in item.message]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_gives_the_same_episodes(tmp_path, layout, compressed):
    source = as_downloaded()
    path = write(tmp_path, LAYOUTS[layout](), compressed=compressed)
    assert recognize(path).format == "ogbench"
    with opened(path) as reader:
        assert [item.length for item in reader.episodes] == list(STEPS)
        for index, (start, steps) in enumerate(zip(STARTS, STEPS, strict=True)):
            episode = reader.read(index)
            rows = slice(start, start + steps)
            np.testing.assert_array_equal(
                episode.observations["observation"], source["observations"][rows]
            )
            np.testing.assert_array_equal(episode.actions, source["actions"][rows])
            np.testing.assert_array_equal(
                episode.final_observation["observation"], source["observations"][start + steps]
            )
            state = np.concatenate(
                [source[key][start] for key in ("qpos", "qvel", "button_states")]
            )
            np.testing.assert_array_equal(episode.initial_state, state)
            assert episode.rewards is None
        assert reader.spec.env.settings["initial_state"] == [
            ["qpos", 4], ["qvel", 3], ["button_states", 2],
        ]  # fmt: skip
        assert bool(found(reader, "memory")) is compressed
        assert bool(found(reader, "adjusted", "action in it is not used")) is (layout != "regular")


NAMES = {
    "cube-double-play-v0": ("cube-double-v0", "play", ""),
    "antmaze-large-navigate-v0-val": ("antmaze-large-v0", "navigate", "validation"),
    "humanoidmaze-medium-stitch-v0": ("humanoidmaze-medium-v0", "stitch", ""),
    "puzzle-4x4-noisy-v0": ("puzzle-4x4-v0", "noisy", ""),
    "scene-play-v0": ("scene-v0", "play", ""),
    "cube-quadruple-play-100m-v0-003-val": ("cube-quadruple-v0", "play", "validation"),
    "cube-double-play-singletask-task2-v0": ("cube-double-v0", "play", ""),
    "my_own_recording": ("", "", ""),
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_name_says_environment_label_and_split(tmp_path, name):
    task, label, split = NAMES[name]
    with opened(write(tmp_path, as_downloaded(), name)) as reader:
        assert reader.spec.env.tasks == ((task,) if task else ())
        assert reader.spec.labels == ((label,) if label else ())
        assert {item.split for item in reader.episodes} == {split}
        told = found(reader, "metadata", "the file's name alone says")
        assert len(told) == bool(task)
        if task:
            assert task in told[0].message
            assert label in told[0].message
    with opened(tmp_path / f"{name}.npz", env="mine/Cubes-v9", label="good") as reader:
        assert reader.spec.env.adapter == "mine"
        assert reader.spec.env.tasks == ("Cubes-v9",)
        assert reader.spec.labels == ("good",)


def test_limits_are_those_of_the_environment_or_unknown(tmp_path):
    with opened(write(tmp_path, as_downloaded())) as reader:
        action = reader.spec.action
        assert (action.semantics, action.low, action.limits) == (
            "delta", (-1.0,) * 5, "environment",
        )  # fmt: skip
        assert action.control_rate == 20.0
    for name in ("anything", "antmaze-large-navigate-v0"):  # an ant has eight joints
        with opened(write(tmp_path, as_downloaded(), name)) as reader:
            assert (reader.spec.action.low, reader.spec.action.limits) == ((), "")


def test_training_and_validation_files_make_the_split(tmp_path):
    paths = [write(tmp_path, as_downloaded(), f"{NAME}{end}") for end in ("", "-val")]
    with open_source("ogbench", paths, IngestConfig()) as reader:
        assert assign_splits(reader.episodes, 0.1, 0) == ["train"] * 3 + ["validation"] * 3


def test_rewards_and_masks_of_single_task_files(tmp_path):
    arrays = regular()
    rows = len(arrays["actions"])
    masks = np.ones(rows, np.float32)
    masks[7] = 0
    path = write(tmp_path, {**arrays, "rewards": np.arange(rows, dtype=np.float32), "masks": masks})
    assert recognize(path).format == "ogbench"
    with opened(path) as reader:
        episodes = [reader.read(index) for index in range(3)]
    np.testing.assert_array_equal(episodes[1].rewards, np.arange(5, 13))
    assert [episode.success for episode in episodes] == [False, True, False]


@pytest.mark.parametrize("rewards", [np.full(ROWS, np.nan), np.ones(4), np.array(["x"] * ROWS)])
def test_rewards_are_not_needed(tmp_path, rewards):
    path = write(tmp_path, {**as_downloaded(), "rewards": rewards})
    with opened(path) as reader:
        assert reader.read(0).rewards is None
        assert found(reader, "left-out", "no rewards")


@pytest.mark.parametrize(
    ("mode", "lengths"),
    [("first", [5, 8, 3]), ("each", [5, 8, 3])],
)
def test_rows_without_a_step_and_runs_of_flags(tmp_path, mode, lengths):
    """Two trajectories end in runs of three flags; a single row between flags has no step."""
    source = as_downloaded()
    rows = np.r_[np.arange(6), 5, 5, np.arange(6, 19)]
    arrays = {key: values[rows] for key, values in source.items()}
    with opened(write(tmp_path, arrays), terminals=mode) as reader:
        assert [item.length for item in reader.episodes] == lengths
        word = "runs of terminal flags" if mode == "first" else "no step"
        assert found(reader, "left-out", word)
        np.testing.assert_array_equal(reader.read(1).actions, source["actions"][6:14])


def test_rows_after_the_last_flag_are_an_episode_without_an_end(tmp_path):
    arrays = as_downloaded()
    arrays["terminals"][-1] = False
    with opened(write(tmp_path, arrays)) as reader:
        assert [item.length for item in reader.episodes] == [5, 8, 4]
        assert reader.read(2).final_observation is None


def test_flags_can_be_ignored_with_a_step_limit(tmp_path):
    path = write(tmp_path, as_downloaded())
    with pytest.raises(DataError, match="all that ends a trajectory") as caught:
        opened(path, terminals="ignore")
    assert "--max-steps" in caught.value.hint
    with opened(path, terminals="ignore", max_steps=10) as reader:
        assert [item.length for item in reader.episodes] == [10, 9]


def test_images_are_refused_and_other_arrays_can_be_chosen(tmp_path):
    arrays = as_downloaded() | {"observations": np.zeros((ROWS, 8, 8, 3), np.uint8)}
    path = write(tmp_path, arrays, "visual-cube-double-play-v0")
    with pytest.raises(DataError, match=r"observations: are images \(8, 8, 3\)") as caught:
        opened(path)
    option, keys = caught.value.hint.split()
    assert option == "--observation-keys"
    with opened(path, observation_keys=tuple(keys.split(","))) as reader:
        assert [item.name for item in reader.spec.observations] == ["qpos", "qvel", "button_states"]
        episode = reader.read(1)
        np.testing.assert_array_equal(episode.observations["qvel"], arrays["qvel"][6:14])
        np.testing.assert_array_equal(episode.final_observation["qvel"], arrays["qvel"][14])


def test_next_observations_say_nothing_of_other_arrays(tmp_path):
    path = write(tmp_path, regular())
    with opened(path, observation_keys=("observation", "qpos")) as reader:
        episode = reader.read(0)
    assert episode.final_observation is None
    np.testing.assert_array_equal(episode.observations["qpos"], as_downloaded()["qpos"][:5])


@pytest.mark.parametrize("actions", [np.arange(ROWS) % 4, np.zeros((ROWS, 3), np.int64)])
def test_discrete_actions_are_refused(tmp_path, actions):
    path = write(tmp_path, as_downloaded() | {"actions": actions})
    with pytest.raises(DataError, match=r"actions: are discrete \(int64\)"):
        opened(path)


def test_labels_and_tasks_come_from_columns(tmp_path):
    texts = np.repeat(["one", "two", "one"], [6, 9, 4])
    path = write(
        tmp_path, as_downloaded() | {"goal": texts, "level": np.repeat([1, 2, 3], [6, 9, 4])}
    )
    with opened(path, task_from="goal", label_from="level") as reader:
        assert [item.task for item in reader.episodes] == ["one", "two", "one"]
        assert [item.label for item in reader.episodes] == ["1", "2", "3"]
        assert reader.spec.env.tasks == ("one", "two")
    with opened(path) as reader:
        assert found(reader, "left-out", "no observations")[0].values["keys"] == ["goal", "level"]
    with pytest.raises(DataError, match="--task-from gool") as caught:
        opened(path, task_from="gool")
    assert "goal" in caught.value.hint


class Unsafe:
    def __reduce__(self):
        raise AssertionError("unpickled")


def test_objects_are_neither_read_nor_in_the_way(tmp_path):
    objects = np.empty(ROWS, object)
    objects[:] = [{}] * ROWS
    with opened(write(tmp_path, as_downloaded() | {"info": objects})) as reader:
        assert found(reader, "left-out", "info")
    path = write(tmp_path, as_downloaded() | {"actions": objects}, "other")
    with pytest.raises(DataError, match="actions: holds object"):
        opened(path)


def damaged(change):
    arrays = as_downloaded()
    change(arrays)
    return arrays


DAMAGE = {
    "no rows": (lambda a: a.update({key: values[:0] for key, values in a.items()}), "has no rows"),
    "no actions": (lambda a: a.pop("actions"), "actions: is missing"),
    "no terminals": (lambda a: a.pop("terminals"), "terminals: is missing"),
    "short actions": (
        lambda a: a.update(actions=a["actions"][:-1]),
        "actions, row 18: has 18 rows, but observations has 19",
    ),
    "short flags": (lambda a: a.update(terminals=a["terminals"][:-1]), "terminals, row 18"),
    "no flags": (
        lambda a: a.update(terminals=np.full(ROWS, 0.5)), "terminals, row 0: 0.5 is not a flag"
    ),
    "only flags": (lambda a: a.update(terminals=np.ones((ROWS, 2))), "not one flag a row"),
    "no steps": (
        lambda a: a.update({key: values[:1] for key, values in a.items()} | {"terminals": [True]}),
        "no trajectory has a step",
    ),
    "deep": (
        lambda a: a.update(observations=np.zeros((ROWS, 2, 3))),
        "observations: has shape (19, 2, 3)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_structure_is_checked(tmp_path, kind):
    change, expected = DAMAGE[kind]
    path = write(tmp_path, damaged(change))
    with pytest.raises(DataError) as caught:
        opened(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_damaged_bytes_are_an_error_when_they_are_read(tmp_path):
    path = write(tmp_path, as_downloaded(size=200))
    content = bytearray(path.read_bytes())
    place = content.index(b"observations.npy") + 3000
    content[place : place + 200] = bytes(200)
    path.write_bytes(bytes(content))
    with opened(path) as reader, pytest.raises(DataError, match="observations: is damaged"):
        reader.read(0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1), values=st.binary(min_size=1, max_size=9), compressed=st.booleans())
def test_random_damage_is_a_data_error_or_harmless(tmp_path, place, values, compressed):
    path = write(tmp_path, as_downloaded(), compressed=compressed)
    content = bytearray(path.read_bytes())
    start = int(place * (len(content) - len(values)))
    content[start : start + len(values)] = values
    path.write_bytes(bytes(content))
    message, read = "", None
    try:
        recognize_all([path])
        with opened(path) as reader:
            read = [reader.read(index).actions for index in range(len(reader.episodes))]
    except DataError as error:
        message = error.message
    assert str(path) in message or read is not None
    if read is not None:  # a zip file has checksums
        expected = as_downloaded()
        kept = expected["actions"][~expected["terminals"]]
        np.testing.assert_array_equal(np.concatenate(read), kept)


def test_names_that_d4rl_and_others_use_are_not_ogbenchs(tmp_path):
    for extra in ({"timeouts": np.zeros(ROWS)}, {"rewards": np.zeros(ROWS)}):
        path = write(tmp_path, as_downloaded() | extra)
        assert recognize(path).format == "npz"


def test_ingest_stores_what_was_read(tmp_path):
    from lwdctl.data.ingest import ingest

    path = write(tmp_path, as_downloaded())
    with opened(path) as reader:
        store, summary = ingest(reader, IngestConfig())
        assert isinstance(store, SnippetStore)
        assert summary["format"] == "ogbench"
        assert store.steps == sum(STEPS)
