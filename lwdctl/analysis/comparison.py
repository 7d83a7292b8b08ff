"""Compare policies: success and score with intervals, paired tests, perturbations, costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lwdctl.analysis.comparison_records import (
    ComparisonRow,
    CostRatio,
    PairedTest,
    PerturbationEffect,
    horizon_order,
)
from lwdctl.analysis.evaluations import Run, distinguish, make_run, read_evaluations
from lwdctl.analysis.figures import ComparisonFigures
from lwdctl.analysis.pairing import (
    SUCCESS,
    Group,
    Reference,
    align,
    check_one_protocol,
    choose_reference,
    group_runs,
    matrix,
)
from lwdctl.analysis.plotting import save_figures
from lwdctl.analysis.resample import (
    PERMUTATIONS,
    RESAMPLES,
    difference_estimate,
    holm,
    mcnemar,
    mean_and_std,
    mean_estimate,
    paired_permutation,
    seed_means,
    state_differences,
    success_difference_estimate,
    success_estimate,
)
from lwdctl.analysis.tables import (
    EMPTY,
    Table,
    flatten,
    short,
    show,
    show_difference,
    show_estimate,
    show_p,
    write_json,
)
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.durable import write_durably
from lwdctl.core.errors import ArtifactError
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.evaluation.results import ALL_TASKS, ConditionResult

METHODS = {
    "success": "fraction of episodes solved at some step, mean over training seeds; 95 % interval:"
    " Wilson's for one training seed; for several the two-way bootstrap, widened to Wilson's"
    " interval of all episodes where that reaches further",
    "labels": "episodes of several labels from one initial state are one observation: resampled"
    " and flipped together, and Wilson's interval is that of fewer episodes (design effect)",
    "score": f"95 % percentile interval of {RESAMPLES} bootstrap samples; training seeds and"
    " initial states are drawn independently of each other, initial states within their task",
    "success_difference": "on the same initial states; 95 % interval: Newcombe's for one training"
    " seed on each side and one label, otherwise the bootstrap of the score with shared initial"
    " states",
    "success_p": "McNemar's exact test, two-sided, where both have one training seed and one label;"
    " otherwise the paired permutation test of the success averaged over both",
    "score_p": "paired permutation test, two-sided: signs of the differences per initial state,"
    f" averaged over training seeds and labels, are flipped, all ways or {PERMUTATIONS} drawn ones",
    "holm": "Holm's correction over all pairs of this comparison, success and score each a family",
    "scope": "p-values hold for these trained models on other initial states; the intervals with"
    " several training seeds hold for other training seeds as well",
}


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison.

    Attributes:
        env: Name of the environment.
        metric: Name of the score.
        against: Label of the reference, or "" where nothing was tested.
        results: One row per condition and task, and one per condition over all tasks.
        tests: Every condition against the reference.
        controls: Perturbed conditions minus the same models without perturbation.
        costs: What equal success costs.
        notes: What was left out or chosen by default.
        sources: Evaluations that were read from disk: reference, path and digest.
    """

    env: str
    metric: str
    against: str
    results: tuple[ComparisonRow, ...]
    tests: tuple[PairedTest, ...] = ()
    controls: tuple[PerturbationEffect, ...] = ()
    costs: tuple[CostRatio, ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[Mapping[str, str], ...] = ()

    def __repr__(self) -> str:
        """Return the tables as text."""
        tables = [f"{caption}\n{table}" for caption, table in self.tables()]
        return "\n\n".join([f"Comparison on {self.env}", *tables, *self.notes])

    def _repr_markdown_(self) -> str:
        """Return the tables for a notebook."""
        return "\n\n".join(f"{line}\n\n{table.to_markdown()}" for line, table in self.tables())

    @property
    def overall(self) -> list[ComparisonRow]:
        """The results over all tasks."""
        return [row for row in self.results if row.task == ALL_TASKS]

    @property
    def table(self) -> Table:
        """The results over all tasks as text, one row per condition."""
        columns = (
            "policy", "latent", "horizon", "perturbation", "seeds", "episodes", "success [95 %]",
            f"{self.metric} [95 %]", "FLOPs/step",
        )  # fmt: skip
        rows = (
            (
                row.label,
                show(row.latent),
                show(row.horizon),
                f"{row.perturbation:g}",
                show([seed for seed in row.train_seeds if seed is not None]),
                str(row.episodes) + (f" ({row.errors} lost)" if row.errors else ""),
                show_estimate(row.success, row.success_std),
                show_estimate(row.score, row.score_std),
                EMPTY if row.flops_per_step is None else f"{row.flops_per_step:.3g}",
            )
            for row in self.overall
        )
        return Table(columns, tuple(rows))

    def tables(self) -> list[tuple[str, Table]]:
        """Return the tables of results, tests, perturbations and costs, each with its caption."""
        found = [("All conditions, over all tasks", self.table)]
        if self.tests:
            caption = (
                f"Paired tests: minus {self.against} on the same initial states."
                " better, worse: states solved more often, less often."
                " p: these trained models on other initial states (McNemar's exact or permutation"
                f" test); Holm: corrected for all {len(self.tests)} tests of the column."
            )
            found.append((caption, self._tests()))
        if self.controls:
            caption = "Perturbed minus unperturbed: the same models on the same initial states"
            found.append((caption, self._controls()))
        if self.costs:
            caption = (
                "What equal success costs: the reference's best condition beside the cheapest"
                " condition of each policy that solves at least as much, else beside its best"
            )
            found.append((caption, self._costs()))
        return found

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """File name's stem to figure: success and score by horizon, success by cost."""
        return dict(self._drawing.draw())

    @property
    def missing_figures(self) -> list[str]:
        """Which figures or points are missing for want of numbers."""
        return list(self._drawing.missing())

    def to_csv(self) -> str:
        """Return the results as CSV text, one row per condition and task."""
        return Table.from_records(ComparisonRow, self.results).to_csv()

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, the statistical methods in words among them."""
        return {
            "evaluations": list(self.sources),
            "env": self.env,
            "metric": self.metric,
            "against": self.against,
            "results": [flatten(row) for row in self.results],
            "tests": [flatten(row) for row in self.tests],
            "controls": [flatten(row) for row in self.controls],
            "costs": [flatten(row) for row in self.costs],
            "notes": list(self.notes),
            "methods": METHODS,
        }

    def save(self, directory: Path | str) -> list[Path]:
        """Write tables (CSV), `comparison.json` and figures (PNG, PDF) and return the paths.

        Args:
            directory: Where to write; made if missing. Files of the same name are replaced.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tables = {
            "comparison.csv": self.to_csv(),
            "comparison-tests.csv": Table.from_records(PairedTest, self.tests).to_csv(),
            "comparison-controls.csv": Table.from_records(
                PerturbationEffect, self.controls
            ).to_csv(),
            "comparison-costs.csv": Table.from_records(CostRatio, self.costs).to_csv(),
        }
        for name, text in tables.items():
            write_durably(directory / name, text.encode())
        write_json(directory / "comparison.json", self.to_json())
        paths = [directory / name for name in (*tables, "comparison.json")]
        return [*paths, *save_figures(self.figures, directory)]

    @property
    def _drawing(self) -> ComparisonFigures:
        return ComparisonFigures(self.overall, self.env, self.metric, self.against)

    def _tests(self) -> Table:
        columns = (
            "policy", "against", "horizon", "perturbation", "states", "better", "worse",
            "success difference [95 %]", "p", "Holm", f"{self.metric} difference [95 %]", "p",
            "Holm",
        )  # fmt: skip
        rows = (
            (
                test.label, test.against, _horizons(test), f"{test.perturbation:g}",
                str(test.states), str(test.better), str(test.worse),
                show_difference(test.success_difference), show_p(test.success_p),
                show_p(test.success_p_holm), show_difference(test.score_difference),
                show_p(test.score_p), show_p(test.score_p_holm),
            )
            for test in self.tests
        )  # fmt: skip
        return Table(columns, tuple(rows))

    def _controls(self) -> Table:
        columns = (
            "policy", "horizon", "perturbation", "states", "success difference [95 %]",
            f"{self.metric} difference [95 %]",
        )  # fmt: skip
        rows = (
            (
                row.label, show(row.horizon), f"{row.perturbation:g}", str(row.states),
                show_difference(row.success_difference), show_difference(row.score_difference),
            )
            for row in self.controls
        )  # fmt: skip
        return Table(columns, tuple(rows))

    def _costs(self) -> Table:
        columns = ("policy", "against", "horizon", "perturbation", "success", "FLOPs/step", "ratio")
        rows = (
            (
                row.label, row.against, _horizons(row), f"{row.perturbation:g}",
                f"{short(row.success)} / {short(row.against_success)}",
                f"{row.flops_per_step:.3g} / {row.against_flops_per_step:.3g}",
                "solves less" if row.ratio is None else f"{row.ratio:.3g}",
            )
            for row in self.costs
        )  # fmt: skip
        return Table(columns, tuple(rows))


def compare(
    results: Sequence[Run | ConditionResult],
    against: str | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare policies: each one against one reference, on the same initial states.

    Args:
        results: The evaluated conditions, in memory or as `read_evaluations` returns them.
        against: Label or policy that the others are tested against; None takes `lwd` if there.
        metric: Name of the score; None takes the environment's first metric.
        progress: Where to report.

    Raises:
        ArtifactError: The conditions differ in their protocol, or those to be paired met
            different initial states.
        ConfigError: An unknown metric or reference.
    """
    runs = distinguish([item if isinstance(item, Run) else make_run(item) for item in results])
    check_one_protocol(runs)
    metric = metric or _first_metric(runs)
    reference = choose_reference(runs, against)
    groups = sorted(group_runs(runs), key=lambda group: _reading_order(group, reference))
    notes = list(reference.notes)
    with (progress or SilentProgress()).task("compare", 3 * len(groups), "step") as task:

        def each() -> Iterator[Group]:
            for group in groups:
                yield group
                task.advance()

        rows = [row for group in each() for row in _rows(group, metric)]
        controls = list(_controls(each(), groups, metric, notes))
        tests = list(_tests(each(), groups, reference, metric, notes))
    overall = [row for row in rows if row.task == ALL_TASKS]
    return Comparison(
        env=runs[0].row.env,
        metric=metric,
        against=reference.label,
        results=tuple(rows),
        tests=tuple(_adjusted(tests)),
        controls=tuple(controls),
        costs=tuple(cost_ratios(overall, reference.label)),
        notes=tuple(notes),
    )


def compare_evaluations(
    evaluations: Sequence[Artifact],
    root: Path,
    *,
    against: str | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the policies of evaluations on disk.

    Args:
        evaluations: Artifacts of type `evaluation`.
        root: Workspace to follow their lineage in.
        against: As in `compare`.
        metric: As in `compare`.
        progress: Where to report.

    Raises:
        ArtifactError: An evaluation cannot be read, or they cannot be compared.
        ConfigError: An unknown metric or reference.
    """
    comparison = compare(read_evaluations(evaluations, root), against, metric, progress)
    sources = {
        item.digest: {"reference": item.reference, "path": str(item.path), "digest": item.digest}
        for item in evaluations
    }
    ordered = sorted(sources.values(), key=lambda item: (item["reference"], item["digest"]))
    return replace(comparison, sources=tuple(ordered))


def cost_ratios(rows: Sequence[ComparisonRow], against: str) -> Iterator[CostRatio]:
    """Yield what equal success costs.

    Under every perturbation, the most successful condition of the reference's policy and latent
    source (the cheapest of equals) stands beside the cheapest condition of every other policy that
    solves at least as much; where none does, beside that policy's most successful one. Controls
    of the others (`oracle`, which is given the answer, `mean` and so on) are left out.

    Args:
        rows: Conditions over all tasks.
        against: Label of the reference; where no row has it, nothing is yielded.
    """
    reference = next((row for row in rows if row.label == against), None)
    if reference is None:
        return
    for perturbation in sorted({row.perturbation for row in rows}):
        # Random actions do no arithmetic: they have no cost to compare.
        here = [
            row
            for row in rows
            if row.perturbation == perturbation
            and row.flops_per_step
            and not math.isnan(row.success.value)
        ]
        own = [r for r in here if (r.policy, r.latent) == (reference.policy, reference.latent)]
        if not own:
            continue
        best = max(own, key=_by_success)
        for policy in sorted({row.policy for row in here} - {reference.policy}):
            others = [row for row in here if row.policy == policy and row.is_method]
            if others:
                yield _cost_ratio(best, others)


def _by_success(row: ComparisonRow) -> tuple[float, float]:
    return row.success.value, -(row.flops_per_step or 0.0)


def _cost_ratio(best: ComparisonRow, others: Sequence[ComparisonRow]) -> CostRatio:
    wanted, cost = best.success.value, best.flops_per_step or 0.0
    equal = [row for row in others if row.success.value >= wanted]
    shown = min(equal, key=lambda row: row.flops_per_step or 0.0) if equal else None
    shown = shown or max(others, key=_by_success)
    flops = shown.flops_per_step or 0.0
    return CostRatio(
        label=shown.label,
        horizon=shown.horizon,
        against=best.label,
        against_horizon=best.horizon,
        perturbation=best.perturbation,
        success=shown.success.value,
        against_success=wanted,
        flops_per_step=flops,
        against_flops_per_step=cost,
        ratio=flops / cost if equal else None,
    )


def _first_metric(runs: Sequence[Run]) -> str:
    for run in runs:
        if run.metrics:
            return run.metrics[0]
    raise ArtifactError("no episode of these evaluations ran to its end")


def _reading_order(group: Group, reference: Reference) -> Any:
    condition, label = group.condition, group.one.label
    horizon = horizon_order(condition.horizon)
    return condition.perturbation, horizon, label != reference.label, label


def _rows(group: Group, metric: str) -> Iterator[ComparisonRow]:
    tasks = group.one.tasks if len(group.one.tasks) > 1 else ()
    for task in (*tasks, ALL_TASKS):
        yield _row(group, metric, task)


def _row(group: Group, metric: str, task: str) -> ComparisonRow:
    solved, states = matrix(group, SUCCESS, task)
    scores, _ = matrix(group, metric, task)
    known = ~np.isnan(solved)
    condition = group.condition
    return ComparisonRow(
        label=group.one.label,
        policy=condition.policy,
        latent=condition.latent,
        task=task,
        horizon=condition.horizon,
        perturbation=condition.perturbation,
        train_seeds=group.train_seeds,
        episodes=int(known.sum()),
        errors=int((~known).sum()),
        successes=int(np.nansum(solved)),
        success=success_estimate(solved, states),
        success_std=_std(seed_means(solved)),
        score=mean_estimate(scores, states),
        score_std=_std(seed_means(scores)),
        flops_per_step=_mean([run.flops for run in group.runs]),
        seconds_per_episode=_mean([run.seconds for run in group.runs]),
    )


def _tests(
    some: Iterable[Group],
    groups: Sequence[Group],
    reference: Reference,
    metric: str,
    notes: list[str],
) -> Iterator[PairedTest]:
    for group in some:
        others = reference.of(group, groups)
        if reference.label not in {"", group.one.label} and not others:
            notes.append(f"not tested against {reference.label}: {group}")
        for other in others:
            test = _test(group, other, metric)
            if test is None:
                notes.append(f"no episode of both ran to its end: {group}")
            else:
                yield test


def _test(group: Group, other: Group, metric: str) -> PairedTest | None:
    solved, scores = align(group, other, SUCCESS), align(group, other, metric)
    if solved is None or scores is None:
        return None
    gaps = state_differences(solved.first, solved.second, solved.states)
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    single = len(group.runs) == len(other.runs) == 1 and not solved.states.shared
    sides = (scores.first, scores.second, scores.states)
    return PairedTest(
        label=group.one.label,
        against=other.one.label,
        horizon=group.condition.horizon,
        against_horizon=other.condition.horizon,
        perturbation=group.condition.perturbation,
        states=len(gaps),
        better=better,
        worse=worse,
        success_difference=success_difference_estimate(
            solved.first, solved.second, solved.states, same_models=False
        ),
        success_test="McNemar" if single else "permutation",
        success_p=mcnemar(better, worse) if single else paired_permutation(gaps),
        score_difference=difference_estimate(*sides, same_models=False),
        score_p=paired_permutation(state_differences(*sides)),
    )


def _adjusted(tests: Sequence[PairedTest]) -> list[PairedTest]:
    successes = holm([test.success_p for test in tests])
    scores = holm([test.score_p for test in tests])
    return [
        replace(test, success_p_holm=one, score_p_holm=other)
        for test, one, other in zip(tests, successes, scores, strict=True)
    ]


def _controls(
    some: Iterable[Group], groups: Sequence[Group], metric: str, notes: list[str]
) -> Iterator[PerturbationEffect]:
    unperturbed = {
        (group.one.label, group.condition.horizon): group
        for group in groups
        if not group.condition.perturbation
    }
    for group in some:
        if not group.condition.perturbation:
            continue
        control = unperturbed.get((group.one.label, group.condition.horizon))
        effect = control and _effect(group, control, metric)
        if effect:
            yield effect
        else:
            notes.append(f"without an unperturbed control: {group}")


def _effect(group: Group, control: Group, metric: str) -> PerturbationEffect | None:
    solved = align(group, control, SUCCESS, same_models=True)
    scores = align(group, control, metric, same_models=True)
    if solved is None or scores is None:
        return None
    return PerturbationEffect(
        label=group.one.label,
        horizon=group.condition.horizon,
        perturbation=group.condition.perturbation,
        train_seeds=tuple(seed for seed in group.train_seeds if seed in control.train_seeds),
        states=len(scores.states),
        success_difference=success_difference_estimate(
            solved.first, solved.second, solved.states, same_models=True
        ),
        score_difference=difference_estimate(
            scores.first, scores.second, scores.states, same_models=True
        ),
    )


def _std(values: Sequence[float]) -> float | None:
    return mean_and_std(values)[1] if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_and_std(known)[0] if known else None


def _horizons(row: PairedTest | CostRatio) -> str:
    return " / ".join(dict.fromkeys([show(row.horizon), show(row.against_horizon)]))
