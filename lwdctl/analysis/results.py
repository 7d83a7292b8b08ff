"""What a comparison holds: cells, paired tests, controls, and how they were computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lwdctl.analysis.resample import PERMUTATIONS, RESAMPLES
from lwdctl.evaluation.results import ALL_TASKS

SAMPLED = "sampled"
METHODS = {
    "success": "share of episodes solved at some step, mean over training seeds; 95 % interval:"
    " Wilson's for one training seed; for several the cluster bootstrap, widened to Wilson's"
    " interval of all episodes where that reaches further",
    "labels": "episodes of several labels from one initial state are one observation: drawn and"
    " flipped together, and Wilson's interval is that of fewer episodes (design effect)",
    "score": f"95 % percentile interval of {RESAMPLES} bootstrap samples; training seeds and"
    " initial states are drawn independently of each other, initial states within their task",
    "success_difference": "on the same initial states; 95 % interval: Newcombe's for one training"
    " seed a side and one label, otherwise the bootstrap of the score with shared initial states",
    "success_p": "McNemar's exact test, two-sided, where both have one training seed and one label;"
    " otherwise the paired permutation test of the success averaged over both",
    "score_p": "paired permutation test, two-sided: signs of the differences per initial state,"
    f" averaged over training seeds and labels, are flipped, all ways or {PERMUTATIONS} drawn ones",
    "holm": "Holm's correction over all pairs of this comparison, success and score each a family",
    "scope": "p-values speak of these trained models on other initial states; the intervals with"
    " several training seeds speak of other training seeds as well",
}


@dataclass(frozen=True)
class Cell:
    """One policy under one condition; deviations are between training seeds."""

    label: str
    policy: str
    latent: str
    task: str
    horizon: int | str | None
    perturbation: float
    train_seeds: tuple[int | None, ...]
    episodes: int
    errors: int
    successes: int
    success: float | None
    success_low: float
    success_high: float
    success_deviation: float | None
    score: float | None
    score_low: float | None
    score_high: float | None
    score_deviation: float | None
    flops_per_step: float | None
    seconds_per_episode: float | None

    @property
    def is_method(self) -> bool:
        """Whether it chooses by itself: no recorded, foreign or mean latent is given to it."""
        return self.latent in {"", SAMPLED}


@dataclass(frozen=True)
class PairedTest:
    """One policy beside the reference on the same initial states; differences are minus it.

    Attributes:
        better: Initial states that the policy solved more often than the reference did.
        worse: Initial states that it solved less often.
    """

    label: str
    against: str
    horizon: int | str | None
    against_horizon: int | str | None
    perturbation: float
    states: int
    better: int
    worse: int
    success_difference: float
    success_low: float
    success_high: float
    success_test: str
    success_p: float
    score_difference: float
    score_low: float
    score_high: float
    score_p: float
    success_p_holm: float = 1.0
    score_p_holm: float = 1.0


@dataclass(frozen=True)
class Control:
    """A perturbed condition minus the same models undisturbed on the same initial states."""

    label: str
    horizon: int | str | None
    perturbation: float
    train_seeds: tuple[int | None, ...]
    states: int
    success_difference: float
    success_low: float
    success_high: float
    score_difference: float
    score_low: float
    score_high: float


@dataclass(frozen=True)
class CostRatio:
    """A policy beside the reference's most successful cell, in operations per environment step.

    Attributes:
        label: The cheapest cell of the policy that solves at least as much; where none does, its
            most successful one.
        ratio: Its operations over the reference's; None where it solves less.
    """

    label: str
    horizon: int | str | None
    against: str
    against_horizon: int | str | None
    perturbation: float
    success: float
    against_success: float
    flops_per_step: float
    against_flops_per_step: float
    ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """All of a comparison's numbers; `notes` say what was left out or chosen."""

    env: str
    metric: str
    against: str
    cells: tuple[Cell, ...]
    pairs: tuple[PairedTest, ...]
    controls: tuple[Control, ...]
    costs: tuple[CostRatio, ...]
    notes: tuple[str, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values, the methods beside them."""
        return {**asdict(self), "methods": METHODS}

    @property
    def overall(self) -> list[Cell]:
        """The cells over all tasks."""
        return [cell for cell in self.cells if cell.task == ALL_TASKS]
