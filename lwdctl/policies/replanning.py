"""Policies that re-plan: sample a latent, follow what it decodes to, and sample again.

Latent Weight Diffusion follows a generated network in closed loop (paper section 3.4); Diffusion
Policy and latent diffusion of chunks (LDP) follow a chunk of actions in open loop. Everything
else is the same, and stands here once: when to re-plan, from which observations, and at what cost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import FloatArray
from lwdctl.models import generated
from lwdctl.models.chunks import ActionDiffusion, LatentChunks
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.latent_source import LatentSource, ReplanRequest
from lwdctl.policies.policy import EpisodePlan, PolicyCost

IntArray = npt.NDArray[np.int64]


class Observed:
    """The last `history` observations; an episode's first one also stands for those before it."""

    def __init__(self, keys: Sequence[str], history: int, device: torch.device) -> None:
        self._keys, self._device = keys, device
        self._recent: deque[Tensor] = deque(maxlen=history)

    def clear(self) -> None:
        """Begin new episodes."""
        self._recent.clear()

    def add(self, observations: Mapping[str, FloatArray]) -> Tensor:
        """Add the current observations and return them, (env, obs), environment units."""
        missing = [key for key in self._keys if key not in observations]
        if missing:
            raise ConfigError(
                f"the policy sees {', '.join(self._keys)}, the environment shows"
                f" {', '.join(observations)}"
            )
        parts = [observations[key] for key in self._keys]
        current = torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32))
        current = current.to(self._device)
        while len(self._recent) < (self._recent.maxlen or 1) - 1:
            self._recent.append(current)
        self._recent.append(current)
        return current

    @property
    def state(self) -> Tensor:
        """All of the history, (env, history * obs), oldest first."""
        return torch.cat(list(self._recent), dim=1)


def now(device: torch.device) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Plans(Protocol):
    """What latents decode to, one plan per environment.

    Attributes:
        observation_keys: Observation keys, in the order of the network's components.
        latent_size: Components of a latent.
        device: Where the networks run.
    """

    observation_keys: tuple[str, ...]
    latent_size: int
    device: torch.device

    def reset(self, num_envs: int) -> None:
        """Begin with an empty plan per environment."""

    def replace(self, latents: Tensor, state: Tensor, chosen: Tensor) -> None:
        """Decode latents (env, latent) and follow them in the chosen environments (env,).

        The state is (env, history * obs), environment units, the current observation last.
        """

    def act(self, observations: Tensor, age: IntArray) -> Tensor:
        """Return actions (env, action) for observations (env, obs), environment units.

        The age (env,) counts the steps since the environment took up its plan.
        """

    def continued(self, latents: Tensor, state: Tensor) -> Tensor:
        """Return the latents (env, latent) of the current plans as new plans would begin."""


class GeneratedNetworks:
    """One generated MLP per environment, run as one batched matrix product."""

    def __init__(self, vae: PolicyVae) -> None:
        self.vae = vae
        self.observation_keys = vae.spec.observation_keys
        self.latent_size = vae.spec.latent_size
        self.device = vae.observation.mean.device

    def reset(self, num_envs: int) -> None:
        """Begin with weights of zero."""
        shape = self.vae.spec.policy_shape
        self.weights = torch.zeros(num_envs, shape.weight_count, device=self.device)
        self._layers = generated.unpack(self.weights, shape)

    def replace(self, latents: Tensor, state: Tensor, chosen: Tensor) -> None:
        """Decode the weights (env, weight) of the chosen environments."""
        del state
        self.weights[chosen] = self.vae.decoder(latents)[chosen]

    def act(self, observations: Tensor, age: IntArray) -> Tensor:
        """Run every environment's network on its observation."""
        elapsed = np.minimum(age / self.vae.spec.snippet_length, 1.0).astype(np.float32)
        times = torch.from_numpy(elapsed).to(self.device)
        return self.vae.act(self._layers, observations, times)

    def continued(self, latents: Tensor, state: Tensor) -> Tensor:
        """Return the latents: a network is the same whenever it is taken up."""
        del state
        return latents


