"""Does a policy still improve at the end of its training? Its snapshots on the same states.

A comparison of methods at equal budgets means little where one of them is not trained to the end.
The policy is run with the EMA weights of every snapshot that its training kept; the end of
training is compared with the snapshot at two thirds of it, state by state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lwdctl.analysis.analyses import AnalyzeConvergenceConfig
from lwdctl.analysis.evaluations import SUCCESS, value_of
from lwdctl.analysis.plotting import draw_curve, finish, new_figure, series_style
from lwdctl.analysis.resample import Pair, States, mean_estimate, success_estimate
from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table, flatten_estimate, show_difference, show_estimate
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.evaluation.episodes import EpisodeResult, described_failures, plan_episodes
from lwdctl.evaluation.results import Estimate
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.traced import check_environment, count_lost
from lwdctl.methods.method import Acting, TrainedPolicy, check_used

THIRD = 2 / 3
Verdict = Literal["flat", "still gains", "undecided"]


@dataclass(frozen=True)
class Curve:
    """A number of every snapshot, and what the last third of training gained.

    Attributes:
        estimates: Training step to the mean over episodes.
        since: Training step of the snapshot that the end is compared with.
        gain: The end minus that snapshot, state by state.
        less_is_better: Whether the number falls where the policy gets better.
    """

    estimates: Mapping[int, Estimate]
    since: int
    gain: Estimate
    less_is_better: bool = False

    def verdict(self, margin: float) -> Verdict:
        """Judge the gain by its 95 % interval, where a gain up to `margin` counts as none."""
        low, high = self.gain.low, self.gain.high
        if self.less_is_better:
            low, high = -high, -low
        if high <= margin:
            return "flat"
        return "still gains" if low > 0 else "undecided"


def analyze_convergence(
    config: AnalyzeConvergenceConfig,
    *,
    trained: tuple[TrainedPolicy, Sequence[int], Callable[[int], None]],
    progress: Progress | None = None,
) -> Findings:
    """Run a policy with the weights of every snapshot, on the same episodes.

    `trained` holds the policy, the training steps of its snapshots, and a function that loads the
    weights of one of them into the policy.

    Raises:
        ConfigError: Fewer than three snapshots, or settings that the policy does not allow.
        SimulatorError: A simulator error ended every episode at some snapshot.
    """
    policy, snapshots, load = trained
    if len(snapshots) < 3:
        raise ConfigError(
            f"the training kept {len(snapshots)} snapshots; at least 3 are needed",
            "train again with --snapshots 6",
        )
    progress = progress or TqdmProgress()
    acting = Acting.of(config)
    policy.check(acting)
    check_used(policy, acting)
    env = policy.source.env
    check_environment(env)
    labels = policy.source.labels if "label" in policy.condition else ()
    plans = plan_episodes(env, config.episodes, config.seed, config.task, labels)
    found: dict[int, tuple[EpisodeResult, ...]] = {}
    score, less_is_better = "", False
    for step in snapshots:
        load(step)
        progress.message(f"after {step} training steps:")
        result = rollout(
            policy.batch_policy(acting, config.num_envs),
            env,
            plans,
            num_envs=config.num_envs,
            workers=config.processes,
            max_steps=config.max_steps,
            perturbation=config.perturbation,
            timeout=config.timeout,
            progress=progress,
        )
        found[step], score = result.episodes, score or result.score
        less_is_better = less_is_better or result.less_is_better
    if score == "return" and (reasons := reasons_of_failures(found)):
        if not any(one.success for episodes in found.values() for one in episodes):
            raise SimulatorError(
                f"neither a return nor a success can judge the training: {reasons}",
                "train it longer, or look at what the policy does: lwdctl eval --video 1",
            )
        progress.message(f"the training is judged by success, not by the return: {reasons}")
        score = ""
    curves = {name: curve_of(found, name) for name in dict.fromkeys((score, SUCCESS)) if name}
    if score:
        curves[score] = replace(curves[score], less_is_better=less_is_better)
    return compose(config, curves, count_lost({f"after {key}": one for key, one in found.items()}))


def reasons_of_failures(found: Mapping[int, Sequence[EpisodeResult]]) -> str:
    """Say at which training steps the policy aborted episodes, and why; "" where it did not."""
    texts = (described_failures(f"after {step}", episodes) for step, episodes in found.items())
    return "; ".join(filter(None, texts))


def curve_of(found: Mapping[int, Sequence[EpisodeResult]], name: str) -> Curve:
    """Return the curve of a metric, or of success, over the snapshots of a training.

    Args:
        found: Training step to its episodes, the same ones at every step.
        name: Name of the metric, or `SUCCESS`.

    Raises:
        SimulatorError: A simulator error ended every episode at one step or another.
    """
    values = {step: np.array([value_of(one, name) for one in rows]) for step, rows in found.items()}
    known = ~np.isnan(np.stack(list(values.values()))).any(axis=0)
    if not known.any():
        raise SimulatorError("simulator errors ended every episode", "lwdctl doctor")
    first = next(iter(found.values()))
    states = States.of_initial_states([one.initial_state for one in first]).of(known)
    kept = {step: column[known][None] for step, column in values.items()}
    estimate = success_estimate if name == SUCCESS else mean_estimate
    steps = sorted(kept)
    since = min(steps[:-1], key=lambda step: abs(step - THIRD * steps[-1]))
    pair = Pair(kept[steps[-1]], kept[since], states)
    gain = pair.success_estimate() if name == SUCCESS else pair.estimate()
    return Curve({step: estimate(kept[step], states) for step in steps}, since, gain)


def compose(
    config: AnalyzeConvergenceConfig, curves: Mapping[str, Curve], lost: Mapping[str, int]
) -> Findings:
    """Return the table, the figure and the verdict, which the first curve decides."""
    figure, ((axes,),) = new_figure(5.6, 3.4)
    for index, (name, curve) in enumerate(curves.items()):
        estimates = list(curve.estimates.values())
        draw_curve(axes, list(curve.estimates), estimates, **series_style(index), label=name)
    axes.set_xlabel("Training steps")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    finish(figure, "Bands: 95 % intervals.")
    name, decisive = next(iter(curves.items()))
    verdict = decisive.verdict(config.margin)
    rows = [
        (f"{step:,}", *(show_estimate(curve.estimates[step]) for curve in curves.values()))
        for step in decisive.estimates
    ]
    gains = (show_difference(curve.gain) for curve in curves.values())
    rows.append((f"end minus {decisive.since:,}", *gains))
    fall = " (where less is better, so that a fall is a gain)" if decisive.less_is_better else ""
    text = (
        f"The policy with the EMA weights of every snapshot, on {decisive.gain.n} initial states"
        f" from evaluation seed {config.seed} on. It counts as flat where the 95 % interval of what"
        f" the last third of training gained in {name}{fall} ends at {config.margin:g} or below,"
        f" otherwise as still gaining where the whole interval is a gain. Verdict: {verdict}."
    )
    table = Table.of(("training steps", *curves), rows)
    summary = {
        "verdict": verdict,
        "metric": name,
        "initial_states": decisive.gain.n,
        "margin": config.margin,
        "since": decisive.since,
        "gains": {key: flatten_estimate("gain", curve.gain) for key, curve in curves.items()},
        "curves": {
            key: {str(step): flatten_estimate("mean", one) for step, one in curve.estimates.items()}
            for key, curve in curves.items()
        },
    }
    section = Section("Convergence", text, "convergence", table, figure)
    return Findings("Convergence", [section], {}, summary, lost)
