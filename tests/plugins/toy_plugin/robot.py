"""A point on a line that is to stand at 1."""

import gymnasium
import numpy as np

from lwdctl import ActionSpec, GymnasiumSimulator, Metric, ObservationSpec


class LineEnv(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-2.0, 2.0, (1,))
    action_space = gymnasium.spaces.Box(-0.5, 0.5, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1.0, 0.5, 1)
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.place = self.place + action
        gap = float(abs(1.0 - self.place[0]))
        info = {"success": gap < 0.1, "gap": gap}
        return self.place.astype(np.float32), -gap, False, False, info


class Line(GymnasiumSimulator):
    observations = (ObservationSpec("place", 1),)
    action = ActionSpec(1, "delta", "meters", (-0.5,), (0.5,))
    metrics = (Metric("final_gap", "gap", "last", failed=3.0),)
    max_steps = 12

    def make(self, task):
        return LineEnv()


def task_names():
    return ("right",)
