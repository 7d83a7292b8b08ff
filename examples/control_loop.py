"""Export a policy and run it in a control loop at two rates, without torch.

    python examples/train_on_your_hdf5.py my-runs
    lwdctl export policy --workspace my-runs --output reach-policy
    python examples/control_loop.py reach-policy

On the robot: pip install numpy onnxruntime safetensors; pip install --no-deps . in a checkout.
The first action waits for the first re-plan. From then on a thread re-plans while the current
network acts every `1 / RATE` seconds, however long a re-plan takes.
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
robot, slowest = ReachEnv(), 0.0
with TwoRateController(policy, lead=2) as controller:
    seen, _ = robot.reset(seed=100_000)
    controller.reset(seed=0)
    due = time.perf_counter()
    for _ in range(60):
        begun = time.perf_counter()
        action = controller.act(observe(seen))
        slowest = max(slowest, time.perf_counter() - begun) if controller.policy.steps > 1 else 0.0
        seen, _, _, _, info = robot.step(action)
        due += 1.0 / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
timing = controller.punctuality
print(f"{'reached' if info['success'] else 'not reached'}: {info['distance']:.3f} from the goal")
print(f"{timing.plans} plans, {timing.late_steps} late steps; slowest step {1e3 * slowest:.1f} ms")
