"""A tiny simulator whose tasks die, hang, raise, end early or go dark on purpose."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from lwdctl.core.records import ActionSpec, ObservationSpec
from lwdctl.envs.simulator import Metric, Step, UnstablePhysicsError

TRIGGER_STEP = 3


class FakeSimulator:
    observations = (ObservationSpec("place", 2), ObservationSpec("clock", 1))
    action = ActionSpec(2, "delta", "units", (-1.0, -1.0), (1.0, 1.0))
    metrics = (
        Metric("max_gain", "gain", "max"),
        Metric("last_gain", "gain", "last"),
        Metric("mean_gain", "gain", "mean"),
        Metric("sum_gain", "gain", "sum", failed=7.0),
    )
    max_steps = 10

    def __init__(self, env, task):
        self._task, self._settings = task, env.settings
        if task == "no-such":
            from lwdctl.core.errors import ConfigError

            raise ConfigError("no task 'no-such'", "did you mean 'walk'?")
        if env.max_steps:
            self.max_steps = env.max_steps

    def reset(self, seed):
        return self.restore(np.random.default_rng(seed).uniform(-1, 1, 2))

    def restore(self, state, model=""):
        self._start, self._place, self._clock = state.copy(), state.copy(), 0
        if self._task == "broken-start":
            raise RuntimeError("will not start")
        if model:
            self._place += len(model)
        return self._seen()

    def initial_state(self):
        return self._start.copy()

    def step(self, action):
        self._clock += 1
        if self._clock == TRIGGER_STEP:
            self._misbehave()
        self._place = self._place + 0.1 * np.clip(action, -1, 1)
        gain = float(self._place.sum())
        over = self._task == "short" and self._clock == TRIGGER_STEP
        solved = over or (self._task == "blink" and self._clock == TRIGGER_STEP)
        lost = self._task == "no-reward" and self._clock == TRIGGER_STEP
        return Step(self._seen(), float("nan") if lost else gain, solved, over, {"gain": gain})

    def perturb(self, magnitude, rng):
        self._place = self._place + magnitude * rng.normal(size=2)

    def render(self):
        if self._task == "dark" or (self._task == "dark-later" and self._clock >= TRIGGER_STEP):
            raise RuntimeError("the light is off")
        image = np.zeros((95, 129, 3), dtype=np.uint8)  # odd on purpose
        image[40:60, 10 * self._clock + 14 : 10 * self._clock + 24] = 255
        return image

    def close(self):
        pass

    def _seen(self):
        place = self._place.astype(np.float32)
        if self._task == "not-finite" and self._clock >= TRIGGER_STEP:
            place[0] = np.nan
        return {"place": place, "clock": np.array([self._clock], dtype=np.float32)}

    def _first_time(self):
        marker = Path(self._settings["marker"])
        if marker.exists():
            return False
        marker.touch()
        return True

    def _wait(self):
        deadline = time.monotonic() + 10
        while not Path(self._settings["marker"]).exists():
            if time.monotonic() > deadline:
                raise RuntimeError("waited in vain")
            time.sleep(0.01)

    def _misbehave(self):
        if self._task == "die" or (self._task == "die-once" and self._first_time()):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._task == "hang" or (self._task == "hang-once" and self._first_time()):
            time.sleep(60)
        if self._task == "stop-once" and self._first_time():
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._task == "wait":
            self._wait()
        if self._task == "raise" or (self._task == "raise-once" and self._first_time()):
            raise RuntimeError("broken inside")
        if self._task == "unstable":
            raise UnstablePhysicsError("it flew away")
