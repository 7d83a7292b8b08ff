"""Compare policies: success and score with intervals, paired tests, perturbations, costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from lwdctl.analysis.evaluations import (
    SETTINGS,
    SUCCESS,
    Group,
    Reference,
    Run,
    align,
    check_one_protocol,
    choose_reference,
    describe,
    distinguish,
    group_runs,
    make_run,
    matrix,
    read_evaluations,
)
from lwdctl.analysis.figures import ComparisonFigures, missing_figures
from lwdctl.analysis.plotting import save_figures
from lwdctl.analysis.resample import (
    NOT_KNOWN,
    PERMUTATIONS,
    RESAMPLES,
    holm,
    mcnemar,
    mean_and_std,
    mean_estimate,
    paired_permutation,
    seed_means,
    success_estimate,
)
from lwdctl.analysis.tables import (
    EMPTY,
    Table,
    flatten,
    gather,
    short,
    show,
    show_difference,
    show_estimate,
    show_p,
    write_csv,
    write_json,
)
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import user_path, whole_directory
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import listed
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.evaluation.results import ALL_TASKS, ConditionResult

STATISTICS = {
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
    "convergence": "flat: the last third of the training of every model gained no more than the"
    " margin of `lwdctl analyze convergence`; unchecked: no such analysis of some model",
    "scope": "p-values hold for these trained models on other initial states; the intervals with"
    " several training seeds hold for other training seeds as well",
}


RECORDS = {
    "results": ComparisonRow,
    "tests": PairedTest,
    "controls": PerturbationEffect,
    "costs": CostRatio,
}
"""Lists of a comparison, each of them a CSV file, and the class of their records."""


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison.

    Attributes:
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
        judged = ["training"] if any(row.convergence for row in self.overall) else []
        return self._text_table(
            self.overall,
            "policy", "latent", "horizon", "perturbation", "seeds", *judged, "episodes",
            "success [95 %]", "score [95 %]", "FLOPs/step",
        )  # fmt: skip

    def tables(self) -> list[tuple[str, Table]]:
        """Return the tables of results, tests, perturbations and costs, each with its caption."""
        paired = (
            f"Paired tests: minus {self.against} on the same initial states."
            " better, worse: states solved more often, less often."
            " p: these trained models on other initial states (McNemar's exact or permutation"
            f" test); Holm: corrected for all {len(self.tests)} tests of the column."
        )
        perturbed = "Perturbed minus unperturbed: the same models on the same initial states"
        cost = (
            "What equal success costs: the reference's best condition beside the cheapest"
            " condition of each policy that solves at least as much, else beside its best"
        )
        differences = ("success difference [95 %]", "score difference [95 %]")
        found = [
            ("All conditions, over all tasks", self.table),
            (paired, self._text_table(
                self.tests, "policy", "against", "horizon", "perturbation", "states", "better",
                "worse", differences[0], "p", "Holm", differences[1], "p of score", "Holm of score",
            )),
            (perturbed, self._text_table(
                self.controls, "policy", "horizon", "perturbation", "states", *differences,
            )),
            (cost, self._text_table(
                self.costs, "policy", "against", "horizon", "perturbation", "success",
                "FLOPs/step", "ratio",
            )),
        ]  # fmt: skip
        return [(caption, table) for caption, table in found if table.rows]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """File name's stem to figure: success and score by horizon, success by cost."""
        return dict(ComparisonFigures(self.overall, self.env, self.metric, self.against).draw())

    @property
    def missing_figures(self) -> list[str]:
        """Which figures or points are missing for want of numbers."""
        return list(missing_figures(self.overall))

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
            **{name: list(map(flatten, getattr(self, name))) for name in RECORDS},
            "notes": list(self.notes),
            "methods": STATISTICS,
        }

    def save(self, directory: Path | str) -> list[Path]:
        """Write tables (CSV), `comparison.json` and figures (PNG, PDF) and return the paths.

        The directory is made if missing; files of the same name in it are replaced, once all are
        written.
        """
        directory = user_path(directory)
        with whole_directory(directory, replace=True) as fresh:
            paths = []
            for name, kind in RECORDS.items():
                ending = "" if name == "results" else f"-{name}"
                paths.append(fresh / f"comparison{ending}.csv")
                write_csv(paths[-1], Table.from_records(kind, getattr(self, name)))
            paths.append(fresh / "comparison.json")
            write_json(paths[-1], self.to_json())
            paths += save_figures(self.figures, fresh)
        return [directory / path.name for path in paths]

    def _text_table(self, records: Sequence[Any], *names: str) -> Table:
        rows = (
            (_TEXT[name](one) if name in _TEXT else str(getattr(one, name)) for name in names)
            for one in records
        )
        return Table.of((name.replace("score", self.metric) for name in names), rows)


