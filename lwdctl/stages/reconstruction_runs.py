"""Runs policies from the starts of recorded snippets: decoded ones, and their controls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.configs import RolloutConfig
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import generator
from lwdctl.data.batches import SnippetBatches
from lwdctl.evaluation.snippet_starts import SnippetStarts, recorded_states
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.latent_source import ReplanRequest, SampledLatents
from lwdctl.policies.loading import load_diffusion
from lwdctl.policies.policy import BatchPolicy
from lwdctl.policies.recorded import GivenLatents, RecordedActions
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy
from lwdctl.stages.lwd_policy import MEAN, ORACLE, SAMPLED, Chain
from lwdctl.stages.traced_runs import Outcome, trace

RECORDED = "recorded actions"
MEAN_SNIPPETS = 1024
"""Training snippets whose encoded latents make the mean latent."""
_BATCH = 64


@dataclass
class SnippetRuns:
    """Runs policies from the same snippets.

    Attributes:
        chain: The trained models and their data.
        batches: Snippets of the split.
        training: Snippets of the training split.
        starts: The snippets drawn, and the episodes that start where they do.
        config: How to run.
        progress: Where to report.
    """

    chain: Chain
    batches: SnippetBatches
    training: SnippetBatches
    starts: SnippetStarts
    config: RolloutConfig
    progress: Progress

    @property
    def length(self) -> int:
        """Steps per snippet."""
        return self.chain.vae.spec.snippet_length

    def run(self, arm: str) -> Outcome:
        """Run one arm: `RECORDED`, or where a decoded policy's latent comes from."""
        if arm == RECORDED:
            return self._roll(self._recorded_actions(), arm)
        latents = {ORACLE: self.encoded, MEAN: self._mean, SAMPLED: self._sampled}[arm]
        return self.decoded(self.chain.vae, latents(), arm)

    def decoded(self, vae: PolicyVae, latents: Tensor, title: str) -> Outcome:
        """Decode latents (snippet, latent) and run one policy per snippet to its end."""
        return self._roll(
            ReplanningPolicy(GeneratedNetworks(vae), GivenLatents(latents), None), title
        )

    def encoded(self, vae: PolicyVae | None = None) -> Tensor:
        """Return the snippets' own latents (snippet, latent): posterior means."""
        starts = self.starts
        return _encode(vae or self.chain.vae, self.batches, starts.episodes, starts.offsets)

    def _mean(self) -> Tensor:
        episodes, offsets = self.training.every()
        drawn = generator("mean latent").permutation(len(episodes))[:MEAN_SNIPPETS]
        latents = _encode(self.chain.vae, self.training, episodes[drawn], offsets[drawn])
        return latents.mean(0, keepdim=True).expand(len(self.starts.plans), -1).contiguous()

    def _sampled(self) -> Tensor:
        """Draw latents from what was recorded at the snippets' starts."""
        chain, starts, spec = self.chain, self.starts, self.chain.store.spec
        model = load_diffusion(chain.inputs["diffusion"], chain.device)
        history = model.spec.history
        state = self.batches.history(starts.episodes, starts.offsets, history)
        source = SampledLatents(
            model, spec.env.tasks, spec.labels, self.config.sampler,
            self.config.num_inference_steps, history,
        )  # fmt: skip
        none = np.zeros(len(starts.plans), dtype=np.int64)
        return source.latents(ReplanRequest(starts.plans, none, starts.offsets, state))

    def _recorded_actions(self) -> BatchPolicy:
        batch = self.batches.cut(self.starts.episodes, self.starts.offsets)
        return RecordedActions(batch.actions.cpu().numpy())

    def _roll(self, policy: BatchPolicy, title: str) -> Outcome:
        self.progress.message(f"{title}:")
        return trace(
            policy,
            self.chain,
            self.starts.plans,
            self.length,
            self.config,
            self.progress,
        )

    @cached_property
    def recorded(self) -> npt.NDArray[np.float64]:
        """The recorded states (snippet, length + 1, obs)."""
        keys = self.chain.vae.spec.observation_keys
        starts = self.starts
        return recorded_states(self.chain.store, starts.episodes, starts.offsets, keys, self.length)

    @cached_property
    def scale(self) -> npt.NDArray[np.float64]:
        """Deviation of each observation component over the training split, 1 for constants."""
        scale: npt.NDArray[np.float64] = self.chain.vae.observation.scale.cpu().double().numpy()
        return scale


def _encode(
    vae: PolicyVae, batches: SnippetBatches, episodes: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
) -> Tensor:  # fmt: skip

    means = []
    with torch.no_grad():
        for start in range(0, len(episodes), _BATCH):
            part = slice(start, start + _BATCH)
            batch = batches.cut(episodes[part], offsets[part])
            means.append(vae.encode(batch)[0])
    return torch.cat(means)
