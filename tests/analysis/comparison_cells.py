"""Cells of a comparison by hand."""

from lwdctl.analysis.results import Cell

NOTHING = {
    "task": "all", "train_seeds": (0,), "episodes": 100, "errors": 0, "successes": 0,
    "success_low": 0.0, "success_high": 1.0, "success_deviation": None, "score": None,
    "score_low": None, "score_high": None, "score_deviation": None, "seconds_per_episode": None,
}  # fmt: skip


def cell(label, success, operations, horizon=16, perturbation=0.0, latent=""):
    return Cell(
        label=label, policy=label.split()[0], latent=latent, horizon=horizon,
        perturbation=perturbation, success=success, flops_per_step=operations, **NOTHING,
    )  # fmt: skip
