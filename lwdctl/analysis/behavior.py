"""Do policies behave as the trajectories that they were trained on?"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from lwdctl.analysis import behavior_figures as figures
from lwdctl.analysis.divergence import DRAWS, MIN_BANDWIDTH
from lwdctl.analysis.evaluations import Run
from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table
from lwdctl.analysis.trajectories import (
    CONTACT,
    CONTACTS,
    RETURN,
    SOURCE,
    SOURCE_VS_SOURCE,
    STEPS,
    SUCCESS,
    BehaviorComparison,
    Divergences,
    Trajectory,
    behavior_measures,
    compare_behaviors,
    policy_trajectories,
    source_trajectories,
)
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import AnalyzeBehaviorConfig
from lwdctl.core.progress import Progress, TqdmProgress

TRAJECTORIES = "behavior"
CONTACTS_TEXT = (
    "Fraction of a trajectory's steps with a foot on the floor, one foot against another. The"
    " source is measured from recorded observations by the code that measures rollouts."
)
ESTIMATOR = (
    "Estimator: Gaussian kernel densities with one bandwidth for both sets, evaluated on one grid"
    " and normalized there, so that values lie between 0 and ln 2 = 0.693 nats. Bandwidth and grid"
    " come from the source alone (Scott's rule for the size of the sets on the smaller of standard"
    f" deviation and interquartile range / 1.349, at least {100 * MIN_BANDWIDTH:g} % of the range)."
    " The source-vs-source baseline compares two disjoint random sets of the source, in"
    f" {DRAWS} draws; its interval covers 95 % of them. A policy is compared with the first set of"
    " the same draws; all sets have the same size n, because the estimate grows as n falls; its"
    " interval is a bootstrap's over the trajectories of both sides. 'Within baseline' means that"
    " a policy's mean is at most the upper end of the interval of the source-vs-source baseline."
    " Policies with oracle latents imitate single trajectories of the source, which may be on the"
    " other side of the comparison; sampled ones do not."
)


def analyze_behavior(
    config: AnalyzeBehaviorConfig,
    *,
    snippets: SnippetStore,
    evaluation: Sequence[Run],
    progress: Progress | None = None,
) -> Findings:
    """Compare evaluated policies with the demonstrations that they were trained on.

    Args:
        config: Settings.
        snippets: The demonstrations.
        evaluation: Evaluated policies.
        progress: Where to report.

    Raises:
        ArtifactError: The evaluation ran no behavior of the data.
    """
    progress = progress or TqdmProgress()
    limit = evaluation[0].max_steps or snippets.spec.env.max_steps
    lost: list[str] = []
    measures = behavior_measures(snippets.spec.env.adapter, evaluation[0].tasks)
    trajectories = source_trajectories(
        snippets, limit, config.source, config.seed, progress, measures
    )
    for name, run in _named(evaluation).items():
        trajectories += policy_trajectories(run, name, snippets.spec.labels, lost)
    comparisons = compare_behaviors(trajectories, measures, config.seed, progress)
    sections, drawn = compose(comparisons, limit)
    return Findings(
        title="Behavior of the source and of the policies",
        sections=sections,
        figures=drawn,
        tables={TRAJECTORIES: trajectory_table(trajectories, comparisons)},
        summary={**summarize(comparisons), "steps_compared": limit},
        lost=Counter(lost),
    )


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Name every run by policy and latent, and by the conditions in which runs differ."""
    rows = [run.row for run in runs]
    horizons = {row.horizon for row in rows} - {None}
    seeds = {row.train_seed for row in rows} - {None}
    perturbations = {row.perturbation for row in rows}
    named = {}
    for run, row in zip(runs, rows, strict=True):
        parts = [
            row.policy,
            row.latent,
            f"h{row.horizon}" if len(horizons) > 1 and row.horizon is not None else "",
            f"p{row.perturbation:g}" if len(perturbations) > 1 else "",
            f"s{row.train_seed}" if len(seeds) > 1 and row.train_seed is not None else "",
        ]
        named[" ".join(part for part in parts if part)] = run
    return named


