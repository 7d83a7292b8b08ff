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
    NOTHING,
    Index,
    Modes,
    Spread,
    Starts,
    Values,
    agreement,
    chance_of_variation,
    effective_number,
    features,
    shares,
    total_variation,
)
from lwdctl.analysis.sections import Section, write_sections
from lwdctl.analysis.separability import Rate
from lwdctl.analysis.tables import Table
from lwdctl.core.errors import SimulatorError
from lwdctl.evaluation.results import wilson

POINTS = "diversity.csv"
MOST_COMPONENTS = 8
DEMONSTRATED = "demonstrated"
SPREAD = (
    "Variance of states over trajectories at the same step, each component divided by its"
    " deviation over the training split, mean over components; the mean over steps is over at"
    f" most {CURVE} of them, the start among them. All groups start from the same recorded"
    " states, one trajectory of each (the first draw), so that initial states contribute as much"
    " everywhere. 'Ratio' divides by the mean variance of demonstrations: 1 is as varied, less is"
    " narrower. Intervals: 95 %, bootstrap over starts."
)
MODES = (
    "One trajectory of every start. 'Variation' is the total variation distance between a group's"
    " shares of modes and those demonstrated: 0 for equal shares, 1 where no mode is shared. 'By"
    " chance' is what 95 % of sets of as many trajectories, drawn from the demonstrated shares,"
    " stay below. 'Effective' is the exponential of the entropy: how many equally frequent modes"
    " are as varied. 'Kept' is the share of trajectories told to be in the mode that the"
    " demonstration with the same start is told to be in (95 % Wilson interval), beside that of"
    " the same shares without any relation."
)

COMPONENTS = (
    "Each component's share of its group's spread, and its variance divided by that of"
    f" demonstrations; the components, {MOST_COMPONENTS} at most, that hold the largest share of"
    " any group. A component that hardly varies in the data is scaled up with the others, so that"
    " a policy that moves it can rule the ratio above."
)


@dataclass(frozen=True)
class Group:
    """What one policy did.

    Attributes:
        states: (start, draw, time, obs) normalized and held, NaN where the simulator was lost.
    """

    states: Values


@dataclass(frozen=True)
class Findings:
    """Everything that was run.

    Attributes:
        task: Name of the task.
        starts: Whose starts these are, in words.
        episodes: (start,) store index of the demonstration whose start it is.
        chosen: (start,) index of that demonstration among those that taught the modes.
        demonstrated: (start, time, obs) its states, normalized and held.
        components: (obs,) what each component is called.
        ended: Demonstrations among them that ended before the last step looked at.
        left_out: Demonstrations that taught no mode for want of a label.
        modes: Tells modes.
        groups: Latent source to what its policies did.
        horizon: Executed steps between two queries, 0 for the whole episode.
        condition: What the diffusion model is told; () where nothing is sampled.
        seed: Fixes all draws.
    """

    task: str
    starts: str
    episodes: Index
    chosen: Index
    demonstrated: Values
    components: tuple[str, ...]
    ended: int
    left_out: int
    modes: Modes
    groups: Mapping[str, Group]
    horizon: int
    condition: tuple[str, ...]
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
    def within(self) -> dict[str, Rate]:
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
    sections = [
        _what(findings), _spread(findings), _components(findings), _modes(findings, numbers),
    ]  # fmt: skip
    if findings.within:
        sections.append(_within(findings, numbers))
    write_sections(directory, title, sections, figures)
    _write_points(findings, directory / POINTS)
    return {
        "task": findings.task,
        "starts": int(findings.kept.sum()),
        "steps": findings.demonstrated.shape[1] - 1,
        "horizon": findings.horizon or "episode",
        "modes_told_right": findings.modes.accuracy,
        "modes_told_by": findings.modes.account,
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
            "mean_variance": float(np.mean([one.value for one in spread.curve])),
            **_largest(spread, findings.components),
        }
        if name == DEMONSTRATED:
            continue
        kept = int((told[:, 0] == demonstrated).sum())
        low, high = wilson(kept, count)
        found[name] |= {
            "variance_ratio": spread.ratio.value,
            "variance_ratio_low": spread.ratio.low, "variance_ratio_high": spread.ratio.high,
            "mode_variation": total_variation(share, reference),
            "mode_variation_by_chance": chance,
            "mode_kept": kept / count, "mode_kept_low": low, "mode_kept_high": high,
            "mode_kept_unrelated": float(share @ reference),
        }  # fmt: skip
        if name in findings.within:
            one = findings.within[name]
            same, different = agreement(told, len(names))
            found[name] |= {
                "within_starts": one.value,
                "within_starts_low": one.low, "within_starts_high": one.high,
                "draws_in_one_mode": same,
                "draws_in_one_mode_unrelated": different,
            }  # fmt: skip
    return found


