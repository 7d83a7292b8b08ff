"""What a look at diversity says: sections, figures, a table of points, headline numbers."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.analysis import diversity_pictures as pictures
from lwdctl.analysis.diversity import (
    CURVE,
    FOLDS,
    MOMENTS,
    TREES,
    ClusteredModes,
    Index,
    Modes,
    Spread,
    Starts,
    Values,
    chance_of_variation,
    effective_number,
    features,
    shares,
    total_variation,
)
from lwdctl.analysis.reconstruction import Interval
from lwdctl.analysis.sections import Section, Table, write_sections
from lwdctl.core.errors import SimulatorError
from lwdctl.evaluation.scores import wilson

POINTS = "diversity.csv"
DEMONSTRATED = "demonstrated"
SPREAD = (
    "Variance of states over trajectories at the same step, each component divided by its"
    " deviation over the training split, mean over components. A trajectory that ended stays"
    " where it was. All groups start from the same recorded states, one trajectory of each, so"
    " that initial states contribute as much everywhere. 'Ratio' divides the mean over steps by"
    " that of demonstrations: 1 is as varied, less is narrower. Intervals: 95 %, bootstrap over"
    " starts."
)
MODES = (
    "'Variation' is the total variation distance between a group's shares of modes and those"
    " demonstrated: 0 for equal shares, 1 where no mode is shared. 'By chance' is what two sets of"
    " as many trajectories with the demonstrated shares stay below in 95 % of draws. 'Effective'"
    " is the exponential of the entropy: how many equally frequent modes are as varied. 'Kept' is"
    " the share of trajectories in the mode of the demonstration whose start they have, beside"
    " that of the same shares without any relation; intervals of shares: Wilson, 95 %."
)


@dataclass(frozen=True)
class Group:
    """What one policy did.

    Attributes:
        states: (start, draw, time, obs) normalised and held, NaN where the simulator was lost.
        success: (start, draw).
    """

    states: Values
    success: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Findings:
    """Everything that was run.

    Attributes:
        task: Name of the task.
        episodes: (start,) store index of the demonstration whose start it is.
        chosen: (start,) index of that demonstration among those that taught the modes.
        demonstrated: (start, time, obs) its states, normalised and held.
        total: Demonstrations that taught the modes.
        modes: Tells modes.
        groups: Latent source to what its policies did.
        horizon: Executed steps between two queries, 0 for the whole episode.
        seed: Fixes all draws.
    """

    task: str
    episodes: Index
    chosen: Index
    demonstrated: Values
    total: int
    modes: Modes
    groups: Mapping[str, Group]
    horizon: int
    seed: int

    @cached_property
    def kept(self) -> npt.NDArray[np.bool_]:
        """(start,) whether no group lost an episode there."""
        lost = [np.isnan(group.states).any(axis=(1, 2, 3)) for group in self.groups.values()]
        kept: npt.NDArray[np.bool_] = ~np.any(lost, axis=0)
        return kept

    @cached_property
    def steps(self) -> Index:
        """The steps at which the spread is measured."""
        last = self.demonstrated.shape[1] - 1
        return np.unique(np.linspace(0, last, CURVE).round().astype(np.int64))

    @cached_property
    def told(self) -> dict[str, Index]:
        """Group to the modes (start, draw) of its trajectories; demonstrations have one draw."""
        chosen = self.chosen[self.kept]
        found = {DEMONSTRATED: self.modes.demonstrated[chosen][:, None]}
        for name, group in self.groups.items():
            states = group.states[self.kept]
            draws = states.shape[1]
            flat = states.reshape(-1, *states.shape[2:])
            told = self.modes.tell(features(flat), np.repeat(chosen, draws))
            found[name] = told.reshape(-1, draws)
        return found

    @cached_property
    def spreads(self) -> dict[str, Spread]:
        """Group to the spread of its first draws."""
        first = {
            name: group.states[self.kept][:, 0][:, self.steps]
            for name, group in self.groups.items()
        }
        groups = {DEMONSTRATED: self.demonstrated[self.kept][:, self.steps], **first}
        return self._starts.spreads(groups, DEMONSTRATED)

    @cached_property
    def within(self) -> dict[str, Interval]:
        """Group with several draws to the share of its spread between draws of one start."""
        return {
            name: self._starts.within(group.states[self.kept][:, :, self.steps])
            for name, group in self.groups.items()
            if group.states.shape[1] > 1
        }

    @cached_property
    def _starts(self) -> Starts:
        return Starts(int(self.kept.sum()), self.seed)


def write(findings: Findings, directory: Path, title: str) -> dict[str, Any]:
    """Write sections, figures and a table of points below a draft's directory.

    Returns:
        The headline numbers.

    Raises:
        SimulatorError: Simulators were lost from all starts but one, or from all.
    """
    if findings.kept.sum() < 2:
        raise SimulatorError(
            f"simulators were lost from {(~findings.kept).sum()} of {len(findings.kept)} starts",
            "see `lwdctl doctor`",
        )
    numbers = _numbers(findings)
    figures = {
        "spread": pictures.draw_spread(findings.steps, findings.spreads),
        "modes": pictures.draw_modes(
            findings.modes.names,
            {name: one["mode_shares"] for name, one in numbers.items()},
            int(findings.kept.sum()),
        ),
    }
    sections = [_what(findings), _spread(findings), _modes(findings, numbers)]
    if findings.within:
        sections.append(_within(findings))
    write_sections(directory, title, sections, figures)
    _write_points(findings, directory / POINTS)
    return {
        "task": findings.task,
        "starts": int(findings.kept.sum()),
        "steps": findings.demonstrated.shape[1] - 1,
        "horizon": findings.horizon or "episode",
        "modes_told_right": findings.modes.accuracy,
        **numbers,
    }


def _numbers(findings: Findings) -> dict[str, dict[str, Any]]:
    names = findings.modes.names
    demonstrated = findings.told[DEMONSTRATED][:, 0]
    reference = shares(demonstrated, len(names))
    count = len(demonstrated)
    chance = chance_of_variation(reference, count, findings.seed)
    found: dict[str, dict[str, Any]] = {}
    for name, told in findings.told.items():
        share = shares(told[:, 0], len(names))
        spread = findings.spreads[name]
        found[name] = {
            "mode_shares": dict(zip(names, share.tolist(), strict=True)),
            "effective_modes": effective_number(share),
            "mean_variance": float(np.mean([one.mean for one in spread.curve])),
        }
        if name == DEMONSTRATED:
            continue
        kept = int((told[:, 0] == demonstrated).sum())
        low, high = wilson(kept, count)
        success = findings.groups[name].success[findings.kept][:, 0]
        rate_low, rate_high = wilson(int(success.sum()), count)
        found[name] |= {
            "success": float(success.mean()),
            "success_low": rate_low, "success_high": rate_high,
            "variance_ratio": spread.ratio.mean,
            "variance_ratio_low": spread.ratio.low, "variance_ratio_high": spread.ratio.high,
            "mode_variation": total_variation(share, reference),
            "mode_variation_by_chance": chance,
            "mode_kept": kept / count, "mode_kept_low": low, "mode_kept_high": high,
            "mode_kept_unrelated": float(share @ reference),
        }  # fmt: skip
        if name in findings.within:
            one = findings.within[name]
            found[name] |= {
                "within_starts": one.mean,
                "within_starts_low": one.low, "within_starts_high": one.high,
                "draws_in_one_mode": _agreement(told),
                "draws_in_one_mode_unrelated": float((share**2).sum()),
            }  # fmt: skip
    return found


def _agreement(told: Index) -> float:
    """Return the share of pairs of draws from one start that are in one mode."""
    draws = told.shape[1]
    pairs = [told[:, a] == told[:, b] for a in range(draws) for b in range(a)]
    return float(np.mean(pairs))


def _what(findings: Findings) -> Section:
    modes = findings.modes
    moments = f"the states at {MOMENTS} equally spaced moments"
    if isinstance(modes, ClusteredModes):
        how = (
            f"The data names no behaviours: modes are {len(modes.names)} clusters (k-means on"
            f" principal components of {moments}, silhouette {modes.silhouette:.3f})."
        )
    else:
        how = (
            f"Modes are the data's labels, told from {moments} by random forests of {TREES} trees"
            f" ({FOLDS}-fold). A demonstration, and whatever starts where it does, is judged by"
            f" the forest that did not see it; {modes.accuracy:.3f} of demonstrations are told"
            " right. Shares are compared as told, with the same errors on both sides."
        )
    often = f"every {findings.horizon} steps" if findings.horizon else "once"
    lost = int((~findings.kept).sum())
    without = f" {lost} starts are left out: a simulator was lost there." if lost else ""
    text = (
        f"Task '{findings.task}': policies run from the first states of"
        f" {int(findings.kept.sum())} recorded demonstrations for at most"
        f" {findings.demonstrated.shape[1] - 1} steps, a policy generated {often}. {how} Whether"
        f" a trajectory succeeds does not matter for its mode or spread.{without}"
    )
    rows = []
    for name, group in findings.groups.items():
        success = group.success[findings.kept]
        low, high = wilson(int(success.sum()), success.size)
        rows.append((name, *success.shape, float(success.mean()), low, high))
    columns = ("latent", "starts", "draws", "success", "low", "high")
    return Section("What was run", text, table=Table(columns, tuple(rows)))


def _spread(findings: Findings) -> Section:
    rows = tuple(
        (
            name, float(np.mean([point.mean for point in one.curve])), one.curve[-1].mean,
            one.ratio.mean, one.ratio.low, one.ratio.high,
        )
        for name, one in findings.spreads.items()
    )  # fmt: skip
    columns = ("group", "mean variance", "variance at the end", "ratio", "low", "high")
    return Section("Spread of states", SPREAD, "spread", Table(columns, rows))


def _modes(findings: Findings, numbers: Mapping[str, Mapping[str, Any]]) -> Section:
    names = ("mode_variation", "mode_variation_by_chance", "mode_kept", "mode_kept_low",
             "mode_kept_high", "mode_kept_unrelated")  # fmt: skip
    rows = tuple(
        (
            group, *one["mode_shares"].values(), one["effective_modes"],
            *(one.get(name) for name in names),
        )
        for group, one in numbers.items()
    )  # fmt: skip
    columns = (
        "group", *findings.modes.names, "effective", "variation", "by chance", "kept", "low",
        "high", "unrelated",
    )  # fmt: skip
    return Section("Modes of behaviour", MODES, "modes", Table(columns, rows))


def _within(findings: Findings) -> Section:
    rows = []
    for name, one in findings.within.items():
        told = findings.told[name]
        share = shares(told[:, 0], len(findings.modes.names))
        rows.append(
            (name, told.shape[1], one.mean, one.low, one.high, _agreement(told),
             float((share**2).sum()))
        )  # fmt: skip
    columns = (
        "latent", "draws", "share of spread", "low", "high", "pairs in one mode", "unrelated",
    )  # fmt: skip
    text = (
        "Several policies sampled for the same start: which share of the spread lies between them"
        " (0: the start decides everything; 1: nothing), and how often two of them are in one"
        " mode, beside how often two would be whose modes had nothing to do with their start."
    )
    return Section("Different answers to the same start", text, table=Table(columns, tuple(rows)))


def _write_points(findings: Findings, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("group", "episode", "draw", "mode", "success"))
        episodes = findings.episodes[findings.kept]
        for name, told in findings.told.items():
            for place, draw in np.ndindex(*told.shape):
                success = (
                    int(findings.groups[name].success[findings.kept][place, draw])
                    if name in findings.groups
                    else ""
                )
                mode = findings.modes.names[told[place, draw]]
                writer.writerow((name, episodes[place], draw, mode, success))
