"""Ten policies from one start: the picture of pipelines/two_ways.toml, and how often two agree.

    PYTHONPATH=examples python examples/two_ways_paths.py lwd-runs paths.png 100

The recipe made the models in lwd-runs. The number is that of starts; where the recipe ran with
--sweep seeds=0,1,2, end the line with -seed0. Beside LWD: Diffusion Policy and an MLP.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np
from two_ways import RADIUS, STEPS, TwoWaysEnv

import lwdctl

DRAWS = 10
MODELS = {
    "LWD": ("diffusion/two_ways", {}),
    "Diffusion Policy": ("baseline/two_ways-dp", {"horizon": 8}),
    "MLP": ("baseline/two_ways-mlp", {}),
}


def run(policy, seed):
    """Run ten draws from the start of `seed`: paths (draw, time, 2) and who reached the goal."""
    envs = [TwoWaysEnv() for _ in range(DRAWS)]
    seen = np.stack([env.reset(seed=seed)[0] for env in envs])
    policy.reset_batch(seeds=[DRAWS * seed + draw for draw in range(DRAWS)])
    paths, reached = [seen[:, :2]], np.zeros(DRAWS, dtype=bool)
    for _ in range(STEPS):
        actions = policy.act_batch({"point": seen[:, :2], "goal": seen[:, 2:]})
        stepped = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        seen = np.stack([one[0] for one in stepped])
        reached |= [one[4]["success"] for one in stepped]
        paths.append(seen[:, :2])
    return np.stack(paths, axis=1), reached


if __name__ == "__main__":
    recorded = lwdctl.load_dataset("snippets/two_ways", workspace=sys.argv[1])
    drawn = {"Ten demonstrations": [recorded[n].observations["point"] for n in range(10)]}
    for name, (model, settings) in MODELS.items():
        reference, trust = "".join([model, *sys.argv[4:]]), ["two_ways:TwoWays"]
        policy = lwdctl.load_policy(reference, workspace=sys.argv[1], trust=trust, **settings)
        found = [run(policy, 100_000 + start) for start in range(int(sys.argv[3]))]
        above = np.array([(paths.mean(axis=1)[:, 1] > 0).mean() for paths, _ in found])
        agree = (above**2 + (1 - above) ** 2 - 1 / DRAWS) / (1 - 1 / DRAWS)
        success = np.mean([reached for _, reached in found])
        print(f"{name:17} success {success:.3f}  two draws from one start agree {agree.mean():.3f}")
        drawn[f"{name}: ten draws"] = found[0][0]
    figure, columns = plt.subplots(1, len(drawn), figsize=(12, 2.6), sharey=True)
    for axes, (title, paths) in zip(columns, drawn.items(), strict=True):
        axes.add_patch(plt.Circle((0, 0), RADIUS, color="lightgray"))
        for path in paths:
            axes.plot(*np.asarray(path).T)
        axes.set(title=title, aspect="equal", xlim=(-1.1, 1.1), ylim=(-0.7, 0.7))
    figure.savefig(sys.argv[2], bbox_inches="tight", dpi=150)
