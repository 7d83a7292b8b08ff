"""Success rates with intervals: the cells of an evaluation's results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lwdctl.evaluation.rollout import EpisodeResult

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

ALL_TASKS = "all"


def wilson(successes: float, episodes: float, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate; (0, 1) without episodes.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical
    inference, JASA 22 (1927).
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes")
    if episodes == 0:
        return 0.0, 1.0
    rate, weight = successes / episodes, z * z / episodes
    center = (rate + weight / 2) / (1 + weight)
    half = z * math.sqrt(rate * (1 - rate) / episodes + weight / (4 * episodes)) / (1 + weight)
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == episodes else center + half
    return low, high


def wilson_of_states(solved: Sequence[tuple[int, int]], z: float = Z95) -> tuple[float, float]:
    """Return the interval of a success rate whose episodes share initial states.

    Wilson's, of as many episodes as would say the same if none shared its state: their number
    divided by the design effect, the variance over states beside that of a binomial. It is taken
    between 1 and what it would be if the episodes of a state always ended alike, which is where
    it stands when no variation was seen.

    Source: L. Kish, Survey Sampling (1965), on the design effect.

    Args:
        solved: Successes and episodes of every initial state, at least one episode each.
        z: Quantile of the standard normal distribution.
    """
    successes, episodes = (
        (sum(column) for column in zip(*solved, strict=True)) if solved else (0, 0)
    )
    states = len(solved)
    if states == episodes:
        return wilson(successes, episodes, z)
    rate, effect = successes / episodes, sum(count**2 for _, count in solved) / episodes
    if 0 < rate < 1 and states > 1:
        squares = math.fsum((one - rate * count) ** 2 for one, count in solved)
        seen = squares * states / (states - 1) / (episodes * rate * (1 - rate))
        effect = min(max(seen, 1.0), effect)
    return wilson(successes / effect, episodes / effect, z)


@dataclass(frozen=True)
class Protocol:
    """What the cells of one evaluation share.

    Attributes:
        warm_start: Share of the denoising steps that a query does from the previous answer,
            0 where every query begins from noise.
    """

    policy: str
    latent: str
    env: str
    train_seed: int | None = None
    snippet_length: int | None = None
    horizon: int | str | None = None
    perturbation: float = 0.0
    sampler: str = ""
    num_inference_steps: int | None = None
    warm_start: float = 0.0


Pricing = Callable[[Sequence[EpisodeResult]], Mapping[str, Any]]
"""Tells the cost of episodes that ran to their end; see `Cell.cost`."""


@dataclass(frozen=True)
class Cell:
    """One line of results: a policy on one task, or on `"all"` of them.

    Attributes:
        episodes: Episodes that ran to their end; errors are not among them.
        errors: Episodes lost to a dead or hung simulator; no failures of the policy.
        success: Share of `episodes` solved at some step, None without episodes.
        success_low: Lower end of its 95 % Wilson interval; episodes of several labels from one
            initial state count as `wilson_of_states` has it.
        success_high: Upper end.
        score: Mean of the environment's first metric.
        metrics: Mean of every metric by full name, `return` and `final_success` among them.
        replans_per_episode: Mean number of latents sampled.
        seconds: Wall time by part, summed over the episodes.
        by_label: Behavior label to `episodes`, `successes`, mean `metrics`, and
            `return_deviation` between episodes; empty where episodes carry no label.
            `source_return`, where it is known, is the mean return of the demonstrations
            that were restored.
        cost: What acting costs by name, empty where not known. Operations count one
            multiply-add as two and are means over the steps really taken:
            `flops_per_step` = `replans_per_step` * (`denoiser_flops_per_replan` +
            `decoder_flops_per_replan`) + `policy_flops_per_step`, where a query is
            whatever chooses anew what to follow. `parameters_at_control_rate` are the weights
            of the network that runs at every step, `parameters` all trained ones that are
            used. Where timed: `latency_step_ms` (median over steps that do not re-plan),
            `latency_step_p99_ms`, `latency_replan_ms` (median) and `latency_threads`.
    """

    policy: str
    latent: str
    env: str
    task: str
    train_seed: int | None
    snippet_length: int | None
    horizon: int | str | None
    perturbation: float
    sampler: str
    num_inference_steps: int | None
    warm_start: float
    episodes: int
    errors: int
    successes: int
    success: float | None
    success_low: float
    success_high: float
    score: float | None
    metrics: Mapping[str, float]
    replans_per_episode: float
    seconds: Mapping[str, float]
    by_label: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def score_cells(
    results: Sequence[EpisodeResult],
    score: str,
    protocol: Protocol,
    source_returns: Mapping[int, float] | None = None,
    pricing: Pricing | None = None,
) -> list[Cell]:
    """Make one cell per task, in order of appearance, and one for all tasks.

    Args:
        results: Episodes of one policy.
        score: Name of the metric that is the environment's score.
        protocol: What the cells share.
        source_returns: Return of a demonstration by its index, where rewards were recorded.
        pricing: Gives every cell its cost.
    """
    tasks = dict.fromkeys(result.plan.task for result in results)
    groups = {task: [item for item in results if item.plan.task == task] for task in tasks}
    groups[ALL_TASKS] = list(results)
    known = source_returns or {}
    return [_cell(group, task, score, protocol, known, pricing) for task, group in groups.items()]


def _cell(
    results: Sequence[EpisodeResult],
    task: str,
    score: str,
    protocol: Protocol,
    source_returns: Mapping[int, float],
    pricing: Pricing | None,
) -> Cell:
    counted = [item for item in results if not item.error]
    successes = sum(item.success for item in counted)
    low, high = wilson_of_states(_by_state(counted))
    metrics = _means([_metrics(item) for item in counted])
    queries = _means([{"queries": float(item.num_replans)} for item in counted])
    return Cell(
        **asdict(protocol),
        task=task,
        episodes=len(counted),
        errors=len(results) - len(counted),
        successes=successes,
        success=successes / len(counted) if counted else None,
        success_low=low,
        success_high=high,
        score=metrics.get(score),
        metrics=metrics,
        replans_per_episode=queries.get("queries", 0.0),
        seconds=_sums([item.seconds for item in results]),
        by_label=_by_label(counted, source_returns),
        cost=pricing(counted) if pricing else {},
    )


def _by_state(counted: Sequence[EpisodeResult]) -> list[tuple[int, int]]:
    """Return successes and episodes of every initial state."""
    found: dict[tuple[str, int, int], list[bool]] = {}
    for item in counted:
        plan = item.plan
        restored = plan.demonstration >= 0
        key = (plan.task, plan.demonstration, -1 if restored else plan.seed)
        found.setdefault(key, []).append(item.success)
    return [(sum(one), len(one)) for one in found.values()]


def _by_label(
    counted: Sequence[EpisodeResult], source_returns: Mapping[int, float]
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for label in sorted({item.plan.label for item in counted} - {""}):
        group = [item for item in counted if item.plan.label == label]
        rows[label] = {
            "episodes": len(group),
            "successes": sum(item.success for item in group),
            "return_deviation": float(np.std([item.return_ for item in group])),
            "metrics": _means([_metrics(item) for item in group]),
        }
        sources = [item.plan.demonstration for item in group]
        known = [source_returns[index] for index in sources if index in source_returns]
        if known:
            rows[label]["source_return"] = math.fsum(known) / len(known)
    return rows


def _metrics(result: EpisodeResult) -> dict[str, float]:
    return {
        **result.metrics,
        "return": result.return_,
        "final_success": float(result.final_success),
    }


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    # A sum of many floats must not depend on the order in which episodes were run.
    return {
        name: math.fsum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())
    }


def _sums(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: math.fsum(row.get(name, 0.0) for row in rows) for name in names}
