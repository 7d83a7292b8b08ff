"""Sample one policy from the newest chain of a workspace and run it for an episode.

    lwdctl run pipelines/quickstart.toml
    python examples/run_a_policy.py lwd-runs reach

The same calls serve a control loop of your own: `act` takes named observations of every slot
and returns actions in the environment's units.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from lwdctl.artifacts.workspace import Workspace
from lwdctl.envs.table import make_simulator
from lwdctl.policies.policy import EpisodePlan
from lwdctl.stages.lwd_policy import lwd_policy
from lwdctl.stages.trained_chain import open_chain

chain = open_chain(Workspace(Path(sys.argv[1] if len(sys.argv) > 1 else "lwd-runs")))
env = chain.store.spec.env

task = sys.argv[2] if len(sys.argv) > 2 else env.tasks[0]
plan = EpisodePlan(index=0, seed=123_456, task=task)
policy = lwd_policy("sampled", chain, horizon=0, sampler="ddim", num_inference_steps=10)
policy.reset([plan])

simulator = make_simulator(env, task)
observation = simulator.reset(plan.seed)
solved = False
for _ in range(simulator.max_steps):
    action = policy.act({key: rows[None] for key, rows in observation.items()}, np.ones(1, bool))
    step = simulator.step(action[0])
    observation, solved = step.observation, solved or step.success
    if solved or step.terminated:
        break
simulator.close()
print(f"{task}: {'solved' if solved else 'not solved'}")
