"""The comparison of policies: cells with intervals, paired tests, and unperturbed controls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lwdctl.analysis.cost_ratios import cost_ratios
from lwdctl.analysis.evaluations import Run, horizon_order
from lwdctl.analysis.pairing import SUCCESS, Group, align, group_runs, matrix
from lwdctl.analysis.references import Reference, choose_reference
from lwdctl.analysis.resample import (
    Values,
    difference_estimate,
    holm,
    mcnemar,
    mean_and_std,
    mean_estimate,
    paired_permutation,
    success_difference_estimate,
    success_estimate,
)
from lwdctl.analysis.results import Cell, Comparison, Control, PairedTest
from lwdctl.core.errors import ArtifactError
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.evaluation.results import ALL_TASKS, Estimate


def compare(
    runs: Sequence[Run], against: str = "", metric: str = "", progress: Progress | None = None
) -> Comparison:
    """Compare policies.

    Args:
        runs: What `read_runs` returned.
        against: Label or policy that the others are tested against; "" takes `lwd` if there.
        metric: Name of the score, or "" for the environment's first metric.
        progress: Where to report.

    Raises:
        ArtifactError: Runs to be paired met different initial states.
        ConfigError: An unknown metric or reference.
    """
    metric = metric or _first_metric(runs)
    reference = choose_reference(runs, against)
    groups = sorted(group_runs(runs), key=lambda group: _reading_order(group, reference))
    notes = list(reference.notes)
    with (progress or SilentProgress()).task("compare", 3 * len(groups), "step") as task:

        def each() -> Iterator[Group]:
            for group in groups:
                yield group
                task.advance()

        cells = [cell for group in each() for cell in _cells(group, metric)]
        controls = list(_controls(each(), groups, metric, notes))
        pairs = list(_pairs(each(), groups, reference, metric, notes))
    overall = [cell for cell in cells if cell.task == ALL_TASKS]
    return Comparison(
        env=runs[0].env,
        metric=metric,
        against=reference.label,
        cells=tuple(cells),
        pairs=tuple(_adjusted(pairs)),
        controls=tuple(controls),
        costs=tuple(cost_ratios(overall, reference.label)),
        notes=tuple(notes),
    )


def _first_metric(runs: Sequence[Run]) -> str:
    for run in runs:
        if run.metrics:
            return run.metrics[0]
    raise ArtifactError("no episode of these evaluations ran to its end")


def _reading_order(group: Group, reference: Reference) -> Any:
    run = group.one
    is_other = run.label != reference.label
    return run.perturbation, horizon_order(run.horizon), is_other, run.label


def _cells(group: Group, metric: str) -> Iterator[Cell]:
    tasks = group.one.tasks if len(group.one.tasks) > 1 else ()
    for task in (*tasks, ALL_TASKS):
        yield _cell(group, metric, task)


def _cell(group: Group, metric: str, task: str) -> Cell:
    solved, states = matrix(group, SUCCESS, task)
    scores, _ = matrix(group, metric, task)
    known = ~np.isnan(solved)
    seeds = known.any(axis=1)
    rate = success_estimate(solved, states)
    none = (None, None)
    success, spread = _over_seeds(solved[seeds]) if seeds.any() else none
    score, deviation = _over_seeds(scores[seeds]) if seeds.any() else none
    found = mean_estimate(scores, states)
    score_ends = [None if math.isnan(end) else end for end in (found.low, found.high)]
    run = group.one
    return Cell(
        label=run.label,
        policy=run.policy,
        latent=run.latent,
        task=task,
        horizon=run.horizon,
        perturbation=run.perturbation,
        train_seeds=_train_seeds(group),
        episodes=int(known.sum()),
        errors=int((~known).sum()),
        successes=int(np.nansum(solved)),
        success=success,
        success_low=rate.low,
        success_high=rate.high,
        success_deviation=spread,
        score=score,
        score_low=score_ends[0],
        score_high=score_ends[1],
        score_deviation=deviation,
        flops_per_step=_mean([run.operations for run in group.runs]),
        seconds_per_episode=_mean([run.seconds for run in group.runs]),
    )


def _pairs(
    some: Iterable[Group],
    groups: Sequence[Group],
    reference: Reference,
    metric: str,
    notes: list[str],
) -> Iterator[PairedTest]:
    for group in some:
        others = reference.of(group, groups)
        if reference.label and not others and not reference.holds(group):
            notes.append(f"not tested against {reference.label}: {_name(group)}")
        for other in others:
            test = _test(group, other, metric)
            if test is None:
                notes.append(f"no episode of both ran to its end: {_name(group)}")
            else:
                yield test


def _test(group: Group, other: Group, metric: str) -> PairedTest | None:
    solved, scores = align(group, other, SUCCESS), align(group, other, metric)
    if solved is None or scores is None:
        return None
    gaps = solved.differences
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    single = len(group.runs) == len(other.runs) == 1 and not solved.states.shared
    one = success_difference_estimate(solved.first, solved.second, solved.states, same_models=False)
    two = difference_estimate(scores.first, scores.second, scores.states, same_models=False)
    return PairedTest(
        label=group.one.label,
        against=other.one.label,
        horizon=group.one.horizon,
        against_horizon=other.one.horizon,
        perturbation=group.one.perturbation,
        states=len(gaps),
        better=better,
        worse=worse,
        success_difference=float(gaps.mean()),
        success_low=one.low,
        success_high=one.high,
        success_test="McNemar" if single else "permutation",
        success_p=mcnemar(better, worse) if single else paired_permutation(gaps),
        score_difference=float(scores.differences.mean()),
        score_low=two.low,
        score_high=two.high,
        score_p=paired_permutation(scores.differences),
    )


def _adjusted(pairs: Sequence[PairedTest]) -> list[PairedTest]:
    successes = holm([pair.success_p for pair in pairs])
    scores = holm([pair.score_p for pair in pairs])
    return [
        replace(pair, success_p_holm=one, score_p_holm=other)
        for pair, one, other in zip(pairs, successes, scores, strict=True)
    ]


def _controls(
    some: Iterable[Group], groups: Sequence[Group], metric: str, notes: list[str]
) -> Iterator[Control]:
    undisturbed = {(g.one.label, g.one.horizon): g for g in groups if not g.one.perturbation}
    for group in some:
        if not group.one.perturbation:
            continue
        calm = undisturbed.get((group.one.label, group.one.horizon))
        control = calm and _control(group, calm, metric)
        if control:
            yield control
        else:
            notes.append(f"without an unperturbed control: {_name(group)}")


def _control(group: Group, calm: Group, metric: str) -> Control | None:
    found: dict[str, Estimate] = {}
    states = 0
    for quantity in (SUCCESS, metric):
        pair = align(group, calm, quantity, same_models=True)
        if pair is None:
            return None
        estimate = success_difference_estimate if quantity == SUCCESS else difference_estimate
        found[quantity] = estimate(pair.first, pair.second, pair.states, same_models=True)
        states = len(pair.states)
    success, score = found[SUCCESS], found[metric]
    shared = set(_train_seeds(calm))
    return Control(
        label=group.one.label,
        horizon=group.one.horizon,
        perturbation=group.one.perturbation,
        train_seeds=tuple(seed for seed in _train_seeds(group) if seed in shared),
        states=states,
        success_difference=success.value,
        success_low=success.low,
        success_high=success.high,
        score_difference=score.value,
        score_low=score.low,
        score_high=score.high,
    )


def _over_seeds(values: Values) -> tuple[float, float | None]:
    return mean_and_std([float(mean) for mean in np.nanmean(values, axis=1)])


def _train_seeds(group: Group) -> tuple[int | None, ...]:
    return tuple(run.train_seed for run in group.runs)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_and_std(known)[0] if known else None


def _name(group: Group) -> str:
    run = group.one
    horizon = "" if run.horizon is None else f", horizon {run.horizon}"
    return f"{run.label}{horizon}, perturbation {run.perturbation:g}"
