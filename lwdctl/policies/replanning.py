"""Policies that re-plan: sample a latent, follow what it decodes to, and sample again.

Latent Weight Diffusion follows a generated network in closed loop (paper section 3.4); Diffusion
Policy and latent diffusion of chunks (LDP) follow a chunk of actions in open loop. Everything
else is the same, and stands here once: when to re-plan, from which observations, and at what cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from lwdctl.policies.device import Stopwatch, download, upload
from lwdctl.policies.latent_source import LatentSource, ReplanRequest
from lwdctl.policies.policy import EpisodePlan, PolicyCost

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Observed:
    """The last `history` observations; an episode's first one also stands for those before it.

    Args:
        keys: Observation keys that the policy sees, in order.
        history: Number of observations.
        sizes: Components of each key; () checks none.
    """

    def __init__(self, keys: Sequence[str], history: int, sizes: Sequence[int] = ()) -> None:
        self._keys, self._history, self._sizes = keys, history, sizes
        self.clear()

    def clear(self) -> None:
        """Begin new episodes."""
        self._recent: FloatArray | None = None

    def add(self, observations: Mapping[str, FloatArray], active: BoolArray) -> FloatArray:
        """Add what active environments observe now; return (env, obs), environment units.

        Raises:
            ConfigError: An observation is missing or has another number of components.
        """
        missing = [key for key in self._keys if key not in observations]
        if missing:
            raise ConfigError(
                f"the policy sees {', '.join(self._keys)}, the environment shows"
                f" {', '.join(observations)}",
                "give the environment a Dict of observations with the keys that the policy sees, or"
                " ingest the data under the environment's keys (--rename OLD=NEW) and train again",
            )
        for key, size in zip(self._keys, self._sizes, strict=False):
            if observations[key].shape[1] != size:
                raise ConfigError(
                    f"the policy sees '{key}' with {size} components, the environment shows it with"
                    f" {observations[key].shape[1]}",
                    "run it in an environment with the observations of its data, or train a policy"
                    " on demonstrations from this one, beginning with: lwdctl ingest FILE",
                )
        parts = [observations[key] for key in self._keys]
        current = np.concatenate(parts, axis=1, dtype=np.float32)
        if self._recent is None:
            self._recent = np.repeat(current[:, None], self._history, axis=1)
            self._new = np.ones(len(current), dtype=np.bool_)
        first = active & self._new
        self._recent[first] = current[first, None]
        self._recent[active, :-1] = self._recent[active, 1:]
        self._recent[active, -1] = current[active]
        self._new[active] = False
        return current

    @property
    def state(self) -> FloatArray:
        """All of the history, (env, history * obs), oldest first."""
        assert self._recent is not None  # `add` comes first
        return self._recent.reshape(len(self._recent), -1).copy()


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

    def replace(self, latents: Tensor, state: Tensor, due: BoolArray) -> None:
        """Decode latents (env, latent) and follow them in the environments that are due (env,).

        The state is (env, history * obs), environment units, the current observation last.
        """

    def act(self, observations: FloatArray, age: IntArray, rows: slice) -> FloatArray:
        """Return actions (row, action) for observations (row, obs), environment units.

        The age (row,) counts the steps since the environment took up its plan; `rows` are the
        environments' indices.
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

    def replace(self, latents: Tensor, state: Tensor, due: BoolArray) -> None:
        """Decode the weights (env, weight) of the environments that are due."""
        del state
        chosen = upload(due, self.device).unsqueeze(1)
        torch.where(chosen, self.vae.decoder(latents), self.weights, out=self.weights)

    def act(self, observations: FloatArray, age: IntArray, rows: slice) -> FloatArray:
        """Run the networks of these environments on their observations."""
        elapsed = np.minimum(age / self.vae.spec.snippet_length, 1.0)
        given = np.concatenate([observations, elapsed[:, None]], axis=1, dtype=np.float32)
        inputs = upload(given, self.device)
        layers = [(matrix[rows], bias[rows]) for matrix, bias in self._layers]
        return download(self.vae.act(layers, inputs[:, :-1], inputs[:, -1]))

    def continued(self, latents: Tensor, state: Tensor) -> Tensor:
        """Return the latents: a network is the same whenever it is taken up."""
        del state
        return latents


