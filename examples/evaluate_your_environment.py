"""Evaluate in an environment of your own: examples/reach.py.

    python examples/train_on_your_hdf5.py my-runs
    python examples/evaluate_your_environment.py my-runs

The data remember `reach:Reach`, so `PYTHONPATH=examples lwdctl eval --workspace my-runs` does
the same. Evaluation seeds begin at 100000: use smaller ones for what you train on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lwdctl.artifacts.workspace import Workspace
from lwdctl.pipeline.calls import run_stage

# Worker processes import this file again; what it does must not begin anew there.
if __name__ == "__main__":
    workspace = Workspace(Path(sys.argv[1] if len(sys.argv) > 1 else "lwd-runs"))
    settings = {"policy": ["lwd", "random"], "latent": ["sampled", "mean"], "episodes": 20}
    evaluation = run_stage("eval", workspace, {**settings, "workers": 1})
    for cell in evaluation.manifest.summary["results"]:
        if cell["task"] == "all":
            low, high = cell["success_low"], cell["success_high"]
            print(f"{cell['policy']:8}{cell['latent']:9}", end="")
            print(f"success {cell['success']:.2f} [{low:.2f}, {high:.2f}]", end="")
            print(f"  final distance {cell['metrics']['final_distance']:.3f}")
