"""Export a policy and run it in a control loop at two rates, without torch.

    python examples/train_on_your_hdf5.py my-runs
    lwdctl export policy --workspace my-runs --output reach-policy
    python examples/control_loop.py reach-policy

On the robot: pip install numpy onnxruntime msgspec; pip install --no-deps . in a checkout. The
first action waits for the first re-plan. From then on a thread re-plans while the current network
acts every `1 / RATE` seconds, however long a re-plan takes; a new network takes over within two
steps.
"""

from __future__ import annotations

import sys
import time

from reach import ReachEnv  # stands for the robot

from lwdctl.deploy.controller import TwoRateController
from lwdctl.deploy.runtime import ExportedPolicy

RATE = 50.0  # control steps per second


def observe(seen):
    """Your sensors go here: every key of policy.json, in its units."""
    return {"point": seen[:2], "goal": seen[2:]}


policy = ExportedPolicy(sys.argv[1])
robot = ReachEnv()
with TwoRateController(policy, lead=2, blend=2, period=1.0 / RATE) as controller:
    seen, _ = robot.reset(seed=100_000)
    controller.reset(seed=0)
    due = time.perf_counter()
    for _ in range(60):
        seen, _, _, _, info = robot.step(controller.act(observe(seen)))
        due += 1.0 / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
found = controller.statistics
print(f"{'reached' if info['success'] else 'not reached'}: {info['distance']:.3f} from the goal")
print(
    f"{found.plans} plans, {found.late_steps} late steps, {found.deadline_misses} missed deadlines"
)
print(f"plans at most {found.staleness} steps old; largest jump {found.largest_jump:.3f}")
