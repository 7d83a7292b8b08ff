"""Compare a policy of your own with LWD: same initial states, same score.

    python examples/train_on_your_hdf5.py my-runs
    python examples/add_a_policy.py my-runs

A policy is any object with `reset`, `act` and `cost` (lwdctl.policies.policy.Policy): it acts
in a fixed number of environments, one episode in each, all at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from lwdctl.artifacts.workspace import Workspace
from lwdctl.evaluation.episodes import plan_episodes
from lwdctl.evaluation.results import Condition, result_rows
from lwdctl.evaluation.rollout import rollout
from lwdctl.policies.policy import PolicyCost
from lwdctl.stages.lwd_policy import lwd_policy
from lwdctl.stages.trained_chain import open_chain

NUM_ENVS = 10


class TowardsTheGoal:
    """A hand-written controller: a fixed fraction of the way at every step."""

    def reset(self, episodes):
        self.plans = episodes  # seed, task and label of every environment's episode

    def act(self, observations, active):
        return 0.2 * (observations["goal"] - observations["point"])

    def cost(self):
        return PolicyCost(num_replans=np.zeros(len(self.plans), dtype=np.int64))


chain = open_chain(Workspace(Path(sys.argv[1] if len(sys.argv) > 1 else "lwd-runs")))
env = chain.store.spec.env
horizon = chain.vae.spec.snippet_length
policies = {
    "lwd": lwd_policy("sampled", chain, horizon, sampler="ddim", num_inference_steps=10),
    "towards the goal": TowardsTheGoal(),
}
plans = plan_episodes(env, episodes=20)
for name, policy in policies.items():
    results = rollout(policy, env, plans, num_envs=NUM_ENVS, workers=0).episodes
    row = result_rows(results, "final_distance", Condition(name, "", env.adapter))[-1]
    print(
        f"{name:18}success {row.success.value:.2f} [{row.success.low:.2f}, {row.success.high:.2f}]"
    )
