"""`lwdctl` with a simulator and an expert called "slow", which misbehave once on request.

Run as a script: worker processes import it again and so know the simulator, too. The environment
variables FAULT (die, stop, hang, deaf) and FAULT_SEED say what happens at the third step of a seed,
the first time only: the file FAULT_MARKER, which is made then, stands for it. FAULT_STEP is the
time of one step in seconds.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from lwdctl.cli.main import main
from lwdctl.core.records import ActionSpec, EnvSpec, ObservationSpec
from lwdctl.core.registry import Row
from lwdctl.envs.experts import EXPERTS as TABLE
from lwdctl.envs.experts import ExpertSet
from lwdctl.envs.simulator import Metric, Step
from lwdctl.envs.table import ENVIRONMENTS

TRIGGER_STEP = 3
OBSERVATIONS = (ObservationSpec("place", 2),)
ACTION = ActionSpec(2, "delta", "units", (-1.0, -1.0), (1.0, 1.0))


class SlowSimulator:
    observations, action = OBSERVATIONS, ACTION
    metrics = (Metric("last_gain", "gain", "last"),)

    def __init__(self, env, task):
        self.max_steps = env.max_steps or 8
        self._pause = float(os.environ.get("FAULT_STEP", "0"))

    def reset(self, seed):
        self._seed, self._length = seed, 4 + seed % 5  # episodes end at different steps
        return self.restore(np.random.default_rng(seed).uniform(-1, 1, 2))

    def restore(self, state, model=""):
        self._start, self._place, self._count = state.copy(), state.copy(), 0
        return self._seen()

    def initial_state(self):
        return self._start.copy()

    def step(self, action):
        time.sleep(self._pause)
        self._count += 1
        if self._count == TRIGGER_STEP and str(self._seed) == os.environ.get("FAULT_SEED"):
            misbehave()
        self._place = self._place + 0.1 * np.clip(action, -1, 1)
        gain, over = float(self._place.sum()), self._count == self._length
        return Step(self._seen(), gain, over, over, {"gain": gain})

    def perturb(self, magnitude, rng):
        self._place = self._place + magnitude * rng.normal(size=2)

    def render(self):
        return np.zeros((8, 8, 3), dtype=np.uint8)

    def close(self):
        pass

    def _seen(self):
        return {"place": self._place.astype(np.float32)}


def misbehave():
    marker, fault = Path(os.environ["FAULT_MARKER"]), os.environ["FAULT"]
    if marker.exists() and fault != "always":
        return
    marker.touch()
    if fault in {"die", "always"}:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "hang":
        time.sleep(3600)
    if fault == "deaf":  # a call that keeps the interpreter: no other thread runs
        ctypes.PyDLL(None).sleep(3600)


class SlowExpert:
    def act(self, observation):
        return np.clip(-observation["place"], -1, 1)

    def finished(self, success):
        return success


class SlowExperts(ExpertSet):
    episodes, task, packages = 6, "walk", ("numpy",)

    def tasks(self, names):
        return tuple(names)

    def file_name(self, tasks):
        return tasks[0]

    def environment(self, tasks, max_steps):
        return EnvSpec("slow", tuple(tasks), {}, max_steps or 8)

    def env_args(self, env):
        return {"env_name": "slow", "type": "slow", "env_version": "1", "env_kwargs": {}}

    def expert(self, task, operator, seed):
        return SlowExpert()


EXPERTS = SlowExperts()
TABLE.rows["slow"] = Row("slow_simulator:EXPERTS", "slow")
ENVIRONMENTS.rows["slow"] = Row("slow_simulator:SlowSimulator", "slow")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
