"""Policies that sample a chunk of actions and run it open loop: DP and LDP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.core.records import FloatArray
from lwdctl.models.chunks import ActionDiffusion, LatentChunks
from lwdctl.policies.latent_source import LatentSource, ReplanRequest
from lwdctl.policies.observed import Observed, now
from lwdctl.policies.policy import EpisodePlan, PolicyCost


class ChunkPolicy:
    """One chunk of actions per slot, replaced every `horizon` executed steps.

    All slots are sampled as one batch of fixed width, so that neither the number of workers
    nor the other slots change a slot's actions. The history holds the current observation and
    those before it; at an episode's start its first observation repeats.

    Args:
        model: Turns what was sampled into actions.
        source: Samples: chunks for DP, latents for LDP.
        horizon: Executed steps between two queries, at most `model.spec.horizon`; fewer are
            the receding execution of Diffusion Policy.
    """

    def __init__(
        self, model: ActionDiffusion | LatentChunks, source: LatentSource, horizon: int
    ) -> None:
        if not 1 <= horizon <= model.spec.horizon:
            raise ValueError(f"horizon {horizon} does not lie in 1 to {model.spec.horizon}")
        self._model, self._source, self._horizon = model, source, horizon
        self._device = model.diffusion.latent.mean.device
        self._observed = Observed(model.spec.observation_keys, model.spec.history, self._device)
        self.reset(())

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot; None leaves the slot idle."""
        width, spec = len(episodes), self._model.spec
        self._plans = episodes
        self._observed.clear()
        self._chunks = torch.zeros(width, spec.horizon, spec.action_size, device=self._device)
        latent_size = spec.diffusion.denoiser.latent_size
        self._latents = torch.zeros(width, latent_size, device=self._device)
        state_size = spec.history * spec.observation_size
        self._states = torch.zeros(width, state_size, device=self._device)
        self._since_query = np.full(width, self._horizon, dtype=np.int64)
        self._steps, self._queries = (np.zeros(width, dtype=np.int64) for _ in range(2))
        self._seconds = {"denoiser": 0.0, "decoding": 0.0, "policy": 0.0}

    @torch.inference_mode()
    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (slot, action) in environment units."""
        self._observed.add(observations)
        due = active & (self._since_query >= self._horizon)
        if due.any():
            self._replan(self._observed.state, due)
        begun = now(self._device)
        # Slots that have ended stay on their last action.
        step = torch.from_numpy(np.minimum(self._since_query, self._horizon - 1)).to(self._device)
        actions: FloatArray = self._chunks[torch.arange(len(step)), step].cpu().numpy()
        self._since_query += 1
        self._steps += 1
        self._seconds["policy"] += now(self._device) - begun
        return actions

    def cost(self) -> PolicyCost:
        """Return what was spent since the last `reset`."""
        return PolicyCost(self._queries.copy(), dict(self._seconds), self._queries.copy())

    def _replan(self, state: Tensor, due: npt.NDArray[np.bool_]) -> None:
        begun = now(self._device)
        previous = self._continued(state)
        query = ReplanRequest(self._plans, self._queries, self._steps, state, due, previous)
        latents = self._source.latents(query)
        sampled = now(self._device)
        chosen = torch.from_numpy(due).to(self._device)
        self._chunks[chosen] = self._model.actions(latents, state)[chosen]
        self._latents = torch.where(chosen.unsqueeze(1), latents, self._latents)
        self._states = torch.where(chosen.unsqueeze(1), state, self._states)
        self._since_query[due] = 0
        self._queries[due] += 1
        self._seconds["denoiser"] += sampled - begun
        self._seconds["decoding"] += now(self._device) - sampled

    def _continued(self, state: Tensor) -> Tensor:
        """Return what the last queries gave (slot, latent), as the next ones would begin.

        A latent stands for itself. A chunk of actions moves on by the executed steps, its last
        action repeated, and becomes relative to the current observation where actions are.
        """
        if isinstance(self._model, LatentChunks):
            return self._latents
        spec = self._model.spec
        then, now = (rows[:, -spec.observation_size :] for rows in (self._states, state))
        chunks = self._latents.view(len(state), -1, spec.action_size)
        steps = torch.arange(chunks.shape[1], device=self._device) + self._horizon
        moved = chunks[:, steps.clamp(max=chunks.shape[1] - 1)]
        return (moved + spec.reference(then) - spec.reference(now)).flatten(1)
