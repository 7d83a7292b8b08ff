from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.artifacts.zarr_columns import EPISODE_CHUNK, STEP_CHUNK
from lwdctl.core.errors import ArtifactError, DataError
from lwdctl.core.records import Episode, ObservationSpec, SourceSpec


def write(path, spec: SourceSpec, episodes: list[Episode]) -> SnippetStore:
    writer = SnippetWriter(path, spec)
    for item in episodes:
        writer.append(item)
    writer.close()
    return SnippetStore.open(path)


def test_no_label_is_never_the_only_one_and_no_seed_wraps(tmp_path, spec, episode):
    spec = replace(spec, labels=("expert",), env=replace(spec.env, tasks=("push",)))
    episodes = [
        episode(2, 0, label="expert", task="push", seed=2**63 + 5),
        episode(2, 1, label="", task="", seed=2**63 - 1),
    ]
    table = write(tmp_path / "snippets.zarr", spec, episodes).episodes
    assert table.label.tolist() == [0, -1]
    assert table.task.tolist() == [0, 0]
    assert table.seed.tolist() == [-1, 2**63 - 1]


def test_an_action_without_limits_gets_those_of_the_data(tmp_path, spec, episode):
    spec = replace(spec, action=replace(spec.action, low=(), high=(), limits=""))
    episodes = [episode(4, 0), episode(3, 1)]
    action = write(tmp_path / "snippets.zarr", spec, episodes).spec.action
    values = np.concatenate([item.actions for item in episodes])
    low, high = values.min(axis=0), values.max(axis=0)
    assert action.limits == "data"
    np.testing.assert_allclose(action.low, low - 0.05 * (high - low), rtol=1e-6)
    np.testing.assert_allclose(action.high, high + 0.05 * (high - low), rtol=1e-6)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_everything_comes_back(tmp_path, spec, episode, where):
    final = {"agent": np.array([1, 2], np.float32), "object": np.array([3, 4, 5], np.float32)}
    state = np.array([1.0, np.pi])
    episodes = [
        episode(3, 0, rewards=np.arange(3, dtype=np.float32)),
        episode(1, 1, rewards=np.ones(1, np.float32), task="pull", label="poor", seed=7,
                split="validation", success=True, initial_state=state, model="<a/>",
                final_observation=final),
        episode(5, 2, rewards=np.zeros(5, np.float32), success=False, model="<b/>", label=""),
        episode(2, 3, rewards=np.zeros(2, np.float32), model="<a/>", initial_state=state[:1]),
    ]  # fmt: skip
    if where == "disk":
        store = write(tmp_path / "snippets.zarr", spec, episodes)
        assert len(list((tmp_path / "models").iterdir())) == 2
    else:
        store = SnippetStore.in_memory(episodes, spec)
    assert store.spec == spec
    assert (store.steps, len(store.episodes), store.has_rewards) == (11, 4, True)
    table = store.episodes
    assert table.source == ("demo_0", "demo_1", "demo_2", "demo_3")
    assert table.start.tolist() == [0, 3, 4, 9]
    assert table.length.tolist() == [3, 1, 5, 2]
    assert table.task.tolist() == [0, 1, 0, 0]
    assert table.label.tolist() == [0, 1, -1, 0]
    assert table.split.tolist() == [0, 1, 0, 0]
    assert table.success.tolist() == [-1, 1, 0, -1]
    assert table.seed.tolist() == [-1, 7, -1, -1]
    assert (table.start.dtype, table.task.dtype, table.split.dtype) == (np.int64, np.int32, np.int8)
    for index, item in enumerate(episodes):
        start, stop = table.start[index], table.start[index] + item.length
        for key, value in item.observations.items():
            np.testing.assert_array_equal(store.read(key, start, stop), value)
        np.testing.assert_array_equal(store.read("action", start, stop), item.actions)
        np.testing.assert_array_equal(store.read("reward", start, stop)[:, 0], item.rewards)
    states = [store.initial_state(index) for index in range(4)]
    assert states[0] is None
    assert states[2] is None
    np.testing.assert_array_equal(states[1], state)
    np.testing.assert_array_equal(states[3], state[:1])
    assert [store.model(index) for index in range(4)] == ["", "<a/>", "<b/>", "<a/>"]
    assert store.final_observation(0) is None
    for key, value in store.final_observation(1).items():
        np.testing.assert_array_equal(value, final[key])