def _what(findings: Findings) -> Section:
    steps = findings.demonstrated.shape[1] - 1
    once = not 0 < findings.horizon < steps
    often = "once" if once else f"every {findings.horizon} steps"
    told = f" The diffusion model is told: {', '.join(findings.condition)}."
    ended = (
        f" {findings.ended} of these demonstrations ended earlier: what has ended stays where it"
        " was, which compares like with like only where policies' episodes end as demonstrations"
        " do."
    )
    lost = int((~findings.kept).sum())
    text = (
        f"Task '{findings.task}': policies run from the first states of {findings.starts} for"
        f" {steps} steps, a policy generated {often}.{told if findings.condition else ''}"
        f"{ended if findings.ended else ''} {findings.modes.account}"
        + (
            f" {findings.left_out} demonstrations are left out, which have no label, or one that"
            " no other has."
            if findings.left_out
            else ""
        )
        + (f" {lost} starts are left out: a simulator was lost there." if lost else "")
    )
    rows = tuple(
        (name, int(findings.kept.sum()), group.states.shape[1])
        for name, group in findings.groups.items()
    )
    return Section("What was run", text, table=Table(("latent", "starts", "draws"), rows))


def _spread(findings: Findings) -> Section:
    rows = tuple(
        (
            name, float(np.mean([point.value for point in one.curve])), one.curve[-1].value,
            one.ratio.value, one.ratio.low, one.ratio.high,
        )
        for name, one in findings.spreads.items()
    )  # fmt: skip
    columns = ("group", "mean variance", "variance at the end", "ratio", "low", "high")
    return Section("Spread of states", SPREAD, "spread", Table(columns, rows))


def _largest(spread: Spread, names: tuple[str, ...]) -> dict[str, Any]:
    share = _parts(spread)
    place = int(np.argmax(share))
    return {"largest_component": names[place], "largest_component_share": float(share[place])}


def _parts(spread: Spread) -> Values:
    """Return the share of the spread that each component holds (obs,)."""
    found = np.array(spread.components)
    return found / max(float(found.sum()), np.finfo(float).tiny)


def _components(findings: Findings) -> Section:
    parts = np.stack([_parts(one) for one in findings.spreads.values()])
    order = np.argsort(-parts.max(axis=0), kind="stable")[:MOST_COMPONENTS]
    reference = findings.spreads[DEMONSTRATED].components
    others = [name for name in findings.spreads if name != DEMONSTRATED]
    rows = []
    for place in order:
        row: list[Any] = [findings.components[place], float(parts[0, place])]
        for number, name in enumerate(others, start=1):
            variance = findings.spreads[name].components[place]
            varies = reference[place] > NOTHING
            row += [float(parts[number, place]), variance / reference[place] if varies else None]
        rows.append(tuple(row))
    columns = (
        "component", "share, demonstrated",
        *(column for name in others for column in (f"share, {name}", f"ratio, {name}")),
    )  # fmt: skip
    return Section("Where the spread lies", COMPONENTS, table=Table(columns, tuple(rows)))


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
        "group", *(f"share of {name}" for name in findings.modes.names), "effective",
        "variation", "by chance", "kept", "low", "high", "unrelated",
    )  # fmt: skip
    return Section("Modes of behavior", MODES, "modes", Table(columns, rows))


def _within(findings: Findings, numbers: Mapping[str, Mapping[str, Any]]) -> Section:
    names = (
        "within_starts", "within_starts_low", "within_starts_high", "draws_in_one_mode",
        "draws_in_one_mode_unrelated",
    )  # fmt: skip
    rows = tuple(
        (group, findings.groups[group].states.shape[1], *(numbers[group][name] for name in names))
        for group in findings.within
    )
    columns = (
        "latent", "draws", "share of spread", "low", "high", "pairs in one mode", "unrelated",
    )  # fmt: skip
    text = (
        "Several policies sampled for the same start: which share of the spread lies between them"
        " (0: the start decides everything; 1: nothing; 95 % bootstrap interval over starts), and"
        " how often two of them are told to be in one mode, beside two of different starts."
    )
    return Section("Different answers to the same start", text, table=Table(columns, rows))


def _write_points(findings: Findings, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("group", "episode", "draw", "mode"))
        episodes = findings.episodes[findings.kept]
        for name, told in findings.told.items():
            for place, draw in np.ndindex(*told.shape):
                mode = findings.modes.names[told[place, draw]]
                writer.writerow((name, episodes[place], draw, mode))
