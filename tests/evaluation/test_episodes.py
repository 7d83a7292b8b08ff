from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.records import ActionSpec, EnvSpec, SourceSpec
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.evaluation.episodes import plan_demonstrations, plan_episodes

ACTION = ActionSpec(1, "delta", "steps", (-1.0,), (1.0,))
ENV = EnvSpec("metaworld", ("reach", "drawer-open", "button-press"), {}, 500)


def test_every_task_gets_the_same_seeds():
    plans = plan_episodes(ENV, 4, seed=100_007)
    assert [plan.index for plan in plans] == list(range(12))
    for task in ENV.tasks:
        seeds = [plan.seed for plan in plans if plan.task == task]
        assert seeds == [100_007, 100_008, 100_009, 100_010]


def test_a_longer_plan_begins_with_the_shorter_one_for_every_task():
    def starts(count):
        return {(plan.task, plan.seed) for plan in plan_episodes(ENV, count)}

    assert starts(3) < starts(5)


def test_tasks_can_be_chosen_and_labels_given():
    plans = plan_episodes(ENV, 2, tasks=("button-press", "reach"), labels=("slow", "fast"))
    assert [(plan.task, plan.label, plan.seed) for plan in plans] == [
        (task, label, seed)
        for task in ("button-press", "reach")
        for label in ("slow", "fast")
        for seed in (100_000, 100_001)
    ]
    assert [plan.index for plan in plans] == list(range(8))


def test_a_seed_of_collection_is_refused():
    with pytest.raises(ConfigError, match="99999"):
        plan_episodes(ENV, 1, seed=EVALUATION_SEED_START - 1)


def test_an_unknown_task_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match="'drawer-close'") as caught:
        plan_episodes(ENV, 1, tasks=("reach", "drawer-close"))
    assert "'drawer-open'" in caught.value.hint


@pytest.fixture
def store():
    count = 12
    table = SimpleNamespace(
        task=np.arange(count) % 2, split=np.arange(count) // 6, label=np.arange(count) % 3
    )
    return SimpleNamespace(
        spec=SourceSpec((), ACTION, EnvSpec("fake", ("a", "b")), ("good", "bad"), "made"),
        episodes=table,
        initial_state=lambda i: None if i == 0 else np.array([float(i)]),
        model=lambda i: f"model {i}",
    )


def test_demonstrations_are_restored_without_repetition(store):
    plans = plan_demonstrations(store, 4)
    assert [plan.index for plan in plans] == list(range(8))
    assert [plan.task for plan in plans] == ["a"] * 4 + ["b"] * 4
    assert len({plan.demonstration for plan in plans}) == 8
    for plan in plans:
        assert plan.initial_state == [plan.demonstration]
        assert plan.model == f"model {plan.demonstration}"
        assert plan.demonstration % 2 == ("a", "b").index(plan.task)
        assert plan.demonstration != 0
        assert plan.label == ("good", "bad", "")[plan.demonstration % 3]
    assert [plan.seed for plan in plans[:4]] == [100_000, 100_001, 100_002, 100_003]


def test_no_more_demonstrations_than_there_are(store):
    assert len(plan_demonstrations(store, 50)) == 11


def test_demonstrations_of_a_split(store):
    plans = plan_demonstrations(store, 50, split="validation")
    assert sorted(plan.demonstration for plan in plans) == [6, 7, 8, 9, 10, 11]


def test_demonstrations_of_each_label(store):
    plans = plan_demonstrations(store, 2, labels=("bad", "good"))
    assert [(plan.task, plan.label) for plan in plans] == [
        ("a", "bad"), ("a", "bad"), ("a", "good"), ("b", "bad"), ("b", "bad"), ("b", "good"),
        ("b", "good"),
    ]  # fmt: skip
    assert len({plan.demonstration for plan in plans}) == 7


def test_the_draw_is_fixed_by_the_seed(store):
    def drawn(seed):
        return [plan.demonstration for plan in plan_demonstrations(store, 3, seed=seed)]

    assert drawn(100_000) == drawn(100_000)
    assert any(drawn(100_000) != drawn(seed) for seed in range(100_001, 100_006))


def test_a_source_without_initial_states_is_refused(store):
    store.initial_state = lambda _: None
    with pytest.raises(ArtifactError, match="'a'") as caught:
        plan_demonstrations(store, 1)
    assert "under the key initial_state" in caught.value.hint
    store.initial_state = lambda i: np.array([float(i)]) if i % 2 else None
    with pytest.raises(ArtifactError, match="'a'") as caught:
        plan_demonstrations(store, 1)
    assert "choose other --label, --task or --oracle-split" in caught.value.hint