def trajectory_table(
    trajectories: Sequence[Trajectory], comparisons: Sequence[BehaviorComparison]
) -> Table:
    """Return every trajectory with its metrics, and whether it was drawn for the comparison."""
    drawn = {id(one) for item in comparisons for items in item.groups.values() for one in items}
    names = list(dict.fromkeys(name for item in trajectories for name in item.values))
    rows = tuple(
        (
            item.task, item.behavior, item.group, item.origin, int(id(item) in drawn),
            item.failure, *(item.values.get(name, "") for name in names),
        )
        for item in trajectories
    )  # fmt: skip
    columns = ("task", "behavior", "group", "origin", "drawn", "policy_failure", *names)
    return Table(columns, rows)


def summarize(comparisons: Sequence[BehaviorComparison]) -> dict[str, Any]:
    """Return behavior to group to summary numbers."""
    return {
        item.behavior: {
            **{group: _group_summary(item, group) for group in item.groups},
            SOURCE_VS_SOURCE: _divergence_summary(item, SOURCE_VS_SOURCE),
        }
        for item in comparisons
    }


def _group_summary(item: BehaviorComparison, group: str) -> dict[str, Any]:
    statistics = item.statistics[group]
    found: dict[str, Any] = {"trajectories": item.count}
    if RETURN in statistics:
        found["return_std"] = statistics[RETURN].std
    for name, one in statistics.items():
        if name in (RETURN, STEPS, SUCCESS, *item.measured):
            found[f"{name}_mean"] = one.mean.value
    return found | _divergence_summary(item, group)


