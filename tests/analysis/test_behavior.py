"""Trajectories of source and policies: equal numbers, the same steps, the same code."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.analysis import behavior, divergence
from lwdctl.analysis.behavior import baseline_rules, compose, summarize, trajectory_table
from lwdctl.analysis.sections import Findings
from lwdctl.analysis.trajectories import (
    CONTACTS,
    SOURCE,
    SOURCE_VS_SOURCE,
    Trajectory,
    behavior_measures,
    compare_behaviors,
    draw_equally,
    source_trajectories,
)
from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.core.errors import ArtifactError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.envs.simulator import BehaviorMeasure
from lwdctl.evaluation.results import Condition, Estimate

FEET = ("contact_bfoot", "contact_ffoot")
SPEC = SourceSpec(
    (ObservationSpec("observation", 17),),
    ActionSpec(6, "torque", "normalized", (-1.0,) * 6, (1.0,) * 6),
    EnvSpec("mujoco", ("HalfCheetah-v4",), {}, 1000),
    ("fast", "slow"),
    "made",
)


def measure_of(names):
    return BehaviorMeasure(lambda observations: {}, tuple(names), fractions=True)


MEASURES = dict.fromkeys(("", "reach", "push"), measure_of(FEET))


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(divergence, "DRAWS", 60)


def made(group, behavior, count, center, seed=0, failure=""):
    rng = np.random.default_rng(seed)
    points = np.clip(rng.normal(center, 0.03, size=(count, 2)), 0, 1)
    return [
        Trajectory(
            group,
            behavior,
            f"episode {index}",
            {
                "steps": 100.0,
                "return": float(rng.normal(10, 1)),
                **dict(zip(FEET, row, strict=True)),
            },
            failure,
        )
        for index, row in enumerate(points.tolist())
    ]


@pytest.mark.parametrize(
    ("magnitudes", "names"),
    [
        ((0.0, 0.05), ["dp p0", "dp p0.05"]),
        ((0.1234561, 0.1234564), ["dp p0.1234561", "dp p0.1234564"]),
    ],
)
def test_every_condition_of_an_evaluation_has_a_name(magnitudes, names):
    rows = [Condition("dp", "", "toyland", perturbation=one) for one in magnitudes]
    assert list(behavior._named([SimpleNamespace(overall=row) for row in rows])) == names


def test_as_many_trajectories_of_every_group():
    groups = {SOURCE: made(SOURCE, "fast", 30, 0.3), "mlp": made("mlp", "fast", 7, 0.3)}
    drawn = draw_equally(groups, "fast", 0)
    assert {name: len(items) for name, items in drawn.items()} == {SOURCE: 7, "mlp": 7}
    assert drawn["mlp"] == groups["mlp"]
    assert drawn[SOURCE] == draw_equally(groups, "fast", 0)[SOURCE]
    assert drawn[SOURCE] != draw_equally(groups, "fast", 1)[SOURCE]


def test_the_papers_rule_is_the_mean_of_the_baseline_and_ours_the_end_of_its_interval():
    def rules(value):
        baseline = Estimate(0.1, 0.05, 0.2, 20)
        divergences = {SOURCE_VS_SOURCE: baseline, "policy": replace(baseline, value=value)}
        assert set(baseline_rules(divergences, SOURCE_VS_SOURCE).values()) == {None}
        return baseline_rules(divergences, "policy")

    assert rules(0.1) == {"below_baseline_mean": True, "within_baseline": True}
    assert rules(0.15) == {"below_baseline_mean": False, "within_baseline": True}
    assert rules(0.25) == {"below_baseline_mean": False, "within_baseline": False}


@pytest.mark.slow
def test_a_policy_that_behaves_alike_is_inside_and_another_is_not():
    trajectories = [
        *made(SOURCE, "fast", 40, (0.3, 0.6)),
        *made("alike", "fast", 20, (0.3, 0.6), seed=1),
        *made("other", "fast", 25, (0.8, 0.2), seed=2, failure="it fell apart"),
        *made(SOURCE, "slow", 40, (0.5, 0.5)),
    ]
    (compared,) = compare_behaviors(trajectories, MEASURES, 0, SilentProgress())
    assert compared.behavior == "fast"
    assert compared.count == 20
    assert {len(items) for items in compared.groups.values()} == {20}
    found = compared.divergences[CONTACTS]
    assert {one.n for one in found.values()} == {20}
    summary = summarize([compared])["fast"]
    assert summary["alike"]["within_baseline"]
    assert not summary["other"]["within_baseline"]
    assert not summary["other"]["below_baseline_mean"]
    assert summary["other"]["js"] == pytest.approx(np.log(2), abs=1e-3)
    assert set(summary[SOURCE_VS_SOURCE]) == {"js", "js_low", "js_high", "js_set_size"}
    assert compared.differences["other"]["contact_bfoot"].low > 0.4
    mean = compared.statistics["alike"]["return"].mean
    assert mean.low < mean.value < mean.high
    sections = list(compose([compared], 100))
    assert set(Findings("", sections).figures) == {"returns", "contacts", "divergence"}
    assert [s.title for s in sections][:2] == ["What was compared", "Returns"]
    assert [row[-1] for row in sections[0].table.rows] == [0, 0, 20]
    rows = trajectory_table(trajectories, [compared]).to_csv().splitlines()
    assert len(rows) == 1 + len(trajectories)
    assert sum(line.split(",")[4] == "1" for line in rows) == 60


def test_episodes_without_a_label_are_compared_with_all_of_the_source():
    trajectories = [
        *made(SOURCE, "fast", 20, 0.3),
        *made(SOURCE, "slow", 20, 0.5),
        *made("labeled", "slow", 8, 0.5),
        *made("unlabeled", "all", 12, 0.4),
    ]
    every, slow = compare_behaviors(trajectories, MEASURES, 0, SilentProgress())
    assert (every.behavior, slow.behavior) == ("all", "slow")
    assert set(every.groups) == {SOURCE, "labeled", "unlabeled"}
    assert {item.behavior for item in every.groups[SOURCE]} == {"fast", "slow"}
    assert set(slow.groups) == {SOURCE, "labeled"}


@pytest.mark.slow
@pytest.mark.parametrize(("feet", "panels"), [(1, 1), (4, 6)])
def test_one_foot_and_four_feet_have_their_panels(feet, panels):
    rng = np.random.default_rng(0)

    def with_feet(group, count):
        return [
            Trajectory(
                group,
                "fast",
                f"episode {index}",
                {"steps": 9.0, **{f"contact_{k}": float(rng.random()) for k in range(feet)}},
            )
            for index in range(count)
        ]

    trajectories = [*with_feet(SOURCE, 12), *with_feet("mlp", 6)]
    measures = {"": measure_of(f"contact_{k}" for k in range(feet))}
    (compared,) = compare_behaviors(trajectories, measures, 0, SilentProgress())
    assert compared.divergences[CONTACTS]["mlp"].value > 0
    sections = list(compose([compared], 0))
    figures = Findings("", sections).figures
    assert set(figures) == {"contacts", "divergence"}
    assert len(figures["contacts"].axes) == 2 * panels
    assert "cut to" not in sections[0].text


def test_too_few_trajectories_have_no_divergence_and_other_labels_no_comparison():
    few = [*made(SOURCE, "fast", 3, 0.3), *made("mlp", "fast", 3, 0.3)]
    (compared,) = compare_behaviors(few, MEASURES, 0, SilentProgress())
    assert compared.divergences == {}
    assert compared.count == 3
    other = [*made(SOURCE, "fast", 3, 0.3), *made("mlp", "slow", 3, 0.3)]
    with pytest.raises(ArtifactError, match="no trajectory of any behavior"):
        compare_behaviors(other, MEASURES, 0, SilentProgress())


@pytest.fixture
def store(tmp_path):
    """Cheetahs in the air, whose feet touch from the fourth observation on."""
    writer = SnippetWriter(tmp_path / "made.zarr", SPEC)
    for index in range(4):
        rows = np.zeros((8, 17), dtype=np.float32)
        rows[:3, 0], rows[3:, 0] = 0.5, -0.2
        writer.append(
            Episode(
                source=f"demo_{index}",
                observations={"observation": rows},
                actions=np.zeros((8, 6), dtype=np.float32),
                rewards=np.arange(8, dtype=np.float32),
                task="HalfCheetah-v4",
                label=SPEC.labels[index % 2],
                split="train",
                success=True,
            )
        )
    writer.close()
    return SnippetStore.open(tmp_path / "made.zarr")


def test_tasks_are_compared_each_with_its_own_source():
    def of(task, items):
        return [replace(item, task=task, behavior="all") for item in items]

    trajectories = [
        *of("reach", made(SOURCE, "", 20, 0.8)), *of("push", made(SOURCE, "", 20, 0.2, seed=1)),
        *of("reach", made("lwd", "", 20, 0.8, seed=2)),
    ]  # fmt: skip
    (one,) = compare_behaviors(trajectories, MEASURES, 0, SilentProgress())
    assert one.behavior == "all"
    difference = one.differences["lwd"]["contact_bfoot"]
    assert difference.low < 0 < difference.high
    trajectories += of("push", made("lwd", "", 20, 0.2, seed=3))
    both = compare_behaviors(trajectories, MEASURES, 0, SilentProgress())
    assert [item.behavior for item in both] == ["push", "reach"]
    assert all(abs(item.differences["lwd"]["contact_bfoot"].value) < 0.05 for item in both)


def test_one_trajectory_has_no_interval():
    trajectories = [*made(SOURCE, "fast", 3, 0.3), *made("lwd", "fast", 1, 0.5)]
    (one,) = compare_behaviors(trajectories, MEASURES, 0, SilentProgress())
    found, difference = one.statistics["lwd"]["return"], one.differences["lwd"]["return"]
    assert np.isfinite([found.mean.value, difference.value]).all()
    assert np.isnan([found.std, found.mean.low, found.mean.high, difference.low]).all()
    assert list(compose([one], 0))[1].table.cells()[1][4:] == ("–", "–", "–")


@pytest.mark.sim
def test_the_source_is_cut_to_the_steps_rollouts_had(store):
    task = behavior_measures(EnvSpec("mujoco", ("HalfCheetah-v4",)), ["HalfCheetah-v4"])
    whole = source_trajectories(store, 0, None, 0, SilentProgress(), task)
    assert len(whole) == 4
    # Rows 1 to 7 stand after an action; the observation after the last one is not recorded.
    assert whole[0].values == pytest.approx(
        {"steps": 8, "return": 28, "success": 1, "contact_bfoot": 5 / 7, "contact_ffoot": 5 / 7}
    )
    short = source_trajectories(store, 4, None, 0, SilentProgress(), task)
    assert short[0].values == pytest.approx(
        {"steps": 4, "return": 6, "contact_bfoot": 2 / 4, "contact_ffoot": 2 / 4}
    )
    assert {item.behavior for item in short} == {"fast", "slow"}
    few = source_trajectories(store, 4, 1, 0, SilentProgress(), task)
    assert sorted(item.behavior for item in few) == ["fast", "slow"]
    assert source_trajectories(store, 4, 1, 0, SilentProgress(), {}) == []
