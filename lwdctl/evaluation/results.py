"""Result rows: success rates with intervals, metrics and costs of one evaluated condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta

from lwdctl.artifacts.manifest import plain
from lwdctl.core.errors import ArtifactError
from lwdctl.core.untrusted import typed
from lwdctl.evaluation.episodes import EpisodeResult

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

ALL_TASKS = "all"
_WHERE = "a record of results"
_SUCCESS = ("success", "success_low", "success_high", "episodes")
_Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval.

    Attributes:
        value: The point estimate; NaN where nothing was measured.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
        n: Number of observations behind it (episodes, initial states, trajectories).
    """

    value: float
    low: float
    high: float
    n: _Count

    def __str__(self) -> str:
        """Return the value and its interval, `0.62 [0.48, 0.74]`."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @classmethod
    def of_rate(cls, successes: int, n: int) -> Estimate:
        """Return the success rate of `n` independent episodes with Wilson's interval."""
        return cls(successes / n if n else math.nan, *wilson(successes, n), n)


def magnitude_format(magnitudes: Collection[float]) -> str:
    """Return the format in which magnitudes of perturbations stay apart: six digits, or all."""
    return "g" if len({f"{item:g}" for item in magnitudes}) == len({*magnitudes}) else ""


def wilson(successes: float, episodes: float) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate; (0, 1) without episodes.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical
    inference, JASA 22 (1927).

    Raises:
        ValueError: More successes than episodes, or a negative number of them.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes")
    if episodes == 0:
        return 0.0, 1.0
    rate, weight = successes / episodes, Z95 * Z95 / episodes
    center = (rate + weight / 2) / (1 + weight)
    half = Z95 * math.sqrt(rate * (1 - rate) / episodes + weight / (4 * episodes)) / (1 + weight)
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == episodes else center + half
    return low, high


