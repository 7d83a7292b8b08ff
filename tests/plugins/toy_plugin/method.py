"""A method that is trained (least squares), and a policy that needs no training."""

import numpy as np
import torch
from torch import nn

from lwdctl import SourceSpec
from lwdctl.methods.method import ActingCost, Method, PolicyFlops, TrainedPolicy
from lwdctl.models.files import load_spec, load_weights
from lwdctl.policies.single import SingleRobotPolicies
from lwdctl.training.loop import Trained


class TrainedLinear(TrainedPolicy):
    snippet_length = None
    condition = ()

    def __init__(self, path, device):
        spec = load_spec(path)
        self.source, self.device = SourceSpec.from_mapping(spec["source"]), device
        self.observation_keys = self.source.network_keys
        self.layer = nn.Linear(spec["inputs"], spec["outputs"])
        load_weights(self.layer, path)

    def horizon(self, acting):
        return None

    def check(self, acting):
        pass

    def batch_policy(self, acting, num_envs):
        return SingleRobotPolicies(Linear(self.layer, self.observation_keys), num_envs)

    def cost(self, acting):
        return ActingCost(PolicyFlops(step=2 * self.layer.weight.numel()))


class Linear:
    def __init__(self, layer, keys):
        self.layer, self.keys = layer, keys

    def reset(self):
        pass

    def act(self, observation):
        seen = np.concatenate([observation[key] for key in self.keys])
        with torch.no_grad():
            return self.layer(torch.from_numpy(seen)).numpy()


class LeastSquares(Method):
    artifact_type = "baseline"

    def train(self, data, config, directory, progress):
        seen = data.features(data.spec.network_keys, 0, data.steps)
        done = data.read("action", 0, data.steps)
        design = np.concatenate([seen, np.ones((len(seen), 1), np.float32)], axis=1)
        solution = np.linalg.lstsq(design, done, rcond=None)[0]
        layer = nn.Linear(seen.shape[1], done.shape[1])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(solution[:-1].T))
            layer.bias.copy_(torch.from_numpy(solution[-1]))
        spec = {"method": "toy-linear", "source": data.spec.to_mapping(),
                "inputs": seen.shape[1], "outputs": done.shape[1]}  # fmt: skip
        error = float(np.abs(design @ solution - done).mean())
        return Trained(spec, layer, layer, {"mean_error": error})

    def open_directory(self, path, device, name):
        return TrainedLinear(path, device)


class Halfway:
    def reset(self):
        pass

    def act(self, observation):
        return 0.5 * (1.0 - observation["place"])


def halfway(source):
    assert source.env.adapter == "toy-line"
    return Halfway()


METHOD = LeastSquares()
