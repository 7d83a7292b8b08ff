"""Policies that act for parts of a batch, and what a control step asks of the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lwdctl.methods import mlp
from lwdctl.methods.mlp import MlpPolicy
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.policies import replanning
from lwdctl.policies.latent_source import SampledLatents
from lwdctl.policies.policy import BatchPolicy, EpisodePlan, acts_in_parts
from lwdctl.policies.replanning import ActionChunks, GeneratedNetworks, ReplanningPolicy

ENVS, OBS, ACTION, HISTORY, HORIZON, CHUNK = 6, 39, 4, 3, 5, 8
EVERYONE = np.arange(ENVS)
Make = Callable[[torch.device], BatchPolicy]


def sampled(diffusion: LatentDiffusion, warm_start: float = 0.0) -> SampledLatents:
    for parameter in diffusion.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return SampledLatents(diffusion, ("t",), (), "ddim", 5, HISTORY, warm_start)


def diffusion_spec(latent: int) -> DiffusionSpec:
    denoiser = DenoiserSpec("mlp", latent, HISTORY * OBS, (1, latent), "xs", 64, 2, 0.0)
    state = HISTORY * OBS
    return DiffusionSpec(denoiser, "sample", 20, ("state",), state, 0, 0, clip=1.0, history=HISTORY)


def lwd(device: torch.device) -> BatchPolicy:
    torch.manual_seed(0)
    spec = VaeSpec(("seen",), OBS, ACTION, None, CHUNK, 16, (50, 50), (256, 256), True)
    vae = PolicyVae(spec).to(device).eval()
    diffusion = LatentDiffusion(diffusion_spec(16)).to(device).eval()
    return ReplanningPolicy(GeneratedNetworks(vae), sampled(diffusion, 0.4), HORIZON)


def chunks(method: type) -> Make:
    def make(device: torch.device) -> BatchPolicy:
        torch.manual_seed(0)
        size = (CHUNK + HISTORY) * ACTION
        spec = ChunkSpec(("seen",), OBS, ACTION, None, HISTORY, CHUNK, diffusion_spec(size))
        model = method(spec).to(device).eval()
        return ReplanningPolicy(
            ActionChunks(model, HORIZON), sampled(model.diffusion, 0.4), HORIZON
        )

    return make


def cloned(device: torch.device) -> BatchPolicy:
    torch.manual_seed(0)
    model = ClonedPolicy(ClonedSpec(("seen",), OBS, ACTION, None, (256, 256), 0, 0, HISTORY, 9))
    return MlpPolicy(model.to(device).eval(), ("t",), ())


POLICIES = {
    "lwd": lwd, "dp": chunks(ActionDiffusion), "ldp": chunks(LatentChunks), "mlp": cloned,
}  # fmt: skip


def roll(policy: BatchPolicy, parts: list[np.ndarray], steps: int = 12) -> np.ndarray:
    """Run episodes; ask for the actions in parts wherever the policy allows it."""
    policy.reset([EpisodePlan(index, 100_000 + index, "t") for index in range(ENVS)])
    rng = np.random.default_rng(0)
    running, found, calls = np.ones(ENVS, dtype=bool), np.zeros((steps, ENVS, ACTION)), 0
    for step in range(steps):
        running[1] = step < 7  # ends early
        rows = rng.normal(size=(ENVS, OBS)).astype(np.float32)
        for part in parts if acts_in_parts(policy, running) else [EVERYONE]:
            active = np.isin(EVERYONE, part) & running
            shown = np.where(active[:, None], rows, np.float32(9.0))
            found[step, active] = policy.act({"seen": shown}, active)[active]
            calls += 1
    assert calls > steps or len(parts) == 1
    return found


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("parts", [np.split(EVERYONE, 2), [EVERYONE[::2], EVERYONE[1::2]]])
def test_parts_act_as_all_environments_at_once_do_bit_for_bit(
    name: str, parts: list[np.ndarray]
) -> None:
    policy = POLICIES[name](torch.device("cpu"))
    whole = roll(policy, [EVERYONE])
    assert np.array_equal(roll(policy, parts), whole)
    assert not np.array_equal(whole[0], whole[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "waits"), [("lwd", 12), ("dp", 3), ("ldp", 3), ("mlp", 12)])
def test_a_control_step_waits_for_the_device_at_most_once(
    name: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's meta device nothing has a value: whatever asks for one raises."""
    downloads: list[tuple[int, ...]] = []

    def download(values: torch.Tensor) -> np.ndarray:
        assert values.device.type == "meta"
        downloads.append(tuple(values.shape))
        return np.ones(values.shape, dtype=np.float32)

    for module in (replanning, mlp):
        monkeypatch.setattr(module, "download", download)
    roll(POLICIES[name](torch.device("meta")), [EVERYONE])
    assert len(downloads) == waits
