"""Ingesting: validation splits (stratified, seeded, the source's own first), and the store."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import (
    ActionSpec,
    EnvSpec,
    Episode,
    Finding,
    ObservationSpec,
    SourceSpec,
)
from lwdctl.data.checks import finite_rows
from lwdctl.data.formats import READERS
from lwdctl.data.ingest import assign_splits, ingest
from lwdctl.data.quality.ingest_report import INGEST_REPORT
from lwdctl.data.reader import EpisodeOutline, open_source
from lwdctl.data.source_spec import with_renames

outlines = st.lists(
    st.builds(
        EpisodeOutline,
        st.just(""),
        st.just(1),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["x", "y", ""]),
    ),
    min_size=1,
    max_size=60,
)


@given(outlines=outlines, fraction=st.floats(0, 0.9), seed=st.integers(0, 9))
def test_share_is_kept_overall_and_per_stratum(outlines, fraction, seed):
    splits = assign_splits(outlines, fraction, seed)
    held = [item for item, split in zip(outlines, splits, strict=True) if split == "validation"]
    assert len(held) <= max(1, fraction * len(outlines) + 1)
    assert "train" in splits
    sizes, taken = Counter(outlines), Counter(held)
    if len(outlines) > 1 and fraction > 0:
        assert held
    for stratum, size in sizes.items():
        assert taken[stratum] <= fraction * size + 1
        if size > 1:
            assert taken[stratum] >= int(fraction * size) - 1
    assert splits == assign_splits(outlines, fraction, seed)


def test_six_operators_of_fifty_give_five_each():
    outlines = [EpisodeOutline("", 1, "Lift", f"operator_{i % 6}") for i in range(300)]
    splits = assign_splits(outlines, 0.1, 0)
    held = [item.label for item, split in zip(outlines, splits, strict=True) if split != "train"]
    assert set(Counter(held).values()) == {5}
    assert splits != assign_splits(outlines, 0.1, 1)


def test_the_sources_own_split_goes_first():
    outlines = [
        EpisodeOutline("", 1, split=split) for split in ("train", "", "validation", "train")
    ]
    assert assign_splits(outlines, 0.5, 0) == ["train", "train", "validation", "train"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_that_leaves_one_side_empty_is_no_split(split):
    splits = assign_splits([EpisodeOutline("", 1, split=split)] * 10, 0.2, 0)
    assert Counter(splits) == {"train": 8, "validation": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(READERS))
def test_a_store_in_memory_equals_the_one_on_disk(make_sample, tmp_path, name):
    sample = make_sample(name, tmp_path / "source")
    paths = [sample.path]
    config = IngestConfig(format=name, max_episodes=9, seed=3, **sample.options)
    with open_source(name, paths, config) as source:
        memory, first = ingest(source, config, None, SilentProgress())
        disk, second = ingest(source, config, tmp_path / "snippets.zarr", SilentProgress())
    assert first == second
    assert memory.spec == disk.spec
    assert memory.episodes.source == disk.episodes.source
    np.testing.assert_array_equal(
        memory.read("action", 0, memory.steps), disk.read("action", 0, disk.steps)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["robomimic", "hdf5", "minari"])
def test_observations_are_stored_under_the_names_of_the_environment(make_sample, tmp_path, name):
    sample = make_sample(name, tmp_path / "source")
    config = IngestConfig(format=name, **sample.options)

    def store(**options):
        chosen = replace(config, **options)
        with open_source(name, [sample.path], chosen) as source:
            return ingest(source, chosen, None, SilentProgress())[0]

    plain = store()
    old, *others = [item.name for item in plain.spec.observations]
    renamed = store(rename=(f"{old}=robot state",))
    assert [item.name for item in renamed.spec.observations] == ["robot state", *others]
    assert renamed.spec.network_keys[:1] == ("robot state",) * (old in plain.spec.network_keys)
    for new, name_before in zip(["robot state", *others], [old, *others], strict=True):
        np.testing.assert_array_equal(
            renamed.read(new, 0, renamed.steps), plain.read(name_before, 0, plain.steps)
        )
    for text, match in (
        (old, "is not of the form OLD=NEW"),
        (f"{old}=", "is not of the form OLD=NEW"),
        (f"{old}=a,{old}=b", f"'{old}' is given twice"),
        (f"{old}x=state", f"no observation is called '{old}x'"),
    ):
        with pytest.raises(DataError, match=match):
            store(rename=tuple(text.split(",")))
    for other in others[:1]:
        with pytest.raises(DataError, match=f"two observations would be called '{other}'"):
            store(rename=(f"{old}={other}",))
        swapped = store(rename=(f"{old}={other}", f"{other}={old}"))
        np.testing.assert_array_equal(
            swapped.read(other, 0, swapped.steps), plain.read(old, 0, plain.steps)
        )


def test_relative_targets_follow_the_observation_that_is_renamed(make_sample, tmp_path):
    sample = make_sample("pusht", tmp_path / "source")
    config = IngestConfig(format="pusht", rename=("agent_position=hand",), **sample.options)
    with open_source("pusht", [sample.path], config) as source:
        assert source.spec.action.reference == "hand"


@pytest.mark.parametrize(
    "options", [{"drop": ("agent_position",)}, {"observation_keys": ("keypoint",)}]
)
def test_targets_without_the_position_that_they_command_are_stored(make_sample, tmp_path, options):
    config = IngestConfig(**options)
    with open_source("pusht", (make_sample("pusht", tmp_path).path,), config) as source:
        store, _ = ingest(source, config)
        assert [item.values for item in source.findings if item.check == "reference"] == [
            {"key": "agent_position"}
        ]
    assert store.spec.action.reference == ""


def test_a_path_within_a_file_and_an_equals_sign_can_be_renamed():
    spec = replace(
        Made([], MOTIONS).spec, observations=(ObservationSpec("a.b", 2), ObservationSpec("c=d", 1))
    )
    renamed, names = with_renames(spec, ("a/b=x", "c=d=y"))
    assert names == {"a.b": "x", "c=d": "y"}
    assert [item.name for item in renamed.observations] == ["x", "y"]


class Made:
    """A source of made episodes, with the attributes that `ingest` uses."""

    def __init__(self, episodes, action, findings=()):
        self.paths = [Path("made.npz")]
        self.recognized_by = [""]
        self._episodes = list(episodes)
        self.findings = list(findings)
        self.reads = 0
        self.episodes = [EpisodeOutline(item.source, item.length) for item in self._episodes]
        self.spec = SourceSpec(
            (ObservationSpec("observation", 3),),
            action,
            EnvSpec("", ("reach",), {}, 50),
            (),
            "robomimic",
        )

    def read(self, index):
        self.reads += 1
        return self._episodes[index]

    def succeeded(self, index):
        return self._episodes[index].success

    def step_limit(self, left_out):
        return self.spec.env.max_steps


def walks(count: int, steps: int = 20, **fields) -> list[Episode]:
    """Random walks whose actions are their steps."""
    found = []
    for index in range(count):
        walk = np.random.default_rng(index).normal(0, 0.2, (steps, 3)).cumsum(axis=0)
        walk = walk.astype(np.float32)
        actions = np.diff(walk, axis=0, append=walk[-1:])
        found.append(Episode(f"walk {index}", {"observation": walk}, actions, **fields))
    return found


MOTIONS = ActionSpec(3, "delta", "normalized", (-1.0,) * 3, (1.0,) * 3)
UNLIMITED = ActionSpec(3, "delta", "meters", (), (), limits="")
NAMED = {"format": "robomimic"}


class Recorder(SilentProgress):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def stored(store: SnippetStore) -> dict[str, np.ndarray]:
    table = store.episodes
    return {name: store.episode(row).actions for row, name in enumerate(table.source)}


def test_limits_that_nobody_gives_come_from_the_data_with_a_margin(tmp_path):
    episodes, progress = walks(10), Recorder()
    store, summary = ingest(
        Made(episodes, UNLIMITED), IngestConfig(**NAMED), tmp_path / "snippets.zarr", progress
    )
    action = SnippetStore.open(tmp_path / "snippets.zarr").spec.action
    actions = np.concatenate([item.actions for item in episodes])
    low, high = actions.min(axis=0), actions.max(axis=0)
    assert action.limits == summary["action"]["limits"] == "data"
    np.testing.assert_allclose(action.low, low - 0.05 * (high - low), rtol=1e-5)
    np.testing.assert_allclose(action.high, high + 0.05 * (high - low), rtol=1e-5)
    assert store.spec.action == action
    assert any("the recorded range with a margin of 5%" in text for text in progress.messages)


def test_values_outside_the_limits_stop_and_every_hint_works(tmp_path):
    episodes = walks(10)
    actions = episodes[4].actions.copy()
    actions[7, 1] = 4
    episodes[4] = replace(episodes[4], actions=actions)

    def run(**config):
        config = IngestConfig(**NAMED, **config)
        return ingest(Made(episodes, MOTIONS), config, None, SilentProgress())

    with pytest.raises(DataError, match=r"made.npz: 0.17% .* largest excess is 3, of component 1"):
        run()
    clipped, _ = run(clip_actions=True)
    assert stored(clipped)["walk 4"][7].tolist() == [actions[7, 0], 1, actions[7, 2]]
    np.testing.assert_array_equal(stored(clipped)["walk 5"], episodes[5].actions)
    widened, _ = run(action_limits="data")
    assert stored(widened)["walk 4"][7, 1] == 4
    assert widened.spec.action.high[1] > 4
    given, _ = run(action_limits="-5,5")
    assert (given.spec.action.high, given.spec.action.limits) == ((5.0,) * 3, "option")


def test_targets_called_motions_stop_and_the_hint_works():
    targets = [
        replace(item, actions=np.concatenate([item.observations["observation"][1:],
                item.observations["observation"][-1:]]))
        for item in walks(10)
    ]  # fmt: skip
    wide = replace(MOTIONS, low=(-9.0,) * 3, high=(9.0,) * 3)
    with pytest.raises(DataError, match="3 follow the position reached next") as caught:
        ingest(Made(targets, wide), IngestConfig(**NAMED), None, SilentProgress())
    assert caught.value.hint == "--actions recorded-absolute"
    config = IngestConfig(**NAMED, actions="recorded-absolute")
    store, _ = ingest(Made(targets, wide), config, None, SilentProgress())
    assert (store.spec.action.semantics, store.spec.action.limits) == ("absolute", "data")


def test_of_several_errors_the_first_is_told_and_the_others_counted():
    findings = [Finding("one", "error", "is odd", "made.npz: obs", "--drop obs"),
                Finding("two", "error", "is odd as well")]  # fmt: skip
    source = Made(walks(3), MOTIONS, findings)
    with pytest.raises(DataError) as caught:
        ingest(source, IngestConfig(**NAMED), None, SilentProgress())
    assert caught.value.message == "made.npz: obs: is odd (and 1 more: lwdctl inspect made.npz)"
    assert caught.value.hint == "--drop obs"
    assert source.reads == 0


def test_a_large_file_fails_early():
    episodes = [replace(item, actions=item.actions + 3) for item in walks(200)]
    source = Made(episodes, MOTIONS)
    with pytest.raises(DataError, match="outside the limits"):
        ingest(source, IngestConfig(**NAMED), None, SilentProgress())
    assert source.reads == 50


def test_only_successful_episodes_are_kept_and_counted():
    episodes = [
        replace(item, success=(True, False, None)[index % 3])
        for index, item in enumerate(walks(12))
    ]
    config = IngestConfig(**NAMED, only_successful=True)
    progress = Recorder()
    store, summary = ingest(Made(episodes, MOTIONS), config, None, progress)
    assert sorted(store.episodes.source) == ["walk 0", "walk 3", "walk 6", "walk 9"]
    assert (summary["success"], summary["episodes"]) == (1, 4)
    assert any("8 of 12 episodes are left out: 4 failed" in text for text in progress.messages)
    source = Made(episodes, MOTIONS)
    few, _ = ingest(source, replace(config, max_episodes=3), None, progress)
    assert len(few.episodes) == source.reads == 3


@pytest.mark.parametrize(("success", "reason"), [(None, "does not say"), (False, "no successful")])
def test_only_successful_needs_a_successful_episode(success, reason):
    source = Made(walks(3, success=success), MOTIONS)
    with pytest.raises(DataError, match=reason) as caught:
        ingest(source, IngestConfig(**NAMED, only_successful=True), None, SilentProgress())
    assert caught.value.hint == "leave --only-successful out"


def test_rows_of_zeros_are_not_stored():
    first, second, *others = walks(5)
    rows = np.concatenate([first.observations["observation"], np.zeros((9, 3), np.float32)])
    actions = np.concatenate([first.actions, np.zeros((9, 3), np.float32)])
    first = replace(first, observations={"observation": rows}, actions=actions)
    zeros = np.zeros((20, 3), np.float32)
    second = replace(
        second, source="rows 20:40", observations={"observation": zeros}, actions=zeros
    )
    source = Made([first, second, *others], MOTIONS)
    store, summary = ingest(source, IngestConfig(**NAMED), None, SilentProgress())
    assert len(stored(store)["walk 0"]) == 20
    assert "rows 20:40" not in store.episodes.source
    assert (summary["dropped_episodes"], summary["length"]["maximum"]) == (1, 20)


@pytest.mark.parametrize("name", ["action", "reward", "action_relative"])
def test_an_observation_cannot_be_renamed_to_a_column_of_the_store(name):
    spec = Made(walks(1), MOTIONS).spec
    with pytest.raises(
        DataError, match=f"--rename: no observation may be called '{name}'"
    ) as caught:
        with_renames(spec, (f"observation={name}",))
    again = caught.value.hint.rpartition("--rename ")[2]
    assert [item.name for item in with_renames(spec, (again,))[0].observations] == [
        f"observed_{name}"
    ]


def test_episodes_of_zero_padding_count_for_nothing():
    episodes, zeros = walks(8), np.zeros((20, 3), np.float32)
    for index, item in enumerate(episodes):
        name = "abc"[index % 3]
        empty = {"observations": {"observation": zeros}, "actions": zeros}
        rows = empty if name == "c" or index == 0 else {}
        source = f"rows {20 * index}:{20 * index + 20}"
        episodes[index] = replace(item, source=source, task=f"task {name}", label=name, **rows)

    def run(**options):
        source = Made(episodes, MOTIONS)
        source.episodes = [EpisodeOutline(e.source, e.length, e.task, e.label) for e in episodes]
        env = EnvSpec("", ("task a", "task b", "task c"), {}, 50)
        source.spec = replace(source.spec, env=env, labels=("a", "b", "c"))
        progress = Recorder()
        return *ingest(source, IngestConfig(**NAMED, **options), None, progress), progress.messages

    store, summary, lines = run(validation_fraction=0.4)
    assert (store.spec.env.tasks, store.spec.labels) == (("task a", "task b"), ("a", "b"))
    assert (summary["episodes"], summary["dropped_episodes"]) == (5, 3)
    assert sum("3 episodes hold nothing but zeros" in line for line in lines) == 1
    assert len(store.episodes.of_split("validation")) == 2
    assert run(max_episodes=4)[1]["episodes"] == 4
    assert run(max_per_label=2)[1]["episodes_by_label"] == {"a": 2, "b": 2}
    episodes = [item for item in episodes if item.label == "c"]
    with pytest.raises(DataError, match="every episode has only zeros"):
        run()


def test_rewards_without_a_number_stop_or_leave_the_episode_out():
    episodes = walks(4, rewards=np.ones(20, np.float32))
    rewards = np.ones(20, np.float32)
    rewards[6] = np.nan
    episodes[2] = replace(episodes[2], rewards=rewards)
    with pytest.raises(DataError, match="walk 2: rewards, row 6: value is nan") as caught:
        ingest(Made(episodes, MOTIONS), IngestConfig(**NAMED), None, SilentProgress())
    assert "--on-nan drop" in caught.value.hint
    config = IngestConfig(**NAMED, on_nan="drop")
    store, _ = ingest(Made(episodes, MOTIONS), config, None, SilentProgress())
    assert sorted(store.episodes.source) == ["walk 0", "walk 1", "walk 3"]


def test_broken_episodes_that_are_left_out_count_for_nothing():
    episodes = walks(9)
    for index, item in enumerate(episodes):
        name = "abc"[index % 3]
        rows = item.actions.copy()
        rows[3, 1] = np.nan if name == "c" or index == 0 else 0
        episodes[index] = replace(item, actions=rows, task=f"task {name}", label=name)

    def run(**options):
        source = Made(episodes, MOTIONS)
        source.read = lambda index: replace(
            episodes[index], actions=finite_rows(episodes[index].actions, "made.npz")
        )
        source.episodes = [EpisodeOutline(e.source, e.length, e.task, e.label) for e in episodes]
        env = EnvSpec("", ("task a", "task b", "task c"), {}, 50)
        source.spec = replace(source.spec, env=env, labels=("a", "b", "c"))
        return ingest(source, IngestConfig(**NAMED, on_nan="drop", **options), None, Recorder())

    store, summary = run(validation_fraction=0.4)
    assert (store.spec.env.tasks, store.spec.labels) == (("task a", "task b"), ("a", "b"))
    assert (summary["episodes"], summary["dropped_episodes"]) == (5, 4)
    held = Counter(store.spec.labels[store.episodes.label[row]]
                   for row in store.episodes.of_split("validation"))  # fmt: skip
    assert held == {"a": 1, "b": 1}
    assert run(max_episodes=4)[1]["episodes"] == 4
    assert run(max_per_label=2)[1]["episodes_by_label"] == {"a": 2, "b": 2}


@pytest.mark.parametrize(("limits", "reads"), [("oops", 0), ("-0.01,0.01", 50)])
def test_errors_stop_a_source_early_also_where_broken_episodes_are_left_out(limits, reads):
    source, count = Made(walks(80), MOTIONS), Counter()
    read = source.read

    def counted(index):
        count["reads"] += 1
        return read(index)

    source.read = counted
    config = IngestConfig(**NAMED, on_nan="drop", action_limits=limits)
    with pytest.raises((ConfigError, DataError)):
        ingest(source, config, None, SilentProgress())
    assert count["reads"] == reads


def test_episodes_that_are_left_out_do_not_set_the_step_limit(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "walks.npz"
    ends = np.array([12, 32, 42, 72, 86])  # lengths 12, 20, 10, 30, 14
    rows = rng.normal(size=(86, 3)).cumsum(axis=0)
    actions = rng.normal(size=(86, 2))
    actions[50] = np.nan
    rows[12:32] = actions[12:32] = 0
    np.savez(path, state=rows, action=actions, ends=ends)

    def limit(outside=None, **options):
        keys = {"observation_keys": ("state",), "action_key": "action", "episode_ends": "ends"}
        config = IngestConfig(format="npz", on_nan="drop", **keys, **options)
        with open_source("npz", [path], config) as source:
            assert source.spec.env.max_steps == options.get("max_steps", 30)
            if outside:
                env = replace(source.spec.env, max_steps=outside)
                source.spec = replace(source.spec, env=env)
            store, _ = ingest(source, config, None, SilentProgress())
        return store.spec.env.max_steps

    assert limit() == 14
    assert limit(max_steps=25) == 25
    assert limit(outside=30) == 30


def test_the_step_limit_of_the_option_is_stored():
    config = IngestConfig(**NAMED, max_steps=20)
    store, _ = ingest(Made(walks(4, 30), MOTIONS), config, None, SilentProgress())
    assert store.spec.env.max_steps == 20


def test_the_report_lies_beside_the_store(tmp_path):
    odd = Finding("left-out", "note", "the key 'camera' is left out: images", "made.npz")
    source = Made(walks(6, label=""), MOTIONS, [odd])
    ingest(source, IngestConfig(**NAMED), tmp_path / "snippets.zarr", SilentProgress())
    report = json.loads((tmp_path / INGEST_REPORT).read_text())
    assert report["format"] == "robomimic"
    assert report["files"] == [{"path": "made.npz", "recognized_by": ""}]
    assert [item["check"] for item in report["findings"]] == ["left-out", "semantics"]
    assert report["findings"][0]["where"] == "made.npz"
    assert report["statistics"]["steps"] == 120
    assert report["statistics"]["action"]["limits"] == "environment"


def all_arrays(store: SnippetStore) -> dict[str, bytes]:
    return {
        name: array[...].tobytes()
        for name, array in store._group.members(max_depth=None)
        if isinstance(array, zarr.Array)
    }


def reference(column: np.ndarray) -> list[float]:
    """Mean, squared distances from it, minimum and maximum, without any of our code."""
    mean = sum(map(Fraction, column.tolist())) / len(column)
    m2 = sum((Fraction(value) - mean) ** 2 for value in column.tolist())
    return [float(mean), float(m2), float(column.min()), float(column.max())]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"clip_actions": True}, {"action_limits": "data"}])
@pytest.mark.parametrize("relative", ["", "observation"])
def test_sums_that_the_checks_made_are_those_of_the_store(options, relative):
    """They are made once: statistics of a clipped action are not those of the recorded one."""
    action = replace(MOTIONS, semantics="absolute", reference=relative)
    rng = np.random.default_rng(0)
    drawn = (rng.uniform(-1, 1, (20, 3)).astype(np.float32) for _ in range(6))
    episodes = [replace(item, actions=rows) for item, rows in zip(walks(6), drawn, strict=True)]
    if options:
        episodes[2].actions[7, 1] = 4
    store, _ = ingest(
        Made(episodes, action),
        IngestConfig(**NAMED, validation_fraction=0, **options),
        None,
        SilentProgress(),
    )
    writer = SnippetWriter(None, store.spec)
    order = [store.episode(index) for index in range(6)]
    for item in order:
        writer.append(item)
    writer.close()
    assert all_arrays(store) == all_arrays(SnippetStore.written_by(writer))
    index = store.episodes.source.index("walk 2")
    found = [
        store._group[f"statistics/action/{name}"][index, 1]
        for name in ("mean", "m2", "minimum", "maximum")
    ]
    clipped = np.clip(episodes[2].actions, -1, 1) if "clip_actions" in options else None
    actions = episodes[2].actions if clipped is None else clipped
    np.testing.assert_allclose(found, reference(actions[:, 1]), rtol=1e-12)
