"""Evaluate a policy that robomimic trained (BC-RNN) beside LWD, on the same initial states.

    python examples/train_on_your_hdf5.py my-runs
    python examples/compare_with_robomimic.py my-runs

Both learn from the file that the first script writes. Needs robomimic with its dependencies.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from robomimic.algo import RolloutPolicy, algo_factory
from robomimic.config import config_factory
from robomimic.utils import obs_utils
from robomimic.utils.dataset import SequenceDataset

import lwdctl

KEYS = {"point": [2], "goal": [2]}
SEQUENCE = {"seq_length": 10, "load_next_obs": False, "hdf5_cache_mode": "low_dim"}


class BcRnn:
    """robomimic's policy, which keeps a recurrent state within an episode."""

    def __init__(self, model):
        self.policy = RolloutPolicy(model)

    def reset(self):
        self.policy.start_episode()

    def act(self, observation):
        return self.policy(observation)


def train(path: Path, epochs: int = 40) -> BcRnn:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = list(KEYS)
    config.algo.rnn.enabled, config.algo.rnn.hidden_dim = True, 64
    config.algo.actor_layer_dims = []
    obs_utils.initialize_obs_utils_with_config(config)
    model = algo_factory("bc", config, KEYS, ac_dim=2, device=torch.device("cpu"))
    data = SequenceDataset(str(path), list(KEYS), ["actions"], **SEQUENCE)
    model.set_train()
    for epoch in range(epochs):
        for batch in torch.utils.data.DataLoader(data, batch_size=64, shuffle=True):
            model.train_on_batch(model.process_batch_for_training(batch), epoch)
    model.set_eval()
    return BcRnn(model)


workspace = Path(sys.argv[1] if len(sys.argv) > 1 else "lwd-runs")
policies = {"lwd": lwdctl.load_policy(workspace=workspace)}
policies["robomimic"] = train(workspace / "reach.hdf5")
table = lwdctl.evaluate(policies, episodes=20, trust=["reach:Reach"])
print(table)
print(lwdctl.compare(table, against="lwd"))
