"""Demonstrations travel through ingest and come back exactly in the simulator."""

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.data.readers.robomimic_writer import DEMONSTRATIONS_PAYLOAD
from lwdctl.evaluation.episodes import plan_demonstrations
from lwdctl.evaluation.rollout import rollout
from lwdctl.policies.policy import PolicyCost
from lwdctl.stages import collect, ingest
from lwdctl.stages.stage import StageContext

STEPS = 90


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    context = StageContext(Workspace(tmp_path_factory.mktemp("work")))
    config = collect.CollectConfig(
        task=("reach", "drawer-open"), episodes=2, max_steps=STEPS, workers=0, keep_failures=True
    )
    demonstrations = collect.run(config, {}, context)
    path = demonstrations.payload(DEMONSTRATIONS_PAYLOAD)
    config = ingest.IngestConfig(format="robomimic", paths=(str(path),))
    artifact = ingest.run(config, {}, context)
    return SnippetStore.open(next(artifact.path.glob("*.zarr")))


class Replay:
    """Repeats the recorded actions and notes what it saw."""

    def __init__(self, store, width):
        self.store, self.num_envs, self.seen = store, width, {}

    def reset(self, episodes):
        self.plans, self.step = episodes, 0

    def act(self, observations, active):
        actions = np.zeros((self.num_envs, 4), dtype=np.float32)
        for env_index in np.flatnonzero(active):
            index = self.plans[env_index].demonstration
            row = int(self.store.episodes.start[index]) + self.step
            self.seen.setdefault(index, []).append(observations["observation"][env_index].copy())
            actions[env_index] = self.store.read("action", row, row + 1)[0]
        self.step += 1
        return actions

    def cost(self):
        return PolicyCost(np.zeros(self.num_envs, dtype=np.int64))


@pytest.mark.slow
def test_recorded_episodes_are_repeated_exactly(store):
    env = store.spec.env
    assert env.adapter == "metaworld"
    plans = plan_demonstrations(store, 2)
    assert {plan.task for plan in plans} == {"reach", "drawer-open"}
    policy = Replay(store, 4)
    result = rollout(policy, env, plans, num_envs=4, workers=0, max_steps=STEPS)
    for item in result.episodes:
        index = item.plan.demonstration
        start = int(store.episodes.start[index])
        recorded = store.read("observation", start, start + STEPS)
        np.testing.assert_array_equal(np.stack(policy.seen[index]), recorded)
        assert item.success == bool(store.episodes.success[index])
        assert not item.error