def compare(
    results: Sequence[ConditionResult],
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
    metric = metric or next((run.metrics[0] for run in runs if run.metrics), "")
    if not metric:
        raise ArtifactError("no episode of these evaluations ran to its end")
    reference = choose_reference(runs, against)
    groups = sorted(
        group_runs(runs),
        key=lambda group: (
            group.condition.perturbation,
            horizon_order(group.condition.horizon),
            group.one.label != reference.label,
            group.one.label,
        ),
    )
    notes = [*reference.notes, *dict.fromkeys(filter(None, map(_note_on_seeds, groups)))]
    notes += _notes_on_horizons(runs)
    rows: list[ComparisonRow] = []
    tests: list[PairedTest] = []
    controls: list[PerturbationEffect] = []
    with (progress or SilentProgress()).task("compare", len(groups), "condition") as task:
        for group in groups:
            rows += _rows(group, metric)
            tests += _tests(group, reference, groups, metric, notes)
            controls += _controls(group, groups, metric, notes)
            task.advance()
    overall = [row for row in rows if row.task == ALL_TASKS]
    successes = holm([test.success_p for test in tests])
    scores = holm([test.score_p for test in tests])
    return Comparison(
        env=runs[0].overall.env,
        metric=metric,
        against=reference.label,
        results=tuple(rows),
        tests=tuple(
            replace(test, success_p_holm=success, score_p_holm=score)
            for test, success, score in zip(tests, successes, scores, strict=True)
        ),
        controls=tuple(controls),
        costs=tuple(cost_ratios(overall, reference.label)),
        notes=tuple(notes),
    )


def _note_on_seeds(group: Group) -> str:
    """Say where the training seeds of a policy are those of a part of it; "" elsewhere."""
    vaes = {run.models.get("vae") for run in group.runs}
    if len(group.runs) < 2 or len(vaes) > 1 or None in vaes:
        return ""
    return (
        f"the training seeds of {group.one.label} share one VAE ({vaes.pop()}): their intervals"
        " hold for other diffusion models over it, not for other VAEs"
    )


def _notes_on_horizons(runs: Sequence[Run]) -> Iterator[str]:
    """Say where a policy was run with other settings at another horizon, which labels do not."""
    for label, alike in gather(runs, lambda run: run.label).items():
        for name in SETTINGS:
            if name == "snippet_length":
                continue  # every horizon may have models of its own
            horizons: dict[str, dict[str, None]] = {}
            for run in alike:
                horizons.setdefault(describe(run, name), {})[str(run.overall.horizon)] = None
            if len(horizons) > 1:
                said = ", ".join(f"{value} at {listed(found)}" for value, found in horizons.items())
                yield f"horizons of {label} differ in more: {said}"


def compare_evaluations(
    evaluations: Sequence[Artifact],
    root: Path,
    *,
    against: str | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare evaluations on disk, whose lineage is followed in the workspace `root`.

    The options are those of `compare`.

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
        best = max(own, key=_by_success, default=None)
        for policy in sorted({row.policy for row in here} - {reference.policy}):
            others = [row for row in here if row.policy == policy and row.is_method]
            if not best or not others:
                continue
            equal = [row for row in others if row.success.value >= best.success.value]
            shown = min(equal, key=_flops) if equal else max(others, key=_by_success)
            yield CostRatio(
                label=shown.label,
                horizon=shown.horizon,
                against=best.label,
                against_horizon=best.horizon,
                perturbation=perturbation,
                success=shown.success.value,
                against_success=best.success.value,
                flops_per_step=_flops(shown),
                against_flops_per_step=_flops(best),
                ratio=_flops(shown) / _flops(best) if equal else None,
            )


def _flops(row: ComparisonRow) -> float:
    return row.flops_per_step or 0.0


def _by_success(row: ComparisonRow) -> tuple[float, float]:
    return row.success.value, -_flops(row)


def _rows(group: Group, metric: str) -> Iterator[ComparisonRow]:
    """Yield a row for every task, where there are several, and the row of all tasks."""
    condition, tasks = group.condition, group.one.tasks
    for task in (*(tasks if len(tasks) > 1 else ()), ALL_TASKS):
        solved, states = matrix(group, SUCCESS, task)
        scores, _ = matrix(group, metric, task)
        flops, seconds = zip(*(run.costs(task) for run in group.runs), strict=True)
        known = ~np.isnan(solved)
        yield ComparisonRow(
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
            success_std=mean_and_std(seed_means(solved))[1],
            score=mean_estimate(scores, states),
            score_std=mean_and_std(seed_means(scores))[1],
            flops_per_step=_mean(flops),
            seconds_per_episode=_mean(seconds),
            convergence=group.convergence,
            policy_failures=sum(
                bool(episode.policy_failure) and not episode.error
                for run in group.runs
                for episode in run.episodes
                if task in {ALL_TASKS, episode.plan.task}
            ),
        )


def _tests(
    group: Group, reference: Reference, groups: Sequence[Group], metric: str, notes: list[str]
) -> Iterator[PairedTest]:
    others = reference.of(group, groups)
    if reference.label not in {"", group.one.label} and not others:
        notes.append(f"not tested against {reference.label}: {group}")
    for other in others:
        solved, scores = (align(group, other, name) for name in (SUCCESS, metric))
        if solved is None:
            notes.append(f"no episode of both ran to its end: {group}")
            continue
        if scores is None:
            notes.append(
                f"{metric} of {group} is not compared with {other}: a policy aborted an episode"
            )
        gaps = solved.differences
        better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
        single = solved.has_one_seed and not solved.states.shared
        yield PairedTest(
            label=group.one.label,
            against=other.one.label,
            horizon=group.condition.horizon,
            against_horizon=other.condition.horizon,
            perturbation=group.condition.perturbation,
            states=len(gaps),
            better=better,
            worse=worse,
            success_difference=solved.success_estimate(),
            success_test="McNemar" if single else "permutation",
            success_p=mcnemar(better, worse) if single else paired_permutation(gaps),
            score_difference=scores.estimate() if scores else NOT_KNOWN,
            score_p=paired_permutation(scores.differences) if scores else math.nan,
        )


def _controls(
    group: Group, groups: Sequence[Group], metric: str, notes: list[str]
) -> Iterator[PerturbationEffect]:
    condition = group.condition
    if not condition.perturbation:
        return
    key = (group.one.label, condition.horizon, 0.0)
    controls = {(g.one.label, g.condition.horizon, g.condition.perturbation): g for g in groups}
    control = controls.get(key)
    solved, scores = (
        control and align(group, control, name, same_models=True) for name in (SUCCESS, metric)
    )
    if not (control and solved):
        notes.append(f"without an unperturbed control: {group}")
        return
    if not scores:
        notes.append(f"{metric} of {group} has no unperturbed control: a policy aborted an episode")
    yield PerturbationEffect(
        label=group.one.label,
        horizon=condition.horizon,
        perturbation=condition.perturbation,
        train_seeds=tuple(
            run.overall.train_seed
            for run in group.runs
            if run.model in {other.model for other in control.runs}
        ),
        states=len(solved.states),
        success_difference=solved.success_estimate(),
        score_difference=scores.estimate() if scores else NOT_KNOWN,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_and_std(known)[0] if known else None


def _beside(record: Any, name: str, text: Callable[[Any], str]) -> str:
    """Return a field as text, beside the reference's where it is another."""
    values = [getattr(record, key, None) for key in (name, f"against_{name}")]
    shown = [text(value) for value in (values if hasattr(record, "against") else values[:1])]
    return " / ".join(dict.fromkeys(shown) if name == "horizon" else shown)


_TEXT: Mapping[str, Callable[[Any], str]] = {
    "policy": lambda row: row.label,
    "latent": lambda row: show(row.latent),
    "horizon": lambda row: _beside(row, "horizon", show),
    "perturbation": lambda row: f"{row.perturbation:g}",
    "seeds": lambda row: show([seed for seed in row.train_seeds if seed is not None]),
    "training": lambda row: show(row.convergence),
    "episodes": lambda row: (
        f"{row.episodes}{f' ({row.errors} lost)' if row.errors else ''}"
        f"{f' ({row.policy_failures} aborted)' if row.policy_failures else ''}"
    ),
    "success [95 %]": lambda row: show_estimate(row.success, row.success_std),
    "score [95 %]": lambda row: show_estimate(row.score, row.score_std),
    "FLOPs/step": lambda row: _beside(
        row, "flops_per_step", lambda flops: EMPTY if flops is None else f"{flops:.3g}"
    ),
    "success difference [95 %]": lambda row: show_difference(row.success_difference),
    "p": lambda row: show_p(row.success_p),
    "Holm": lambda row: show_p(row.success_p_holm),
    "score difference [95 %]": lambda row: show_difference(row.score_difference),
    "p of score": lambda row: show_p(row.score_p),
    "Holm of score": lambda row: show_p(row.score_p_holm),
    "success": lambda row: _beside(row, "success", short),
    "ratio": lambda row: "solves less" if row.ratio is None else f"{row.ratio:.3g}",
}
"""Column to the text of a record in it, where that is not the field of this name."""
