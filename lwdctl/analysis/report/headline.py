"""The first thing to read: success, or the score where nothing is solved, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwdctl.analysis.evaluations import horizon_order, label_of
from lwdctl.analysis.pairing import Group, matrix
from lwdctl.analysis.report.records import Bar, Headline
from lwdctl.analysis.resample import mean_estimate
from lwdctl.analysis.results import Cell, Comparison
from lwdctl.analysis.words import NOTHING, estimate, short, show

MOST_BARS = 12
ROLES = {
    ("lwd", "sampled"): "the method: policies sampled by the diffusion model",
    ("lwd", "oracle"): "the autoencoder alone: a demonstration's own latent, from its own start",
    ("lwd", "shuffled"): "control: the latent of another task or behavior",
    ("lwd", "mean"): "control: the mean of all latents",
    ("dp", ""): "Diffusion Policy on the same data",
    ("ldp", ""): "latent Diffusion Policy on the same data",
    ("mlp", ""): "behavior cloning with one network on the same data",
    ("random", ""): "control: random actions",
}
"""Policy and latent source to what it is there for."""
NOTHING_SOLVED = (
    "No episode of any policy was solved; locomotion defines no success. The bars show the"
    " environment's score instead."
)


def headline(comparison: Comparison, labels: Sequence[Labeled] = ()) -> Headline:
    """Show the least disturbed condition: one bar per policy and horizon, the method first.

    Args:
        comparison: All conditions.
        labels: Scores by behavior label; they are shown where nothing is solved, because a
            mean over behaviors of different skill says little.
    """
    least = min(cell.perturbation for cell in comparison.overall)
    cells = [cell for cell in comparison.overall if cell.perturbation == least]
    solved = shows_success(comparison)
    metric = comparison.metric.replace("_", " ")
    if not solved and labels:
        lines = [item for item in labels if item.perturbation == least]
    else:
        several = len({cell.horizon for cell in cells} - {None}) > 1
        lines = [_line(cell, metric, solved=solved, several=several) for cell in _ordered(cells)]
    notes = [] if solved else [NOTHING_SOLVED]
    if len(lines) > MOST_BARS:
        notes.append(f"The first {MOST_BARS} of {len(lines)} conditions; all are in the tables.")
    if len(cells) < len(comparison.overall):
        name = f"perturbation {least:g}" if least else "undisturbed"
        notes.append(f"Shown: {name}. The other conditions are in the tables.")
    low, high = (0.0, 1.0) if solved else _span(lines)
    return Headline(
        quantity="Success" if solved else metric.capitalize(),
        axis=(show(low), show(high) if high <= 1 else short(high)),
        bars=tuple(_bar(line, low, high) for line in lines[:MOST_BARS]),
        notes=tuple(notes),
    )


def shows_success(comparison: Comparison) -> bool:
    """Tell whether success says anything: something was solved, or no score is above it."""
    cells = comparison.overall
    return any(cell.successes for cell in cells) or not any(cell.score for cell in cells)


@dataclass(frozen=True)
class Labeled:
    """A value with its interval and what it belongs to; `more` stands beside the episodes."""

    label: str
    detail: str
    episodes: str
    perturbation: float
    value: float | None
    low: float | None
    high: float | None
    more: str = ""


def score_by_label(groups: Sequence[Group], metric: str) -> list[Labeled]:
    """Return the mean score of every policy and behavior label with its 95 % interval."""
    answer = []
    several = len({group.one.horizon for group in groups} - {None}) > 1
    for group in groups:
        run = group.one
        scores, states = matrix(group, metric)
        names = np.array([label_of(start) for start in run.starts])
        for label in sorted(set(names) - {""}):
            some = scores[:, names == label]
            if np.isnan(some).all():
                continue
            found = mean_estimate(some, states.of(names == label))
            answer.append(
                Labeled(
                    label=f"{run.label}, {label}{_horizon(run.horizon, several=several)}",
                    detail=ROLES.get((run.policy, run.latent), ""),
                    episodes=f"{int((~np.isnan(some)).sum())} episodes",
                    perturbation=run.perturbation,
                    value=float(np.nanmean(some)),
                    low=None if np.isnan(found.low) else found.low,
                    high=None if np.isnan(found.high) else found.high,
                )
            )
    return answer


def _horizon(horizon: int | str | None, *, several: bool) -> str:
    return f", horizon {horizon}" if several and horizon is not None else ""


def _line(cell: Cell, metric: str, *, solved: bool, several: bool) -> Labeled:
    success = (cell.success, cell.success_low, cell.success_high)
    value, low, high = success if solved else (cell.score, cell.score_low, cell.score_high)
    score = NOTHING if cell.score is None else short(cell.score)
    return Labeled(
        label=cell.label + _horizon(cell.horizon, several=several),
        detail=ROLES.get((cell.policy, cell.latent), ""),
        episodes=_counted(cell),
        perturbation=cell.perturbation,
        value=value,
        low=low,
        high=high,
        more=f"{metric} {score}" if solved else "none of them solved",
    )


def _bar(line: Labeled, low: float, high: float) -> Bar:
    def place(number: float | None) -> float:
        share = ((low if number is None else number) - low) / (high - low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    return Bar(
        label=line.label,
        detail=line.detail,
        text=estimate(line.value, line.low, line.high),
        episodes=line.episodes,
        more=line.more,
        place=place(line.value),
        low=place(line.value if line.low is None else line.low),
        high=place(line.value if line.high is None else line.high),
    )


def _ordered(cells: Sequence[Cell]) -> list[Cell]:
    """Put the method first; where not all can be shown, the shortest horizons first."""
    roles = list(ROLES)

    def key(cell: Cell) -> tuple[Any, ...]:
        who = (cell.policy, cell.latent)
        role = roles.index(who) if who in roles else len(roles), cell.label
        horizon = horizon_order(cell.horizon)
        return (role, horizon) if len(cells) <= MOST_BARS else (horizon, role)

    return sorted(cells, key=key)


def _counted(cell: Cell) -> str:
    seeds = len(cell.train_seeds)
    more = f" of {seeds} training seeds" if seeds > 1 else ""
    return f"{cell.episodes} episodes{more}" + (f" ({cell.errors} lost)" if cell.errors else "")


def _span(lines: Sequence[Labeled]) -> tuple[float, float]:
    """Return an axis that begins at zero and holds every interval."""
    numbers = [end for line in lines for end in (line.value, line.low, line.high)]
    ends = [end for end in numbers if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (low, low + 1.0)