def _divergence_summary(item: BehaviorComparison, group: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for quantity, divergences in item.divergences.items():
        if group not in divergences:
            continue
        prefix = "" if quantity == CONTACTS else f"{quantity}_"
        one = divergences[group]
        found |= {
            f"{prefix}js": one.value, f"{prefix}js_low": one.low, f"{prefix}js_high": one.high,
            "js_set_size": one.n,
        }  # fmt: skip
        if group != SOURCE_VS_SOURCE:
            found[f"{prefix}within_baseline"] = _within_baseline(divergences, group)
    return found


def _within_baseline(divergences: Divergences, group: str) -> bool | None:
    """Tell whether a policy's mean is at most the baseline's upper end; None for the baseline."""
    if group == SOURCE_VS_SOURCE:
        return None
    return divergences[group].value <= divergences[SOURCE_VS_SOURCE].high


def compose(
    comparisons: Sequence[BehaviorComparison], limit: int
) -> tuple[list[Section], dict[str, Figure]]:
    """Return the sections in reading order and their figures.

    Args:
        comparisons: One entry per behavior.
        limit: Steps that trajectories were cut to, 0 for none.
    """
    sections = [_what_was_compared(comparisons, limit)]
    drawn: dict[str, Figure] = {}
    if any(RETURN in one for item in comparisons for one in item.statistics.values()):
        drawn["returns"] = figures.draw_returns(comparisons)
        sections.append(_returns(comparisons))
    quantities = dict.fromkeys(name for item in comparisons for name in item.divergences)
    names = [name for name in quantities if name != CONTACTS]
    if CONTACTS in quantities:
        drawn["contacts"] = figures.draw_contacts(comparisons)
        drawn["divergence"] = figures.draw_divergences(comparisons, [CONTACTS])
        title = "Divergence of foot contacts"
        sections += [
            Section("Foot contacts", CONTACTS_TEXT, "contacts"),
            _divergence_section(comparisons, [CONTACTS], title, "divergence"),
        ]
    if names:
        drawn["metrics"] = figures.draw_metrics(comparisons, names)
        drawn["metric-divergence"] = figures.draw_divergences(comparisons, names)
        text = "Behavior metrics of every trajectory, of the source and of the policies."
        sections += [
            Section("Behavior metrics", text, "metrics"),
            _divergence_section(comparisons, names, "Divergence per metric", "metric-divergence"),
        ]
    sections.append(_source_and_policies(comparisons))
    return sections, drawn


def _what_was_compared(comparisons: Sequence[BehaviorComparison], limit: int) -> Section:
    cut = f" Trajectories of the source are cut to the {limit} steps of the rollouts."
    text = (
        "The source and every policy contribute equally many trajectories, drawn at random; the"
        f" others are in {TRAJECTORIES}.csv.{cut if limit else ''} A trajectory that ended early"
        " counts as it is: its fractions are over the steps it had, its return is the sum of the"
        " rewards it got. An episode that the policy aborted (unstable physics, actions that are"
        " not finite) counts with the worst value of every metric (0, or the largest distance),"
        " and with the return up to then."
    )
    rows = tuple(
        (
            item.behavior, group, item.count,
            *(function(one.values[STEPS] for one in items) for function in (min, max)),
            item.statistics[group][STEPS].mean.value, sum(bool(one.failure) for one in items),
        )
        for item in comparisons
        for group, items in item.groups.items()
    )  # fmt: skip
    columns = (
        "behavior", "group", "trajectories", "fewest steps", "most steps", "mean steps",
        "aborted",
    )  # fmt: skip
    return Section("What was compared", text, table=Table(columns, rows))


def _returns(comparisons: Sequence[BehaviorComparison]) -> Section:
    rows = tuple(
        (item.behavior, group, item.count, one.mean.value, one.std, one.mean.low, one.mean.high)
        for item in comparisons
        for group, statistics in item.statistics.items()
        for name, one in statistics.items()
        if name == RETURN
    )
    columns = ("behavior", "group", "trajectories", "mean", "standard deviation", "low", "high")
    text = (
        "Mean return with the standard deviation over trajectories, and the 95 % bootstrap"
        " interval of the mean."
    )
    return Section("Returns", text, "returns", Table(columns, rows))


def _divergence_section(
    comparisons: Sequence[BehaviorComparison], names: Sequence[str], title: str, stem: str
) -> Section:
    text = (
        "Jensen-Shannon divergence between policies and source, in nats: of the contact fractions,"
        " with more than two feet the mean over pairs of feet, or of one metric at a time, whose"
        f" values outside the source's range count as far as the grid reaches. {ESTIMATOR}"
    )
    columns = ("behavior", "metric", "group", "n", "divergence", "low", "high", "within baseline")
    rows = tuple(
        (item.behavior, name, group, one.n, one.value, one.low, one.high,
         _within_baseline(item.divergences[name], group))
        for item in comparisons
        for name in names
        for group, one in item.divergences.get(name, {}).items()
    )  # fmt: skip
    return Section(title, text, stem, Table(columns, rows))


def _source_and_policies(comparisons: Sequence[BehaviorComparison]) -> Section:
    rows = []
    for item in comparisons:
        names = dict.fromkeys(name for found in item.statistics.values() for name in found)
        for name, group in itertools.product(names, item.differences):
            one, source = item.statistics[group].get(name), item.statistics[SOURCE].get(name)
            if one is None:
                continue
            gap = item.differences[group].get(name)
            rows.append((
                item.behavior, name, group, source.mean.value if source else None,
                one.mean.value, one.std,
                *((gap.value, gap.low, gap.high) if gap else (None, None, None)),
            ))  # fmt: skip
    columns = (
        "behavior", "metric", "group", "source", "mean", "standard deviation", "difference", "low",
        "high",
    )  # fmt: skip
    text = (
        "Mean of every known metric, the source's where data hold it, and the difference with its"
        " 95 % bootstrap interval over the trajectories of both sides."
        f" Names that begin with '{CONTACT}' are fractions of steps."
    )
    return Section("Source and policies", text, table=Table(columns, tuple(rows)))
