"""Evaluate in an environment of your own: examples/reach.py.

    python examples/train_on_your_hdf5.py my-runs
    python examples/evaluate_your_environment.py my-runs

The data name `reach:Reach`, which is imported because `trust` names it as well. The command line
does the same:

    PYTHONPATH=examples lwdctl eval --workspace my-runs --trust reach:Reach --latent sampled,mean

Evaluation seeds begin at 100000: collect training data with smaller seeds.
"""

from __future__ import annotations

import sys

import lwdctl

# Worker processes import this file; the guard keeps them from running the evaluation again.
if __name__ == "__main__":
    policy = lwdctl.load_policy(workspace=sys.argv[1] if len(sys.argv) > 1 else None)
    policies = {"sampled": policy, "mean latent": policy.with_settings(latent="mean")}
    table = lwdctl.evaluate(policies, episodes=20, workers=1, trust=["reach:Reach"])
    for row in table.rows:
        if row.task == "all":
            low, high = row.success.low, row.success.high
            print(
                f"{row.policy:12} success {row.success.value:.2f} [{low:.2f}, {high:.2f}]", end=""
            )
            print(f"  final distance {row.metrics['final_distance']:.3f}")
