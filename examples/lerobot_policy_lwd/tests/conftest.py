"""Exported policies that `EXPORTED_POLICIES` names, and directories made of them for LeRobot."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_policy_lwd import LWDConfig, LWDPolicy

from lwdctl.deploy.runtime import ExportedPolicy

FOLDERS = [Path(text) for text in os.environ.get("EXPORTED_POLICIES", "").split(":") if text]
"""Each directory was written by `lwdctl export policy`."""


@pytest.fixture(params=FOLDERS or [None], ids=lambda path: path.name if path else "none")
def exported(request):
    """A directory that `lwdctl export policy` wrote."""
    if request.param is None:
        pytest.skip("EXPORTED_POLICIES names no directory of lwdctl export policy")
    return request.param


class Example:
    """An exported policy, and observations, tasks and a label that fit it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.description = ExportedPolicy(directory).description
        self.conditioned = "task" in self.description.condition
        self.label = self.description.labels[-1] if "label" in self.description.condition else None

    def policy(self, **settings):
        return LWDPolicy(LWDConfig(label=self.label, **settings), self.directory)

    def observations(self, *axes, seed=0):
        """Random observations by key, (*axes, obs)."""
        rng = np.random.default_rng(seed)
        return {
            item.name: rng.normal(size=(*axes, item.size)).astype(np.float32)
            for item in self.description.observations
        }

    def tasks(self, count):
        """Texts as an environment gives them; the policy may have no use for them."""
        names = self.description.tasks if self.conditioned else ("a text for people",)
        return [names[index % len(names)] for index in range(count)]

    def batch(self, policy, observations):
        """The batch as LeRobot hands it to a policy."""
        rows = {
            policy.config.feature_names[key]: torch.from_numpy(values)
            for key, values in observations.items()
        }
        return {**rows, "task": self.tasks(len(next(iter(rows.values()))))}

    def expected(self, seed, task, observations):
        """Actions (time, action) of the exported policy over observations (time, obs)."""
        policy = ExportedPolicy(self.directory)
        policy.reset(seed, task if self.conditioned else "", self.label or "")
        steps = len(next(iter(observations.values())))
        return np.stack(
            [policy.act({key: rows[t] for key, rows in observations.items()}) for t in range(steps)]
        )


@pytest.fixture
def example(exported):
    """The exported policy with what fits it."""
    return Example(exported)
