"""Metaworld's scripted experts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from lwdctl.core.records import FloatArray
from lwdctl.envs.metaworld import SUFFIX
from lwdctl.envs.simulator import Observation


class MetaworldExpert:
    """The scripted policy of one task; make a new one for every episode."""

    def __init__(self, task: str) -> None:
        self._policy: Any = ENV_POLICY_MAP[task.removesuffix(SUFFIX) + SUFFIX]()

    def act(self, observation: Observation) -> FloatArray:
        """Return the expert's action (action,), clipped to [-1, 1]."""
        with warnings.catch_warnings():
            # The experts ask for more than the environment grants; clipping is meant.
            warnings.filterwarnings("ignore", message="Constant")
            action = self._policy.get_action(observation["observation"].astype(np.float64))
        clipped: FloatArray = np.clip(action, -1.0, 1.0).astype(np.float32)
        return clipped