class ActionChunks:
    """One chunk of actions per environment, executed in open loop.

    Args:
        model: Turns latents into actions.
        horizon: Steps executed of every chunk.
        ensemble: None executes the newest chunk. Otherwise a step's action is the mean of what all
            chunks predict for it, with weights exp(-ensemble * i) where i counts from the oldest
            chunk (Zhao et al. 2023, ACT: temporal ensembling).
    """

    def __init__(
        self,
        model: ActionDiffusion | LatentChunks,
        horizon: int,
        ensemble: float | None = None,
    ) -> None:
        if not 1 <= horizon <= model.spec.horizon:
            raise ValueError(f"horizon {horizon} does not lie in 1 to {model.spec.horizon}")
        self._model, self._horizon, self._ensemble = model, horizon, ensemble
        self.observation_keys = model.spec.observation_keys
        self.latent_size = model.spec.latent_size
        self.device = model.diffusion.latent.mean.device

    def reset(self, num_envs: int) -> None:
        """Begin with chunks of zeros."""
        spec = self._model.spec
        # On the host: a step then needs nothing of the device.
        self._chunks = np.zeros((num_envs, spec.horizon, spec.action_size), dtype=np.float32)
        # Per step of the newest chunk: how many chunks reach it, and the sum of their weights.
        self._reach = np.zeros((num_envs, spec.horizon, 1), dtype=np.float32)
        self._weight = np.zeros_like(self._reach)
        state_size = spec.history * spec.observation_size
        self._states = torch.zeros(num_envs, state_size, device=self.device)

    def replace(self, latents: Tensor, state: Tensor, due: BoolArray) -> None:
        """Decode the chunks (env, time, action) of the environments that are due."""
        chosen = upload(due, self.device).unsqueeze(1)
        self._states = torch.where(chosen, state, self._states)
        chunks = download(self._model.actions(latents, state))[due]
        self._chunks[due] = chunks if self._ensemble is None else self._mean(chunks, due)

    def act(self, observations: FloatArray, age: IntArray, rows: slice) -> FloatArray:
        """Return the next action of every chunk; ended episodes repeat their last one."""
        del observations
        actions: FloatArray = self._chunks[rows][
            np.arange(len(age)), np.minimum(age, self._horizon - 1)
        ]
        return actions

    def _mean(self, chunks: FloatArray, due: BoolArray) -> FloatArray:
        """Return the means (env, time, action) of new chunks with what earlier ones say."""
        assert self._ensemble is not None
        left = self._chunks.shape[1] - self._horizon
        earlier, reach, weight = (
            np.pad(part[due, self._horizon :], ((0, 0), (0, len(chunks[0]) - left), (0, 0)))
            for part in (self._chunks, self._reach, self._weight)
        )
        own = np.exp(-self._ensemble * reach)
        self._reach[due], self._weight[due] = reach + 1, weight + own
        mean: FloatArray = (weight * earlier + own * chunks) / (weight + own)
        return mean

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


@dataclass
class RecordedPaths:
    """What demonstrations observed under the recorded latents most similar to the plans'.

    A motion that has gone far from it has left what the latent was encoded from.

    Attributes:
        latents: (snippet, latent), recorded latents in standard deviations.
        std: (latent,), these standard deviations.
        observed: Returns what recorded snippets observed: indices (row,) to (row, time, obs),
            environment units.
        scale: (obs,), standard deviations of observations.
        beyond: Distance at which a plan is left: the root mean square over components of an
            observation, in standard deviations.
        after: Minimum number of steps between two re-plans.
    """

    latents: Tensor
    std: Tensor
    observed: Callable[[IntArray], FloatArray]
    scale: FloatArray
    beyond: float
    after: int

    def reset(self) -> None:
        """Begin new episodes."""
        self._paths: FloatArray | None = None

    def follow(self, latents: Tensor, due: BoolArray) -> None:
        """Look up the recorded paths of new plans' latents (env, latent) where due (env,)."""
        # One environment at a time: what is found for it does not depend on the others.
        rows = [(self.latents - row / self.std).square().sum(1).argmin() for row in latents[due]]
        paths = self.observed(torch.stack(rows).cpu().numpy())
        if self._paths is None:
            self._paths = np.zeros((len(due), *paths.shape[1:]), dtype=np.float32)
        self._paths[due] = paths

    def left(self, observations: FloatArray, age: IntArray) -> BoolArray:
        """Return which motions (env,) have gone too far; see `Plans.act` for the age."""
        if self._paths is None:
            return np.zeros(len(age), dtype=np.bool_)
        path = self._paths[np.arange(len(age)), np.minimum(age, self._paths.shape[1] - 1)]
        distance = np.sqrt(np.square((observations - path) / self.scale).mean(axis=1))
        gone: BoolArray = (age >= self.after) & (distance > self.beyond)
        return gone


