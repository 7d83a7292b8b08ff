"""The Latent Weight Diffusion policy: sample a latent, decode a network, run it closed loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.core.records import FloatArray
from lwdctl.models import generated
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.latent_source import LatentSource, ReplanRequest
from lwdctl.policies.observed import Observed, now
from lwdctl.policies.policy import EpisodePlan, PolicyCost


@dataclass
class _Clock:
    """Per-slot counters: steps since the episode and since the query began, queries made."""

    episode: npt.NDArray[np.int64]
    since_query: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]


class LwdPolicy:
    """One generated MLP per slot, replaced every `horizon` executed steps.

    All slots are decoded and stepped as one batch of fixed width, so that neither the
    number of workers nor the other slots change a slot's actions.

    Args:
        vae: Decoder and normalizers.
        source: Where latents come from.
        horizon: Executed steps between two queries; 0 keeps one policy all episode.
    """

    def __init__(self, vae: PolicyVae, source: LatentSource, horizon: int) -> None:
        self._vae, self._source, self._horizon = vae, source, horizon
        self._device = vae.observation.mean.device
        self._plans: Sequence[EpisodePlan | None] = ()
        self._weights = self._latents = torch.empty(0)
        self._layers: list[generated.Layer] = []
        self._seconds: dict[str, float] = {}
        self._observed = Observed(vae.spec.observation_keys, source.history, self._device)
        self._clock = _Clock(*(np.zeros(0, dtype=np.int64) for _ in range(3)))

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per slot; None leaves the slot idle."""
        width = len(episodes)
        self._observed.clear()
        self._plans = episodes
        shape = self._vae.spec.policy_shape
        self._weights = torch.zeros(width, shape.weight_count, device=self._device)
        self._layers = generated.unpack(self._weights, shape)
        self._latents = torch.zeros(width, self._vae.spec.latent_size, device=self._device)
        self._clock = _Clock(*(np.zeros(width, dtype=np.int64) for _ in range(3)))
        self._seconds = {"denoiser": 0.0, "decoding": 0.0, "policy": 0.0}

    @torch.inference_mode()
    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (slot, action) in environment units."""
        current = self._observed.add(observations)
        due = active & self._due()
        if due.any():
            self._replan(self._observed.state, due)
        begun = now(self._device)
        phase = self._clock.since_query / self._vae.spec.snippet_length
        phases = torch.from_numpy(np.minimum(phase, 1.0).astype(np.float32)).to(self._device)
        actions: FloatArray = self._vae.act(self._layers, current, phases).cpu().numpy()
        self._clock.episode += 1
        self._clock.since_query += 1
        self._seconds["policy"] += now(self._device) - begun
        return actions

    def cost(self) -> PolicyCost:
        """Return what was spent since the last `reset`."""
        queries = self._clock.queries * int(self._source.denoises)
        return PolicyCost(queries, dict(self._seconds), self._clock.queries.copy())

    def _due(self) -> npt.NDArray[np.bool_]:
        due: npt.NDArray[np.bool_] = self._clock.episode == 0
        if self._horizon:
            due |= self._clock.since_query >= self._horizon
        return due

    def _replan(self, state: Tensor, due: npt.NDArray[np.bool_]) -> None:
        begun = now(self._device)
        clock = self._clock
        query = ReplanRequest(self._plans, clock.queries, clock.episode, state, due, self._latents)
        latents = self._source.latents(query)
        sampled = now(self._device)
        weights = self._vae.decoder(latents)
        chosen = torch.from_numpy(due).to(self._device)
        self._weights[chosen] = weights[chosen]
        self._latents = torch.where(chosen.unsqueeze(1), latents, self._latents)
        clock.since_query[due] = 0
        clock.queries[due] += 1
        part = "denoiser" if self._source.denoises else "decoding"
        self._seconds[part] += sampled - begun
        self._seconds["decoding"] += now(self._device) - sampled
