"""Rows of a comparison by hand."""

import math

from lwdctl.analysis.comparison_records import ComparisonRow
from lwdctl.evaluation.results import Estimate

NOTHING = {
    "task": "all", "train_seeds": (0,), "episodes": 100, "errors": 0, "successes": 0,
    "success_std": None, "score": Estimate(math.nan, math.nan, math.nan, 0), "score_std": None,
    "seconds_per_episode": None,
}  # fmt: skip


def row(label, success, flops, horizon=16, perturbation=0.0, latent=""):
    rate = Estimate(math.nan if success is None else success, 0.0, 1.0, 100)
    return ComparisonRow(
        label=label, policy=label.split()[0], latent=latent, horizon=horizon,
        perturbation=perturbation, success=rate, flops_per_step=flops, **NOTHING,
    )  # fmt: skip