class ReplanningPolicy:
    """Follows one plan per environment and re-plans every `horizon` executed steps.

    All environments are sampled as one batch of fixed size, so that neither the number of workers
    nor the other environments change an environment's latent: another batch size might change its
    last digits. What latents decode to is one product per environment, the same in any batch. The
    history holds the current observation and those before it; an episode's first one repeats.

    Args:
        plans: What latents decode to.
        source: Where latents come from.
        horizon: Steps executed per plan; None follows one plan all episode.
        paths: Re-plan earlier where the motion has gone too far from these; None never does.
        sizes: Components of each observation key, to check what environments show; () checks none.
    """

    def __init__(
        self,
        plans: Plans,
        source: LatentSource,
        horizon: int | None,
        paths: RecordedPaths | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        self.plans, self._source, self._horizon, self._paths = plans, source, horizon, paths
        self._device = plans.device
        self._observed = Observed(plans.observation_keys, source.history, sizes)
        self.reset(())

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves the environment idle."""
        num_envs = len(episodes)
        self._episodes = episodes
        self._observed.clear()
        self.plans.reset(num_envs)
        if self._paths is not None:
            self._paths.reset()
        self._latents = torch.zeros(num_envs, self.plans.latent_size, device=self._device)
        self._steps, self._age, self._count = (np.zeros(num_envs, dtype=np.int64) for _ in range(3))
        self._seconds = {"denoiser": 0.0, "decoding": 0.0, "policy": 0.0}

    @torch.inference_mode()
    def act(self, observations: Mapping[str, FloatArray], active: BoolArray) -> FloatArray:
        """Return actions (env, action) in environment units, not clipped."""
        begun = time.perf_counter()
        current = self._observed.add(observations, active)
        due = self._due()
        if self._paths is not None:
            due |= self._paths.left(current, self._age)
        due &= active
        watch = self._replan(due) if due.any() else None
        rows = _rows(active)
        acted = self.plans.act(current[rows], self._age[rows], rows)
        actions = np.zeros((len(active), acted.shape[1]), dtype=np.float32)
        actions[rows] = acted
        self._steps[active] += 1
        self._age[active] += 1
        planning, decoding = watch.seconds() if watch else (0.0, 0.0)
        self._seconds["denoiser" if self._source.denoises else "decoding"] += planning
        self._seconds["decoding"] += decoding
        self._seconds["policy"] += time.perf_counter() - begun - planning - decoding
        return actions

    def acts_in_parts(self, running: BoolArray) -> bool:
        """Return whether none of these environments re-plans next, which all do as one batch."""
        return self._paths is None and not (running & self._due()).any()

    def cost(self) -> PolicyCost:
        """Return what was spent since the last `reset`."""
        samplings = self._count * int(self._source.denoises)
        return PolicyCost(samplings, dict(self._seconds), self._count.copy())

    def _due(self) -> BoolArray:
        due: BoolArray = self._steps == 0
        if self._horizon is not None:
            due |= self._age >= self._horizon
        return due

    def _replan(self, due: BoolArray) -> Stopwatch:
        """Sample latents and follow them; return the times of both."""
        watch = Stopwatch(self._device)
        watch.mark()
        state = upload(self._observed.state, self._device)
        previous = self.plans.continued(self._latents, state)
        latents = self._source.latents(
            ReplanRequest(self._episodes, self._count, self._steps, state, due, previous)
        )
        watch.mark()
        self.plans.replace(latents, state, due)
        chosen = upload(due, self._device).unsqueeze(1)
        self._latents = torch.where(chosen, latents, self._latents)
        if self._paths is not None:
            self._paths.follow(latents, due)
        self._age[due] = 0
        self._count[due] += 1
        watch.mark()
        return watch


def _rows(active: BoolArray) -> slice:
    """Return the narrowest slice that holds all active environments."""
    found = np.flatnonzero(active)
    if len(found) < 2:
        return slice(found[0], found[0] + 1) if len(found) else slice(0, 0)
    return slice(found[0], found[-1] + 1, np.gcd.reduce(np.diff(found)))
