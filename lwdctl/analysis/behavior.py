"""Do policies behave as the trajectories that they were trained on?"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lwdctl.analysis import plotting
from lwdctl.analysis.analyses import AnalyzeBehaviorConfig
from lwdctl.analysis.divergence import DRAWS, MAX_DIVERGENCE, MIN_BANDWIDTH
from lwdctl.analysis.evaluations import SUCCESS, Run
from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table, flatten_estimate, show_range
from lwdctl.analysis.trajectories import (
    CONTACT,
    CONTACTS,
    RETURN,
    SOURCE,
    SOURCE_VS_SOURCE,
    STEPS,
    BehaviorComparison,
    Divergences,
    MetricStatistics,
    Trajectory,
    behavior_measures,
    compare_behaviors,
    metrics,
    policy_trajectories,
    source_trajectories,
)
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.evaluation.results import magnitude_format
from lwdctl.evaluation.traced import count_lost

TRAJECTORIES = "behavior"
CONTACTS_TEXT = (
    "Fraction of a trajectory's steps with a foot on the floor, one foot against another. The"
    " source is measured from recorded observations by the code that measures rollouts."
)
ESTIMATOR = (
    "Estimator: Gaussian kernel densities with one bandwidth for both sets, evaluated on one grid"
    " and normalized there, so that values lie between 0 and ln 2 = 0.693 nats. Bandwidth and grid"
    " come from the source alone (Scott's rule for the size of the sets on the smaller of standard"
    f" deviation and interquartile range / 1.349, at least {100 * MIN_BANDWIDTH:g} % of the range;"
    " of the mean where numbers have no bounds and their mean is larger than their range)."
    " The source-vs-source baseline compares two disjoint random sets of the source, in"
    f" {DRAWS} draws; its interval covers 95 % of them. A policy is compared with the first set of"
    " the same draws; all sets have the same size n, because the estimate grows as n falls; its"
    " interval is a bootstrap's over the trajectories of both sides. 'Below baseline mean' is the"
    " paper's rule: a policy's mean is at most the mean of the source-vs-source baseline. 'Within"
    " baseline' is ours and weaker: its mean is at most the upper end of that interval, which does"
    " not show that policy and source cannot be told apart."
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

    Raises:
        ArtifactError: The evaluation ran no behavior of the data.
    """
    progress = progress or TqdmProgress()
    limit = evaluation[0].max_steps or snippets.spec.env.max_steps
    measures = behavior_measures(snippets.spec.env, evaluation[0].tasks)
    trajectories = source_trajectories(
        snippets, limit, config.source, config.seed, progress, measures
    )
    runs = _named(evaluation)
    for name, run in runs.items():
        trajectories += policy_trajectories(run, name, snippets.spec.labels)
    comparisons = compare_behaviors(trajectories, measures, config.seed, progress)
    return Findings(
        title="Behavior of the source and of the policies",
        sections=list(compose(comparisons, limit)),
        tables={TRAJECTORIES: trajectory_table(trajectories, comparisons)},
        summary={**summarize(comparisons), "steps_compared": limit},
        lost=count_lost({name: run.episodes for name, run in runs.items()}),
    )


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Name every run by policy and latent, and by the conditions in which runs differ."""
    rows = [run.overall for run in runs]
    horizons = {row.horizon for row in rows} - {None}
    seeds = {row.train_seed for row in rows} - {None}
    perturbations = {row.perturbation for row in rows}
    digits = magnitude_format(perturbations)
    named = {}
    for run, row in zip(runs, rows, strict=True):
        parts = [
            row.policy,
            row.latent,
            f"h{row.horizon}" if len(horizons) > 1 and row.horizon is not None else "",
            f"p{row.perturbation:{digits}}" if len(perturbations) > 1 else "",
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
    rows = (
        (
            item.task, item.behavior, item.group, item.origin, int(id(item) in drawn),
            item.failure, *(item.values.get(name, "") for name in names),
        )
        for item in trajectories
    )  # fmt: skip
    columns = ("task", "behavior", "group", "origin", "drawn", "policy_failure", *names)
    return Table.of(columns, rows)


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
        found |= flatten_estimate(f"{prefix}js", divergences[group])
        found["js_set_size"] = divergences[group].n
        if group != SOURCE_VS_SOURCE:
            rules = baseline_rules(divergences, group)
            found |= {f"{prefix}{name}": passed for name, passed in rules.items()}
    return found


def baseline_rules(divergences: Divergences, group: str) -> dict[str, bool | None]:
    """Tell which rules a policy passes; None for the baseline itself.

    Returns:
        `below_baseline_mean`, the paper's rule: its mean is at most the baseline's mean.
        `within_baseline`, ours and weaker: its mean is at most the upper end of the interval.
    """
    baseline, value = divergences[SOURCE_VS_SOURCE], divergences[group].value
    limits = {"below_baseline_mean": baseline.value, "within_baseline": baseline.high}
    return {
        name: None if group == SOURCE_VS_SOURCE else value <= limit
        for name, limit in limits.items()
    }


def compose(comparisons: Sequence[BehaviorComparison], limit: int) -> Iterator[Section]:
    """Yield the sections of a comparison per behavior; `limit` is as in `source_trajectories`."""
    yield _what_was_compared(comparisons, limit)
    if any(RETURN in one for item in comparisons for one in item.statistics.values()):
        rows = (
            (item.behavior, group, item.count, one.mean.value, one.std, one.mean.low, one.mean.high)
            for item in comparisons
            for group, found in item.statistics.items()
            if (one := found.get(RETURN))
        )
        columns = ("behavior", "group", "trajectories", "mean", "standard deviation", "low", "high")
        text = (
            "Mean return with the standard deviation over trajectories, and the 95 % bootstrap"
            " interval of the mean."
        )
        table = Table.of(columns, rows)
        yield Section("Returns", text, "returns", table, draw_returns(comparisons))
    quantities = dict.fromkeys(name for item in comparisons for name in item.divergences)
    names = [name for name in quantities if name != CONTACTS]
    if CONTACTS in quantities:
        figure = draw_contacts(comparisons)
        yield Section("Foot contacts", CONTACTS_TEXT, "contacts", drawing=figure)
        title = "Divergence of foot contacts"
        yield _divergence_section(comparisons, [CONTACTS], title, "divergence")
    if names:
        text = "Behavior metrics of every trajectory, of the source and of the policies."
        figure = draw_metrics(comparisons, names)
        yield Section("Behavior metrics", text, "metrics", drawing=figure)
        title = "Divergence per metric"
        yield _divergence_section(comparisons, names, title, "metric-divergence")
    yield _source_and_policies(comparisons)


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
    rows = (
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
    return Section("What was compared", text, table=Table.of(columns, rows))


def _divergence_section(
    comparisons: Sequence[BehaviorComparison], names: Sequence[str], title: str, stem: str
) -> Section:
    text = (
        "Jensen-Shannon divergence between policies and source, in nats: of the contact fractions,"
        " with more than two feet the mean over pairs of feet, or of one metric at a time, whose"
        f" values outside the source's range count as far as the grid reaches. {ESTIMATOR}"
    )
    columns = (
        "behavior", "metric", "group", "n", "divergence", "low", "high", "below baseline mean",
        "within baseline",
    )  # fmt: skip
    rows = (
        (item.behavior, name, group, one.n, one,
         *baseline_rules(item.divergences[name], group).values())
        for item in comparisons
        for name in names
        for group, one in item.divergences.get(name, {}).items()
    )  # fmt: skip
    figure = draw_divergences(comparisons, names)
    return Section(title, text, stem, Table.of(columns, rows), figure)


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
                one.mean.value, one.std, *([gap] if gap else [None] * 3),
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
    return Section("Source and policies", text, table=Table.of(columns, rows))


def draw_contacts(comparisons: Sequence[BehaviorComparison]) -> Figure:
    """Draw fractions of steps with contact, foot against foot: a panel per group and pair."""
    groups = _groups(comparisons)
    names = comparisons[0].measured
    pairs = list(itertools.combinations(names, 2)) or [(names[0], names[0])]
    figure, grid = _panels(len(pairs), len(groups), (2.5, 2.5))
    for row, (first, second) in zip(grid, pairs, strict=True):
        for axes, group in zip(row, groups, strict=True):
            for index, item in enumerate(comparisons):
                if group in item.groups:
                    points = metrics(item.groups[group], [first, second])
                    axes.scatter(*points.T, **_point_style(index), label=item.behavior)
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            axes.set_xlabel(_foot(first), size=8)
        row[0].set_ylabel(_foot(second), size=8)
    for axes, group in zip(grid[0], groups, strict=True):
        axes.set_title(group, size=10)
    what = "Fraction of steps with the foot on the floor; a point is one of"
    plotting.finish(figure, f"{what} {_numbers(comparisons)}.")
    return figure


def draw_returns(comparisons: Sequence[BehaviorComparison]) -> Figure:
    """Draw the mean return per behavior and group as bars, standard deviations as lines."""
    found: dict[str, dict[int, MetricStatistics]] = {}
    for group, (place, item) in itertools.product(_groups(comparisons), enumerate(comparisons)):
        if RETURN in item.statistics.get(group, {}):
            found.setdefault(group, {})[place] = item.statistics[group][RETURN]
    width = max(4.5, 1.2 + 0.5 * len(found) * len(comparisons))
    figure, ((axes,),) = _panels(1, 1, (width, 3.2))
    for index, (group, bars) in enumerate(found.items()):
        means, stds = [one.mean.value for one in bars.values()], [one.std for one in bars.values()]
        color = plotting.series_style(index)["color"]
        plotting.draw_bars(
            axes, index, len(found), list(bars), means, stds, color=color, label=group
        )
    axes.set_xticks(range(len(comparisons)), [item.behavior for item in comparisons])
    axes.set_ylabel("Return")
    axes.axhline(0.0, color="0.3", linewidth=0.6)
    plotting.finish(figure, f"Means of {_numbers(comparisons)}; lines: one standard deviation.")
    return figure


def draw_divergences(
    comparisons: Sequence[BehaviorComparison], quantities: Sequence[str]
) -> Figure:
    """Draw every policy's divergence from the source, the source-vs-source baseline as a band.

    `quantities` are keys of `BehaviorComparison.divergences`, a panel each.
    """
    size = (2.4 + 0.4 * len(comparisons), 3.0)
    figure, grid = _panels(1, len(quantities), size, sharey=True)
    for axes, quantity in zip(grid[0], quantities, strict=True):
        found = [item.divergences.get(quantity, {}) for item in comparisons]
        for place, divergences in enumerate(found):
            if SOURCE_VS_SOURCE in divergences:
                baseline = divergences[SOURCE_VS_SOURCE]
                ends = (place - 0.45, place + 0.45)
                label = "source vs. source" if place == 0 else None
                axes.fill_between(
                    ends, baseline.low, baseline.high, color="0.85", linewidth=0, label=label
                )
                axes.hlines(baseline.value, *ends, color="0.5", linewidth=1)
        policies = [name for name in _groups(comparisons) if any(name in one for one in found)]
        for index, group in enumerate(policies):
            places = [place for place, one in enumerate(found) if group in one]
            shift = 0.22 * (index - (len(policies) - 1) / 2)
            style = plotting.series_style(index + 1) | {
                "marker": plotting.series_style(index)["marker"]
            }
            plotting.draw_error_bars(
                axes, [place + shift for place in places],
                [found[place][group] for place in places], label=group, **style,
            )  # fmt: skip
        axes.axhline(MAX_DIVERGENCE, color="0.3", linestyle="--", linewidth=0.8)
        axes.set(xlim=(-0.6, len(comparisons) - 0.4), ylim=(-0.02, 0.74))
        axes.set_xticks(range(len(comparisons)), [item.behavior for item in comparisons])
        axes.set_title(textwrap.fill(quantity.replace("_", " "), 22), size=9)
    grid[0][0].set_ylabel("Jensen-Shannon divergence (nats)")
    plotting.finish(figure, "Bars and band: 95 % intervals. Dashed: ln 2, no overlap.")
    return figure


def draw_metrics(comparisons: Sequence[BehaviorComparison], names: Sequence[str]) -> Figure:
    """Draw one panel per metric: every trajectory of every group as a point."""
    groups = _groups(comparisons)
    figure, grid = _panels(1, len(names), (2.0 + 0.1 * len(groups), 3.2))
    rng = np.random.default_rng(0)  # only moves points sideways
    for axes, name in zip(grid[0], names, strict=True):
        for place, group in enumerate(groups):
            for index, item in enumerate(comparisons):
                if name in item.statistics.get(group, {}):
                    values = metrics(item.groups[group], [name])[:, 0]
                    aside = place + rng.uniform(-0.25, 0.25, len(values))
                    axes.scatter(aside, values, **_point_style(index), label=item.behavior)
        axes.set_xticks(range(len(groups)), groups, rotation=40, ha="right", size=7)
        axes.set_title(textwrap.fill(name.replace("_", " "), 20), size=8)
        axes.tick_params(axis="y", labelsize=7)
    plotting.finish(figure, f"A point is one of {_numbers(comparisons)}.")
    return figure


def _panels(
    rows: int, columns: int, size: tuple[float, float], **subplots: Any
) -> tuple[Figure, list[list[Any]]]:
    width, height = size
    return plotting.new_figure(
        0.6 + width * columns, 0.9 + height * rows, rows, columns, **subplots
    )


def _groups(comparisons: Sequence[BehaviorComparison]) -> list[str]:
    return list(dict.fromkeys(name for item in comparisons for name in item.groups))


def _point_style(index: int) -> Mapping[str, Any]:
    return {"s": 16, "alpha": 0.7, "linewidths": 0, **plotting.series_style(index)}


def _foot(metric: str) -> str:
    return metric.removeprefix(CONTACT).replace("_", " ")


def _numbers(comparisons: Sequence[BehaviorComparison]) -> str:
    counts = [item.count for item in comparisons]
    return f"{show_range(counts)} trajectories per behavior and group"
