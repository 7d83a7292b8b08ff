"""What reconstructions say: sections, figures, tables of points, headline numbers."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lwdctl.analysis import reconstruction_pictures as pictures
from lwdctl.analysis.reconstruction import Clusters, Errors, Interval
from lwdctl.analysis.resample import States, success_difference_estimate, success_estimate
from lwdctl.analysis.sections import Section, write_sections
from lwdctl.analysis.tables import Table

if TYPE_CHECKING:
    from lwdctl.evaluation.episodes import EpisodeResult
    from lwdctl.evaluation.snippet_starts import SnippetStarts

SNIPPETS, STEPS = "reconstruction.csv", "reconstruction_steps.csv"
ORACLE, SAMPLED = "oracle", "sampled"
MEASURE = (
    "Squared error between the observation that a policy reached and the one recorded at the same"
    " step. 'Squared' sums over components in environment units, so that the largest unit rules."
    " 'Normalized' divides each component by its deviation over the training split and takes the"
    " mean: two unrelated states are about 2 apart. 'Final' is at a snippet's last recorded"
    " state, 'mean' is over the states after its actions. An episode that ended early counts on"
    " with the last state seen of it. Intervals: 95 %, bootstrap over the demonstrations that"
    " snippets lie in; none where all lie in one. 'Recorded actions', replayed open loop, are the"
    " floor: what is left is the start and the simulator."
)


@dataclass(frozen=True)
class Findings:
    """Everything that was run.

    Attributes:
        starts: The snippets.
        errors: Arm to its errors.
        episodes: Arm to what the engine says of its episodes.
        score: Name of the environment's score.
        snapshots: Update to the errors of encoded snippets with the weights of then.
    """

    starts: SnippetStarts
    errors: Mapping[str, Errors]
    episodes: Mapping[str, Sequence[EpisodeResult]]
    score: str
    snapshots: Mapping[int, Errors]


def write(findings: Findings, directory: Path, title: str, split: str) -> dict[str, Any]:
    """Write sections, figures and tables of points below a draft's directory.

    Returns:
        The headline numbers.
    """
    clusters = Clusters(findings.starts.episodes)
    normalized = {name: clusters.curve(one.normalized) for name, one in findings.errors.items()}
    squared = {name: clusters.curve(one.squared) for name, one in findings.errors.items()}
    kept = {name: numbers(one, clusters) for name, one in findings.errors.items()}
    figures = {"error-by-step": pictures.draw_steps(normalized, squared)}
    sections = [_starts(findings, split), _errors(kept), _solved(findings, clusters)]
    after = {update: numbers(one, clusters) for update, one in findings.snapshots.items()}
    if after:
        figures["error-by-update"] = pictures.draw_updates(after)
        sections.insert(2, _training(after))
    write_sections(directory, title, sections, figures)
    _write_csv(directory / SNIPPETS, _snippet_rows(findings))
    _write_csv(directory / STEPS, _step_rows(findings, normalized, squared))
    return _summary(findings, kept, after)


def numbers(errors: Errors, clusters: Clusters) -> dict[str, Interval]:
    """Return the headline intervals of one arm."""
    return {
        "final_normalized": clusters.interval(errors.last(errors.normalized)),
        "mean_normalized": clusters.interval(errors.average(errors.normalized)),
        "final_squared": clusters.interval(errors.last(errors.squared)),
        "mean_squared": clusters.interval(errors.average(errors.squared)),
    }


def _starts(findings: Findings, split: str) -> Section:
    starts = findings.starts
    drift = next(iter(findings.errors.values())).normalized[:, 0]
    rows = []
    for way, count in Counter(starts.ways).items():
        mine = drift[[one == way for one in starts.ways]]
        rows.append((way, count, float(np.nanmean(mine)), float(np.nanmax(mine))))
    text = (
        f"{len(starts.plans)} snippets of {len(set(starts.episodes.tolist()))} demonstrations"
        f" ({split} split), {starts.valid.min()} to {starts.valid.max()} recorded steps each."
        " Every policy starts from the same states. 'Drift' is the normalized squared error of"
        " the start itself against the recorded observation. Observations need not show all of a"
        " state: PushT's show no speeds, which are then zero."
    )
    columns = ("start", "snippets", "mean drift", "largest drift")
    return Section("Where snippets start", text, table=Table(columns, tuple(rows)))


def _errors(kept: Mapping[str, Mapping[str, Interval]]) -> Section:
    columns = ("policy", "error", "mean", "low", "high", "median")
    rows = tuple(
        (name, what.replace("_", " "), one.mean, one.low, one.high, one.median)
        for name, found in kept.items()
        for what, one in found.items()
    )
    return Section(
        "Error against the recorded states", MEASURE, "error-by-step", Table(columns, rows)
    )


def _training(after: Mapping[int, Mapping[str, Interval]]) -> Section:
    columns = (
        "updates", "final normalized", "low", "high", "median", "mean normalized", "low", "high",
        "median",
    )  # fmt: skip
    rows = tuple(
        (update, *(value for name in ("final_normalized", "mean_normalized")
                   for value in (found[name].mean, found[name].low, found[name].high,
                                 found[name].median)))
        for update, found in after.items()
    )  # fmt: skip
    text = (
        "The same snippets, encoded and decoded with the averaged weights of several moments of"
        " the VAE's training. One model: the spread between training seeds is not in it."
    )
    return Section("Error during training", text, "error-by-update", Table(columns, rows))


def _solved(findings: Findings, clusters: Clusters) -> Section:
    score = findings.score
    states, rows = _demonstrations(findings), []
    for name, episodes in findings.episodes.items():
        solved = _successes(episodes)
        known = solved[~np.isnan(solved)]
        spread = clusters.interval(_scores(episodes, score))
        rate = float(known.mean()) if known.size else None
        found = success_estimate(solved[None], states)
        rows.append(
            (name, known.size, rate, found.low, found.high, spread.mean, spread.low, spread.high)
        )
    columns = ("policy", "episodes", "success", "low", "high", score, "low", "high")
    text = (
        "Success and score within the steps of the snippet and one more, from the same states;"
        " success with Wilson's 95 % interval, of fewer snippets where those of one demonstration"
        " end alike (design effect). 'Encoded' is the oracle: what it loses the VAE"
        " loses, what 'sampled' loses beyond that the diffusion model loses."
        + _oracle_text(findings)
    )
    return Section("Success from the same states", text, table=Table(columns, tuple(rows)))


def _oracle_text(findings: Findings) -> str:
    if ORACLE not in findings.episodes or SAMPLED not in findings.episodes:
        return ""
    rate, low, high = _oracle_difference(findings)
    return (
        f" Encoded minus sampled: {rate:+.3f} [{low:+.3f}, {high:+.3f}], on the same snippets;"
        " those of one demonstration count together."
    )


def _oracle_difference(findings: Findings) -> tuple[float, float, float]:
    first, second = (_successes(findings.episodes[name]) for name in (ORACLE, SAMPLED))
    known = ~np.isnan(first - second)
    if not known.any():
        return 0.0, -1.0, 1.0
    first, second, states = first[known], second[known], _demonstrations(findings).of(known)
    found = success_difference_estimate(first[None], second[None], states, same_models=False)
    return float((first - second).mean()), found.low, found.high


def _demonstrations(findings: Findings) -> States:
    """Return snippets as episodes whose common state is the demonstration they lie in."""
    unit = findings.starts.episodes.astype(np.intp)
    return States(np.zeros_like(unit), unit)


def _successes(episodes: Sequence[EpisodeResult]) -> Any:
    return np.array([np.nan if one.error else float(one.success) for one in episodes])


def _scores(episodes: Sequence[EpisodeResult], score: str) -> Any:
    return np.array([np.nan if one.error else one.metrics[score] for one in episodes])


def _summary(
    findings: Findings,
    kept: Mapping[str, Mapping[str, Interval]],
    after: Mapping[int, Mapping[str, Interval]],
) -> dict[str, Any]:
    summary: dict[str, Any] = {"snippets": len(findings.starts.plans)}
    summary["start_drift"] = float(
        np.nanmean(next(iter(findings.errors.values())).normalized[:, 0])
    )
    for name, found in kept.items():
        solved = _successes(findings.episodes[name])
        summary[name] = _flat(found) | {
            "success": float(np.nanmean(solved)) if np.isfinite(solved).any() else None,
            findings.score: float(np.nanmean(_scores(findings.episodes[name], findings.score))),
        }
    if ORACLE in findings.episodes and SAMPLED in findings.episodes:
        names = ("success_difference", "success_difference_low", "success_difference_high")
        summary["encoded minus sampled"] = dict(
            zip(names, _oracle_difference(findings), strict=True)
        )
    if after:
        summary["after_updates"] = {
            str(update): _flat({name: one for name, one in found.items() if "normalized" in name})
            for update, found in after.items()
        }
    return summary


def _flat(found: Mapping[str, Interval]) -> dict[str, float]:
    return {
        key: value
        for name, one in found.items()
        for key, value in (
            (name, one.mean), (f"{name}_low", one.low), (f"{name}_high", one.high),
            (f"{name}_median", one.median),
        )
    }  # fmt: skip


def _snippet_rows(findings: Findings) -> Iterator[Sequence[Any]]:
    yield (
        "policy", "episode", "offset", "steps", "start", "start_drift", "final_normalized",
        "mean_normalized", "final_squared", "mean_squared", "success", findings.score,
        "policy_failure", "error",
    )  # fmt: skip
    starts = findings.starts
    for name, errors in findings.errors.items():
        columns = zip(
            starts.episodes, starts.offsets, starts.valid, starts.ways, errors.normalized[:, 0],
            errors.last(errors.normalized), errors.average(errors.normalized),
            errors.last(errors.squared), errors.average(errors.squared), findings.episodes[name],
            strict=True,
        )  # fmt: skip
        for *values, one in columns:
            score = one.metrics.get(findings.score, "")
            yield name, *values, int(one.success), score, one.policy_failure, one.error


def _step_rows(
    findings: Findings,
    normalized: Mapping[str, Sequence[Interval]],
    squared: Mapping[str, Sequence[Interval]],
) -> Iterator[Sequence[Any]]:
    yield (
        "policy", "step", "snippets", "normalized", "normalized_low", "normalized_high", "squared",
        "squared_low", "squared_high",
    )  # fmt: skip
    for name, errors in findings.errors.items():
        known = (~np.isnan(errors.normalized)).sum(axis=0)
        for step, (one, other) in enumerate(zip(normalized[name], squared[name], strict=True)):
            yield (
                name, step, known[step], one.mean, one.low, one.high,
                other.mean, other.low, other.high,
            )  # fmt: skip


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
