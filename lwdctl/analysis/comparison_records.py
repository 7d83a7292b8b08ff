"""The records of a comparison: results of conditions, paired tests, effects and cost ratios.

A condition is a policy (with its latent source) at one action horizon and perturbation.
"""

from __future__ import annotations

from dataclasses import dataclass

from lwdctl.evaluation.results import Estimate

SAMPLED = "sampled"
Horizon = int | str | None
"""Action horizon: steps executed per re-plan, `"episode"`, or None for a policy without one."""


def horizon_order(horizon: Horizon) -> tuple[int, int]:
    """Return a sorting key: no horizon, numbers, then whole episodes."""
    if horizon is None:
        return 0, 0
    return (1, horizon) if isinstance(horizon, int) else (2, 0)


@dataclass(frozen=True)
class ComparisonRow:
    """One condition on one task, or on `"all"` tasks, over all of its training seeds.

    Attributes:
        label: Policy and latent source in short, made distinct where needed.
        episodes: Episodes that ran to their end.
        errors: Episodes lost to simulator errors.
        policy_failures: Episodes that the policy aborted, among those that ran to their end.
        success: Success rate, mean over training seeds.
        success_std: Its standard deviation over training seeds, None for one seed.
        score: Mean of the metric; NaN for the return where the policy aborted an episode.
        score_std: Its standard deviation over training seeds, None for one seed.
        flops_per_step: FLOPs per environment step, None where unknown.
        seconds_per_episode: Wall time, None where unknown.
        convergence: The least favorable `Run.convergence` of the models.
    """

    label: str
    policy: str
    latent: str
    task: str
    horizon: Horizon
    perturbation: float
    train_seeds: tuple[int | None, ...]
    episodes: int
    errors: int
    successes: int
    success: Estimate
    success_std: float | None
    score: Estimate
    score_std: float | None
    flops_per_step: float | None
    seconds_per_episode: float | None
    convergence: str = ""
    policy_failures: int = 0

    @property
    def is_method(self) -> bool:
        """Whether the policy acts by itself: no given (oracle, shuffled, mean) latent."""
        return self.latent in {"", SAMPLED}


@dataclass(frozen=True)
class PairedTest:
    """A condition minus the reference on the same initial states.

    Attributes:
        states: Initial states that both ran.
        better: Initial states that the policy solved more often than the reference did.
        worse: Initial states that it solved less often.
        success_test: `"McNemar"` or `"permutation"`.
        success_p_holm: p-value with Holm's correction over all tests of the comparison.
        score_p: NaN, like the difference of scores, where a score is not known.
    """

    label: str
    against: str
    horizon: Horizon
    against_horizon: Horizon
    perturbation: float
    states: int
    better: int
    worse: int
    success_difference: Estimate
    success_test: str
    success_p: float
    score_difference: Estimate
    score_p: float
    success_p_holm: float = 1.0
    score_p_holm: float = 1.0


@dataclass(frozen=True)
class PerturbationEffect:
    """A perturbed condition minus the same models without perturbation on the same states."""

    label: str
    horizon: Horizon
    perturbation: float
    train_seeds: tuple[int | None, ...]
    states: int
    success_difference: Estimate
    score_difference: Estimate


@dataclass(frozen=True)
class CostRatio:
    """A policy beside the reference's most successful condition, in FLOPs per environment step.

    Attributes:
        label: The cheapest condition of the policy that solves at least as much; where none does,
            its most successful one.
        ratio: Its FLOPs over the reference's; None where it solves less.
    """

    label: str
    horizon: Horizon
    against: str
    against_horizon: Horizon
    perturbation: float
    success: float
    against_success: float
    flops_per_step: float
    against_flops_per_step: float
    ratio: float | None
