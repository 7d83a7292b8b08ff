"""What a comparison of behaviors says: sections, headline numbers, rows of a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lwdctl.analysis import behavior_pictures as pictures
from lwdctl.analysis.behavior import CONTACTS, HAMMER, SOS, Compared
from lwdctl.analysis.divergence import DRAWS, FLOOR, Divergence
from lwdctl.analysis.sections import Section
from lwdctl.analysis.tables import Table
from lwdctl.analysis.trajectories import CONTACT, RETURN, SOURCE, STEPS, SUCCESS, Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ESTIMATOR = (
    "Estimator: Gaussian kernel densities with one bandwidth for both sets, evaluated on one grid"
    " and normalized there, so that values lie between 0 and ln 2 = 0.693 nats. Bandwidth and"
    " grid come from the source alone (Scott's rule for the size of the sets on the smaller of"
    f" deviation and interquartile range / 1.349, at least {100 * FLOOR:g} % of the range)."
    " 'sos' is the source against itself: two disjoint random sets of it,"
    f" {DRAWS} draws; its interval holds 95 % of them. A policy is compared with the first set"
    " of the same draws, n against n everywhere, because the estimate grows as n falls; its"
    " interval is a bootstrap's over the trajectories of both sides. 'Inside' says that a"
    " policy's mean is at most the upper end of the interval of sos."
)
DECODED = (
    " Decoded policies imitate single trajectories of the source, which may stand on the other"
    " side of the comparison; sampled ones do not."
)


def sections_of(
    compared: Sequence[Compared], limit: int
) -> tuple[list[Section], dict[str, Figure]]:
    """Return the sections in reading order and their figures.

    Args:
        compared: One entry per behavior.
        limit: Steps that trajectories were cut to, 0 for none.
    """
    sections = [_numbers(compared, limit)]
    figures: dict[str, Figure] = {}
    if any(RETURN in spread for item in compared for spread in item.spreads.values()):
        figures["returns"] = pictures.draw_returns(compared)
        sections.append(_returns(compared))
    if _quantity(compared, CONTACTS):
        figures["contacts"] = pictures.draw_contacts(compared)
        figures["divergence"] = pictures.draw_divergences(
            compared, [CONTACTS], "Jensen-Shannon divergence (nats)"
        )
        sections += [_contacts(), _divergence(compared)]
    hammer = [name for name in HAMMER if _quantity(compared, name)]
    if hammer:
        figures["metrics"] = pictures.draw_metrics(compared, hammer)
        figures["metric-divergence"] = pictures.draw_divergences(
            compared, hammer, "Jensen-Shannon divergence (nats)"
        )
        sections += [_metric_points(), _metric_divergence(compared, hammer)]
    sections.append(_metrics(compared))
    return sections, figures


def summary_of(compared: Sequence[Compared]) -> dict[str, Any]:
    """Return behavior to group to headline numbers; `sos` is the source against itself."""
    return {
        item.behavior: {
            **{group: _headline(item, group) for group in item.groups},
            SOS: _measured(item, SOS),
        }
        for item in compared
    }


def write_rows(trajectories: Sequence[Trajectory], compared: Sequence[Compared]) -> str:
    """Return CSV text: every trajectory, its metrics, and whether it was among equal numbers."""
    drawn = {id(one) for item in compared for items in item.groups.values() for one in items}
    names = list(dict.fromkeys(name for item in trajectories for name in item.values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "behavior", "group", "origin", "drawn", "policy_failure", *names])
    for item in trajectories:
        values = [item.values.get(name, "") for name in names]
        row = [
            item.task,
            item.behavior,
            item.group,
            item.origin,
            int(id(item) in drawn),
            item.failure,
        ]
        writer.writerow([*row, *values])
    return buffer.getvalue()


def _headline(item: Compared, group: str) -> dict[str, Any]:
    spreads = item.spreads[group]
    found: dict[str, Any] = {"trajectories": item.count}
    if RETURN in spreads:
        found["return_deviation"] = spreads[RETURN].deviation
    for name, spread in spreads.items():
        if name in (RETURN, STEPS, SUCCESS, *HAMMER) or name.startswith(CONTACT):
            found[f"{name}_mean"] = spread.mean
    return found | _measured(item, group)


def _measured(item: Compared, group: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for quantity, divergences in item.divergences.items():
        if group not in divergences:
            continue
        prefix = "" if quantity == CONTACTS else f"{quantity}_"
        one = divergences[group]
        found |= {
            f"{prefix}js": one.mean, f"{prefix}js_low": one.low, f"{prefix}js_high": one.high,
            "js_set_size": one.size,
        }  # fmt: skip
        if group != SOS:
            found[f"{prefix}inside_sos"] = divergences[SOS].holds(one)
    return found


def _quantity(compared: Sequence[Compared], name: str) -> bool:
    return any(name in item.divergences for item in compared)


def _numbers(compared: Sequence[Compared], limit: int) -> Section:
    cut = f" Trajectories of the source are cut to the {limit} steps rollouts had." if limit else ""
    text = (
        "As many trajectories of the source as of every policy, drawn at random; the rest stand"
        f" in behavior.csv.{cut} A trajectory that ended early counts as it is: its shares are"
        " over the steps it had, its return is the sum of what it got. An episode that the policy"
        " broke off (unstable physics, a number that is not finite) counts with the worst value of"
        " every metric (0, or the largest distance), and with the return it had until then."
    )
    rows = tuple(
        (
            item.behavior, group, item.count,
            *(function(one.values[STEPS] for one in items) for function in (min, max)),
            item.spreads[group][STEPS].mean, sum(bool(one.failure) for one in items),
        )
        for item in compared
        for group, items in item.groups.items()
    )  # fmt: skip
    columns = (
        "behavior", "group", "trajectories", "fewest steps", "most steps", "mean steps",
        "broken off",
    )  # fmt: skip
    return Section("What was compared", text, table=Table(columns, rows))


def _returns(compared: Sequence[Compared]) -> Section:
    rows = tuple(
        (item.behavior, group, item.count, one.mean, one.deviation, one.low, one.high)
        for item in compared
        for group, spread in item.spreads.items()
        for name, one in spread.items()
        if name == RETURN
    )
    columns = ("behavior", "group", "trajectories", "mean", "deviation", "low", "high")
    text = (
        "Mean return with the standard deviation between trajectories, and the 95 % bootstrap"
        " interval of the mean over trajectories."
    )
    return Section("Returns", text, "returns", Table(columns, rows))


def _contacts() -> Section:
    text = (
        "Share of a trajectory's steps with a foot on the floor, one foot against another. The"
        " source is measured from recorded observations by the code that measures rollouts."
    )
    return Section("Foot contacts", text, "contacts")


def _divergence(compared: Sequence[Compared]) -> Section:
    text = (
        "Jensen-Shannon divergence, in nats, between the contact shares of policies and source;"
        f" with more than two feet the mean over pairs of feet. {ESTIMATOR}{DECODED}"
    )
    columns = ("behavior", "group", "n", "divergence", "low", "high", "inside sos")
    rows = tuple(
        (item.behavior, *row)
        for item in compared
        for row in _rows(item.divergences.get(CONTACTS, {}))
    )
    return Section("Divergence of foot contacts", text, "divergence", Table(columns, rows))


def _rows(divergences: Mapping[str, Divergence]) -> Iterator[tuple[Any, ...]]:
    for group, one in divergences.items():
        inside = None if group == SOS else divergences[SOS].holds(one)
        yield group, one.size, one.mean, one.low, one.high, inside


def _metric_points() -> Section:
    text = "Behavior metrics of every trajectory, of the source and of the policies."
    return Section("Behavior metrics", text, "metrics")


def _metric_divergence(compared: Sequence[Compared], names: Sequence[str]) -> Section:
    columns = ("behavior", "metric", "group", "n", "divergence", "low", "high", "inside sos")
    rows = tuple(
        (item.behavior, name, *row)
        for item in compared
        for name in names
        for row in _rows(item.divergences.get(name, {}))
    )
    text = (
        "Jensen-Shannon divergence of one metric at a time, in nats; values outside the source's"
        f" range count as far as the grid reaches. {ESTIMATOR}{DECODED}"
    )
    return Section("Divergence per metric", text, "metric-divergence", Table(columns, rows))


def _metrics(compared: Sequence[Compared]) -> Section:
    columns = (
        "behavior", "metric", "group", "source", "mean", "deviation", "difference", "low", "high",
    )  # fmt: skip
    rows = tuple(
        (item.behavior, name, group, *_against(item, group, name))
        for item in compared
        for name in dict.fromkeys(n for spread in item.spreads.values() for n in spread)
        for group in item.groups
        if group != SOURCE and name in item.spreads[group]
    )
    text = (
        "Means of every number that is known, of the source where data hold it, with the"
        " difference and its 95 % bootstrap interval over the trajectories of both sides."
        f" Names that begin with '{CONTACT}' are shares of steps."
    )
    return Section("Source against policies", text, table=Table(columns, rows))


def _against(item: Compared, group: str, name: str) -> tuple[Any, ...]:
    spread = item.spreads[group][name]
    source = item.spreads[SOURCE].get(name)
    difference = item.differences[group].get(name)
    told = (difference.mean, difference.low, difference.high) if difference else (None,) * 3
    return source.mean if source else None, spread.mean, spread.deviation, *told
