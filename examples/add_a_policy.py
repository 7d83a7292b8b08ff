"""Compare a policy of your own with LWD, from the same initial states.

    python examples/train_on_your_hdf5.py my-runs
    python examples/add_a_policy.py my-runs

A policy is any object with `reset` and `act` (lwdctl.Policy).
"""

from __future__ import annotations

import sys

import lwdctl


class TowardsTheGoal:
    """A hand-written controller that moves a fixed fraction of the way at every step."""

    def reset(self, seed=0, task="", label=""):
        pass

    def act(self, observation):
        return 0.2 * (observation["goal"] - observation["point"])


policy = lwdctl.load_policy(workspace=sys.argv[1] if len(sys.argv) > 1 else None)
policies = {"lwd": policy, "towards the goal": TowardsTheGoal()}
table = lwdctl.evaluate(policies, episodes=20, trust=["reach:Reach"])
print(table)
print(lwdctl.compare(table, against="lwd"))
