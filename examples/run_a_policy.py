"""Sample one policy from the newest LWD model of a workspace and run it for an episode.

    lwdctl run pipelines/quickstart.toml
    python examples/run_a_policy.py lwd-runs reach

Use the same calls in your own control loop: `act` takes named observations and returns an
action in the environment's units.
"""

from __future__ import annotations

import sys

import lwdctl
from lwdctl.envs.table import make_simulator

policy = lwdctl.load_policy(workspace=sys.argv[1] if len(sys.argv) > 1 else None, horizon="episode")
task = sys.argv[2] if len(sys.argv) > 2 else policy.tasks[0]
policy.reset(seed=123_456, task=task)

simulator = make_simulator(policy.source.env, task)
observation = simulator.reset(123_456)
solved = False
for _ in range(simulator.max_steps):
    step = simulator.step(policy.act(observation))
    observation, solved = step.observation, solved or step.success
    if solved or step.terminated:
        break
simulator.close()
print(f"{task}: {'solved' if solved else 'not solved'}")