def wilson_of_states(solved: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the interval of a success rate whose episodes share initial states.

    It is Wilson's interval for the effective number of episodes: their number divided by the
    design effect, which is the variance between initial states over that of a binomial. The design
    effect is kept between 1 and its value for states whose episodes always end alike; the latter is
    also taken where no variation was observed.

    Source: L. Kish, Survey Sampling (1965), on the design effect.

    Args:
        solved: Successes and episodes of every initial state, at least one episode each.
    """
    successes, episodes = (
        (sum(column) for column in zip(*solved, strict=True)) if solved else (0, 0)
    )
    states = len(solved)
    if states == episodes:
        return wilson(successes, episodes)
    rate, effect = successes / episodes, sum(count**2 for _, count in solved) / episodes
    if 0 < rate < 1 and states > 1:
        squares = math.fsum((one - rate * count) ** 2 for one, count in solved)
        observed = squares * states / (states - 1) / (episodes * rate * (1 - rate))
        effect = min(max(observed, 1.0), effect)
    return wilson(successes / effect, episodes / effect)


@dataclass(frozen=True)
class Condition:
    """What is evaluated: all that the result rows of one rollout share.

    Attributes:
        policy: Name of the policy.
        latent: Where LWD's latents come from, "" for other policies.
        env: Name of the environment.
        train_seed: Training seed of the model.
        snippet_length: Steps that a latent was encoded from, or that a chunk holds.
        horizon: Action horizon: steps executed per re-plan, or `"episode"`.
        perturbation: Magnitude of perturbations, in the environment's unit.
        sampler: Sampler of the diffusion model, "" where nothing is sampled.
        num_inference_steps: Denoising steps of a re-plan that starts from noise.
        warm_start: Fraction of the denoising steps that a re-plan runs from the previous latent or
            chunk, 0 where every re-plan starts from noise.
        temporal_ensemble: Rate at which the weights of chunks fall where several are averaged.
        guidance: Factor of the difference that the condition makes to predictions; 1 as trained.
        inpainting: Factor of the weights with which a chunk keeps to the previous one.
        replan_beyond: Difference from the recorded snippet with the most similar latent beyond
            which a policy re-plans before its horizon, None where none does.
        replan_after: Its minimum number of steps between two re-plans, None likewise.
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
    temporal_ensemble: float | None = None
    guidance: float = 1.0
    inpainting: float = 0.0
    replan_beyond: float | None = None
    replan_after: int | None = None


CostFunction = Callable[[Sequence[EpisodeResult]], Mapping[str, Any]]
"""Computes the cost of episodes that ran to their end; see `ResultRow.cost`."""


@dataclass(frozen=True, kw_only=True)
class ResultRow(Condition):
    """One row of results: a condition on one task, or on `"all"` of them.

    Attributes:
        task: Name of the task, or `"all"`.
        errors: Episodes lost to a dead or hung simulator; they are no failures of the policy.
        policy_failures: Episodes that the policy aborted (actions that are not finite, unstable
            physics); they are among those that ran to their end. Results of versions that did not
            count them say 0.
        successes: Episodes solved at some step.
        success: Fraction of the episodes that ran to their end that were solved at some step. The
            interval is Wilson's; episodes with several labels from one initial state count as in
            `wilson_of_states`.
        score: Mean of the environment's first metric.
        metrics: Mean of every metric by full name, `return` and `final_success` among them. The
            return is NaN where the policy aborted an episode.
        replans_per_episode: Mean number of latents or chunks sampled per episode.
        seconds: Wall time by part, summed over the episodes.
        by_label: Behavior label to `episodes`, `successes`, mean `metrics`, and `return_std`, the
            standard deviation of the return over episodes; empty where episodes carry no label.
            `source_return` is the mean return of the demonstrations whose initial states were
            restored, where it is known.
        cost: What acting costs by name, empty where unknown. FLOPs count one multiply-add as two
            and are means over the steps taken: `flops_per_step` = `replans_per_step` *
            (`denoiser_flops_per_replan` + `decoder_flops_per_replan`) + `policy_flops_per_step`.
            `parameters_at_control_rate` are the weights of the network that runs at every step,
            `parameters` all trained weights that are used. Where latency was measured:
            `latency_step_ms` (median over steps that do not re-plan), `latency_step_p99_ms`,
            `latency_replan_ms` (median) and `latency_threads`.
    """

    task: str
    errors: _Count
    successes: _Count
    success: Estimate
    score: float | None
    metrics: Mapping[str, float]
    replans_per_episode: float
    seconds: Mapping[str, float]
    by_label: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, Any] = field(default_factory=dict)
    policy_failures: _Count = 0

    @property
    def episodes(self) -> int:
        """Number of episodes that ran to their end; errors are not among them."""
        return self.success.n

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values; the estimate becomes `success`, `success_low` and so on."""
        values = asdict(self)
        del values["success"]
        return {
            **plain(values),  # JSON has no NaN
            "episodes": self.success.n,
            "success": self.success.value if self.success.n else None,
            "success_low": self.success.low,
            "success_high": self.success.high,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = _WHERE) -> ResultRow:
        """Rebuild a row from what `to_json` returned.

        Raises:
            ArtifactError: A value is missing, unknown or of another type.
        """
        rest = {**typed(dict[str, Any], values, where)}
        rate, low, high, n = (rest.pop(name, None) for name in _SUCCESS)
        success = {"value": math.nan if rate is None else rate, "low": low, "high": high, "n": n}
        if isinstance(metrics := rest.get("metrics"), Mapping):  # manifests hold no NaN, but null
            nan = {name: math.nan for name, value in metrics.items() if value is None}
            rest["metrics"] = {**metrics, **nan}
        return typed(cls, {**rest, "success": success}, where)


@dataclass(frozen=True)
class _Record:
    """The parts of such a file that are read back."""

    NAMES: ClassVar[tuple[str, ...]] = ("results", "episodes", "models")

    results: tuple[dict[str, Any], ...]
    episodes: tuple[dict[str, Any], ...]
    models: dict[str, str] | None = None


@dataclass(frozen=True)
class ConditionResult:
    """One evaluated condition: what `episodes/<condition>.json` of an evaluation holds.

    Attributes:
        rows: One result row per task, and the one for all tasks last.
        episodes: Every episode, in the order of its plans.
        models: Artifact type to reference of the models that acted.
        max_steps: Step limit that the evaluation set, None for the environment's own. Like the next
            one not part of the file, since the evaluation's configuration has it.
        perturbation_probability: Probability of a perturbation per step.
    """

    rows: tuple[ResultRow, ...]
    episodes: tuple[EpisodeResult, ...]
    models: Mapping[str, str] = field(default_factory=dict)
    max_steps: int | None = None
    perturbation_probability: float = 0.0

    @property
    def overall(self) -> ResultRow:
        """The row for all tasks."""
        return self.rows[-1]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "models": dict(self.models),
            "results": [row.to_json() for row in self.rows],
            "episodes": [episode.to_json() for episode in self.episodes],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = _WHERE) -> ConditionResult:
        """Rebuild a condition's results from what `to_json` returned.

        Raises:
            ArtifactError: A value is missing, unknown or of another type, or there is no row.
        """
        record = typed(_Record, {name: values.get(name) for name in _Record.NAMES}, where)
        if not record.results:
            raise ArtifactError(f"{where}: results: there is no row")
        return cls(
            tuple(
                ResultRow.from_json(row, f"{where}: results[{index}]")
                for index, row in enumerate(record.results)
            ),
            tuple(
                EpisodeResult.from_json(episode, f"{where}: episodes[{index}]")
                for index, episode in enumerate(record.episodes)
            ),
            record.models or {},
        )


def result_rows(
    episodes: Sequence[EpisodeResult],
    score: str,
    condition: Condition,
    source_returns: Mapping[int, float] | None = None,
    cost: CostFunction | None = None,
) -> list[ResultRow]:
    """Return one row per task, in order of appearance, and then one for all tasks.

    Args:
        episodes: Episodes of one condition.
        score: Name of the metric that is the environment's score.
        condition: What the rows share.
        source_returns: Return of a demonstration by its index, where rewards were recorded.
        cost: Computes the cost of a row's episodes.
    """
    tasks = dict.fromkeys(item.plan.task for item in episodes)
    groups = {task: [item for item in episodes if item.plan.task == task] for task in tasks}
    groups[ALL_TASKS] = list(episodes)
    rows = []
    for task, group in groups.items():
        finished = [item for item in group if not item.error]
        metrics = _means([item.measured for item in finished])
        replans = _means([{"replans": float(item.num_replans)} for item in finished])
        rows.append(
            ResultRow(
                **asdict(condition),
                task=task,
                errors=len(group) - len(finished),
                successes=sum(item.success for item in finished),
                success=_success(finished),
                score=metrics.get(score),
                metrics=metrics,
                replans_per_episode=replans.get("replans", 0.0),
                seconds=_sums([item.seconds for item in group]),
                by_label=_by_label(finished, source_returns or {}),
                cost=cost(finished) if cost else {},
                policy_failures=sum(bool(item.policy_failure) for item in finished),
            )
        )
    return rows


def _success(episodes: Sequence[EpisodeResult]) -> Estimate:
    by_state: dict[tuple[str, str, int], list[bool]] = {}
    for item in episodes:
        by_state.setdefault(item.initial_state, []).append(item.success)
    interval = wilson_of_states([(sum(one), len(one)) for one in by_state.values()])
    successes, count = sum(item.success for item in episodes), len(episodes)
    return Estimate(successes / count if count else math.nan, *interval, count)


def _by_label(
    episodes: Sequence[EpisodeResult], source_returns: Mapping[int, float]
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for label in sorted({item.plan.label for item in episodes} - {""}):
        group = [item for item in episodes if item.plan.label == label]
        rows[label] = {
            "episodes": len(group),
            "successes": sum(item.success for item in group),
            "return_std": float(np.std([item.measured["return"] for item in group])),
            "metrics": _means([item.measured for item in group]),
        }
        sources = [item.plan.demonstration for item in group]
        known = [source_returns[index] for index in sources if index in source_returns]
        if known:
            rows[label]["source_return"] = math.fsum(known) / len(known)
    return rows


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of what all rows have: tasks may have metrics of their own."""
    names = [name for name in (rows[0] if rows else ()) if all(name in row for row in rows)]
    # A sum of many floats must not depend on the order in which episodes ran.
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}


def _sums(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: math.fsum(row.get(name, 0.0) for row in rows) for name in names}