class ActionChunks:
    """One chunk of actions per environment, executed in open loop.

    Args:
        model: Turns latents into actions.
        horizon: Steps executed of every chunk.
    """

    def __init__(self, model: ActionDiffusion | LatentChunks, horizon: int) -> None:
        if not 1 <= horizon <= model.spec.horizon:
            raise ValueError(f"horizon {horizon} does not lie in 1 to {model.spec.horizon}")
        self._model, self._horizon = model, horizon
        self.observation_keys = model.spec.observation_keys
        self.latent_size = model.spec.latent_size
        self.device = model.diffusion.latent.mean.device

    def reset(self, num_envs: int) -> None:
        """Begin with chunks of zeros."""
        spec = self._model.spec
        self._chunks = torch.zeros(num_envs, spec.horizon, spec.action_size, device=self.device)
        state_size = spec.history * spec.observation_size
        self._states = torch.zeros(num_envs, state_size, device=self.device)

    def replace(self, latents: Tensor, state: Tensor, chosen: Tensor) -> None:
        """Decode the chunks (env, time, action) of the chosen environments."""
        self._chunks[chosen] = self._model.actions(latents, state)[chosen]
        self._states = torch.where(chosen.unsqueeze(1), state, self._states)

    def act(self, observations: Tensor, age: IntArray) -> Tensor:
        """Return the next action of every chunk; ended episodes repeat their last one."""
        del observations
        step = torch.from_numpy(np.minimum(age, self._horizon - 1)).to(self.device)
        return self._chunks[torch.arange(len(step)), step]

    def continued(self, latents: Tensor, state: Tensor) -> Tensor:
        """Return what the last chunks still hold, as chunks that begin now.

        A latent stands for itself. A chunk of actions moves on by the executed steps, its last
        action repeated, and becomes relative to the current observation where actions are.
        """
        if isinstance(self._model, LatentChunks):
            return latents
        spec = self._model.spec
        before, current = (
            rows[:, None, -spec.observation_size :] for rows in (self._states, state)
        )
        chunks = latents.view(len(state), -1, spec.action_size)
        steps = torch.arange(chunks.shape[1], device=self.device) + self._horizon
        moved = chunks[:, steps.clamp(max=chunks.shape[1] - 1)]
        return (moved + spec.reference(before) - spec.reference(current)).flatten(1)


class ReplanningPolicy:
    """Follows one plan per environment and re-plans every `horizon` executed steps.

    All environments are sampled and stepped as one batch of fixed size, so that neither the
    number of workers nor the other environments change an environment's actions. The history
    holds the current observation and those before it; an episode's first one repeats.

    Args:
        plans: What latents decode to.
        source: Where latents come from.
        horizon: Steps executed per plan; None follows one plan all episode.
    """

    def __init__(self, plans: Plans, source: LatentSource, horizon: int | None) -> None:
        self.plans, self._source, self._horizon = plans, source, horizon
        self._device = plans.device
        self._observed = Observed(plans.observation_keys, source.history, self._device)
        self.reset(())

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves the environment idle."""
        num_envs = len(episodes)
        self._episodes = episodes
        self._observed.clear()
        self.plans.reset(num_envs)
        self._latents = torch.zeros(num_envs, self.plans.latent_size, device=self._device)
        self._steps, self._age, self._count = (np.zeros(num_envs, dtype=np.int64) for _ in range(3))
        self._seconds = {"denoiser": 0.0, "decoding": 0.0, "policy": 0.0}

    @torch.inference_mode()
    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (env, action) in environment units, not clipped."""
        current = self._observed.add(observations)
        due = active & self._due()
        if due.any():
            self._replan(self._observed.state, due)
        begun = now(self._device)
        actions: FloatArray = self.plans.act(current, self._age).cpu().numpy()
        self._steps += 1
        self._age += 1
        self._seconds["policy"] += now(self._device) - begun
        return actions

    def cost(self) -> PolicyCost:
        """Return what was spent since the last `reset`."""
        samplings = self._count * int(self._source.denoises)
        return PolicyCost(samplings, dict(self._seconds), self._count.copy())

    def _due(self) -> npt.NDArray[np.bool_]:
        due: npt.NDArray[np.bool_] = self._steps == 0
        if self._horizon is not None:
            due |= self._age >= self._horizon
        return due

    def _replan(self, state: Tensor, due: npt.NDArray[np.bool_]) -> None:
        begun = now(self._device)
        previous = self.plans.continued(self._latents, state)
        latents = self._source.latents(
            ReplanRequest(self._episodes, self._count, self._steps, state, due, previous)
        )
        sampled = now(self._device)
        chosen = torch.from_numpy(due).to(self._device)
        self.plans.replace(latents, state, chosen)
        self._latents = torch.where(chosen.unsqueeze(1), latents, self._latents)
        self._age[due] = 0
        self._count[due] += 1
        part = "denoiser" if self._source.denoises else "decoding"
        self._seconds[part] += sampled - begun
        self._seconds["decoding"] += now(self._device) - sampled