def test_episodes_across_chunk_borders_come_back(tmp_path, spec, episode):
    lengths = [STEP_CHUNK - 1, 2, 2 * STEP_CHUNK + 5, STEP_CHUNK, 1]
    episodes = [episode(length, seed) for seed, length in enumerate(lengths)]
    writer = SnippetWriter(tmp_path / "snippets.zarr", spec)
    for item in episodes:
        writer.append(item)
    counts = writer.close()
    store = SnippetStore.open(tmp_path / "snippets.zarr")
    # The last chunk is whole, but not full: what is counted are the steps.
    assert counts["steps"] == store.steps == sum(lengths)
    together = np.concatenate([item.observations["object"] for item in episodes])
    np.testing.assert_array_equal(store.read("object", 0, store.steps), together)
    border = store.features(("object", "agent"), STEP_CHUNK - 3, STEP_CHUNK + 3)
    assert border.shape == (6, 5)
    np.testing.assert_array_equal(border[:, :3], together[STEP_CHUNK - 3 : STEP_CHUNK + 3])


@pytest.mark.parametrize("split", ["all", "train", "validation"])
def test_moments_equal_numpy_and_read_no_step(tmp_path, spec, episode, split):
    kinds = ("train", "validation", "train")
    episodes = [
        episode(length, length, split=kind)
        for length, kind in zip((700, 1, 300), kinds, strict=True)
    ]
    store = write(tmp_path / "snippets.zarr", spec, episodes)
    chosen = [item for item in episodes if split in ("all", item.split)]
    for key in ("agent", "object", "action"):  # statistics alone must do
        where = "action" if key == "action" else f"observation/{key}"
        chunks = list((tmp_path / "snippets.zarr" / where).glob("c.*"))
        assert chunks
        for chunk in chunks:
            chunk.unlink()
    rows = np.concatenate(
        [np.hstack([one.observations["object"], one.actions]) for one in chosen]
    ).astype(np.float64)
    found = store.moments(("object", "action"), split)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, rows.var(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(found.minimum, rows.min(axis=0))
    np.testing.assert_array_equal(found.maximum, rows.max(axis=0))
    moved = np.concatenate([one.actions - one.observations["agent"] for one in chosen])
    relative = store.moments(("action_relative",), split)
    np.testing.assert_allclose(relative.mean, moved.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(relative.deviation, moved.astype(np.float64).std(axis=0), rtol=1e-9)


def test_moments_of_a_constant_far_from_zero_have_no_variance(tmp_path, spec, episode):
    constant = {"agent": np.full((50, 2), 1e6, np.float32), "object": np.zeros((50, 3), np.float32)}
    episodes = [episode(50, seed, observations=constant) for seed in range(3)]
    store = write(tmp_path / "snippets.zarr", spec, episodes)
    assert store.moments(("agent",)).variance.tolist() == [0, 0]


def test_an_empty_split_and_a_missing_reference_are_refused(tmp_path, spec, episode):
    plain = replace(spec, action=replace(spec.action, reference=""))
    store = write(tmp_path / "snippets.zarr", plain, [episode(3)])
    with pytest.raises(ArtifactError, match="no episodes in the split 'validation'"):
        store.moments(("agent",), "validation")
    with pytest.raises(ArtifactError, match="action_relative"):
        store.moments(("action_relative",))


@pytest.mark.parametrize("store", ["snippets.zarr", "no/such/path"])
def test_opening_a_missing_path_creates_nothing(tmp_path, store):
    with pytest.raises(ArtifactError, match="there is no"):
        SnippetStore.open(tmp_path / store)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_not_closed_is_refused(tmp_path, spec, episode):
    SnippetWriter(tmp_path / "snippets.zarr", spec).append(episode(3))
    with pytest.raises(ArtifactError, match="not written to its end"):
        SnippetStore.open(tmp_path / "snippets.zarr")


def test_a_store_is_not_written_over(tmp_path, spec, episode):
    write(tmp_path / "snippets.zarr", spec, [episode(3)])
    with pytest.raises(ArtifactError, match="exists already"):
        SnippetWriter(tmp_path / "snippets.zarr", spec)


def test_unknown_keys_and_rows_are_refused(tmp_path, spec, episode):
    store = write(tmp_path / "snippets.zarr", spec, [episode(3)])
    for key in ("agnet", "reward"):
        with pytest.raises(ArtifactError, match=key):
            store.read(key, 0, 1)
    for start, stop in ((0, 4), (-1, 2), (2, 1)):
        with pytest.raises(ArtifactError, match="has 3 rows"):
            store.read("agent", start, stop)


def _with(value: float, length: int) -> np.ndarray:
    values = np.zeros((length, 2), np.float32)
    values[1, 0] = value
    return values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actions": np.zeros((4, 2), np.float32)}, r"agent has shape \(3, 2\), not \(4, 2\)"),
        ({"actions": np.zeros((3, 5), np.float32)}, r"action has shape \(3, 5\)"),
        ({"actions": np.zeros((0, 2), np.float32)}, "no steps"),
        ({"actions": _with(np.nan, 3)}, "action has NaN or infinity in row 1"),
        ({"actions": _with(np.inf, 3)}, "action has NaN or infinity in row 1"),
        ({"observations": {"agent": np.zeros((3, 2), np.float32)}}, "'object' is missing"),
        ({"rewards": np.zeros(3, np.float32)}, "some episodes have rewards"),
        ({"task": "fly"}, "task 'fly' is not among push, pull"),
        ({"label": "odd"}, "label 'odd'"),
        ({"final_observation": {"agent": np.zeros(2), "object": np.zeros(2)}}, "final object has"),
        ({"split": "test"}, "unknown split 'test'"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_by_name(tmp_path, spec, episode, fields, message):
    writer = SnippetWriter(tmp_path / "snippets.zarr", spec)
    writer.append(episode(3))
    with pytest.raises(DataError, match=f"demo_9: .*{message}|demo_9.*{message}"):
        writer.append(episode(3, 9, **fields))
    writer.append(episode(2, 1))
    assert writer.close()["steps"] == 5
    assert SnippetStore.open(tmp_path / "snippets.zarr").episodes.length.tolist() == [3, 2]


@pytest.mark.parametrize("names", [("arm", "arm/q"), ("arm/q", "arm"), ("action/mean", "arm")])
def test_names_that_lie_in_each_other_are_refused_before_anything_is_written(tmp_path, spec, names):
    observations = tuple(ObservationSpec(name, 1) for name in names)
    with pytest.raises(DataError, match="an array of the snippet store that holds") as caught:
        SnippetWriter(tmp_path / "a.zarr", replace(spec, observations=observations))
    assert "--rename" in caught.value.hint
    assert not (tmp_path / "a.zarr").exists()


def test_no_episode_at_all_is_refused(tmp_path, spec):
    with pytest.raises(DataError, match="no episodes"):
        SnippetWriter(tmp_path / "snippets.zarr", spec).close()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path, spec, episode):
    writer = SnippetWriter(tmp_path / "snippets.zarr", spec)
    one = episode(200)

    def append(count: int) -> int:
        for _ in range(count):
            writer.append(one)
        return tracemalloc.get_traced_memory()[0]

    growth, peaks = [], []
    tracemalloc.start()
    try:
        before = append(EPISODE_CHUNK // 2)
        for _ in range(2):  # Python may enlarge its table of interned strings during one of them
            tracemalloc.reset_peak()
            after = append(EPISODE_CHUNK)
            growth.append(after - before)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
            before = after
    finally:
        tracemalloc.stop()
    data = EPISODE_CHUNK * 200 * (2 + 3 + 2) * 4
    assert min(growth) < data / 20
    assert min(peaks) < data / 2
    assert writer.close()["episodes"] == EPISODE_CHUNK * 5 // 2
