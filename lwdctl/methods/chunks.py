"""Acting with chunks of actions: Diffusion Policy and latent diffusion of chunks (LDP)."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import Horizon
from lwdctl.core.errors import ConfigError
from lwdctl.core.moments import Moments
from lwdctl.data.batches import SnippetBatches
from lwdctl.methods.method import (
    Acting,
    ActingCost,
    PolicyFlops,
    TrainedPolicy,
    denoiser_calls,
)
from lwdctl.models import DENOISERS
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.diffusion import check_sampling
from lwdctl.models.files import SavedPolicy, load_model
from lwdctl.models.flops import count_flops, count_parameters, denoiser_flops
from lwdctl.policies.latent_source import SampledLatents
from lwdctl.policies.replanning import ActionChunks, ReplanningPolicy

PASS_BATCH = 1024


class TrainedChunks(TrainedPolicy):
    """A model that samples chunks of actions; weights are read when they are first needed.

    Args:
        path: Directory of `model.json` and the weights.
        kind: Class of the model.
        device: Where networks run.
        name: What error messages call it.
    """

    has_chunks = True

    def __init__(
        self,
        path: Path,
        kind: type[ActionDiffusion] | type[LatentChunks],
        device: torch.device,
        name: str,
    ) -> None:
        saved, self._spec = SavedPolicy.load(path, ChunkSpec)
        self._path, self._kind, self.device, self._name = path, kind, device, name
        self.source = saved.source
        self.can_inpaint = kind is ActionDiffusion
        self._default_horizon = saved.executed or self._spec.horizon
        self.observation_keys = self._spec.observation_keys
        self.snippet_length: int = self._spec.horizon
        self.condition = tuple(part for part in self._spec.diffusion.condition if part != "state")

    @cached_property
    def model(self) -> ActionDiffusion | LatentChunks:
        """The model with its EMA weights."""
        built_in = self._spec.diffusion.denoiser.architecture in DENOISERS.rows
        model = load_model(lambda: self._kind(self._spec), self._path, checked_first=built_in)
        return model.to(self.device)

    def horizon(self, acting: Acting) -> Horizon:
        """Return the steps executed per re-plan; by default those it was trained to execute."""
        return self._default_horizon if acting.horizon is None else acting.horizon

    def check(self, acting: Acting) -> None:
        """Check that chunks reach the horizon, and that the model can be sampled so."""
        executed = self._executed(acting)
        spec, steps = self._spec.diffusion, acting.num_inference_steps
        check_sampling(spec, acting.sampler, steps, acting.guidance, self._name)
        if acting.temporal_ensemble is not None and executed == self.snippet_length:
            raise ConfigError(
                f"a temporal ensemble needs a horizon below the {executed} steps of its chunks:"
                " no two of them hold the same step",
                "add --horizon 1, or leave --temporal-ensemble out",
            )
        if not (self.can_inpaint and acting.inpainting):
            return
        if acting.warm_start:
            raise ConfigError(
                "inpainting and a warm start both continue the previous chunk",
                "leave --inpainting or --warm-start out",
            )
        if executed == self.snippet_length:
            raise ConfigError(
                f"inpainting needs a horizon below the {executed} steps of its chunks, else nothing"
                " is left of the previous one",
                f"add --horizon {max(1, executed // 2)}, or leave --inpainting out",
            )

    def _executed(self, acting: Acting) -> int:
        horizon, length = self.horizon(acting), self.snippet_length
        if horizon == "episode":
            if 0 < self.source.env.max_steps <= length:
                return length  # one chunk holds the whole episode
            reach, train = "the end of every episode", ""
        elif 1 <= horizon <= length:
            return horizon
        else:
            reach = f"the horizon of {horizon} steps"
            train = f"train it with --snippet-length {horizon}, or "
        raise ConfigError(
            f"{self._name} predicts {length} steps per re-plan, which does not reach {reach}",
            f"{train}run it with --horizon {length}",
        )

    def batch_policy(self, acting: Acting, num_envs: int) -> ReplanningPolicy:
        """Return the policy; one chunk per environment."""
        del num_envs
        self.check(acting)
        executed, kept = self._executed(acting), None
        if self.can_inpaint and acting.inpainting:
            kept = acting.inpainting * inpainting_weights(self._spec, executed).to(self.device)
        source = SampledLatents(
            self.model.diffusion,
            self.source.env.tasks,
            self.source.labels,
            acting.sampler,
            acting.num_inference_steps,
            self._spec.history,
            warm_start=acting.warm_start,
            guidance=acting.guidance,
            kept=kept,
        )
        plans = ActionChunks(self.model, executed, acting.temporal_ensemble)
        sizes = self.source.sizes(self.observation_keys)
        return ReplanningPolicy(plans, source, executed, sizes=sizes)

    def cost(self, acting: Acting) -> ActingCost:
        """Count the FLOPs of its networks; a step of a chunk costs nothing."""
        first, later = denoiser_calls(self._spec.diffusion, acting)
        if self.can_inpaint and acting.inpainting:
            later *= 2  # a gradient with respect to the input costs about as much as the call
        return ActingCost(chunk_flops(self.model), first, later)


def inpainting_weights(spec: ChunkSpec, executed: int) -> Tensor:
    """Return how much each component of a chunk keeps to the previous chunk, (latent,).

    Steps before the current one were executed, and have the weight 1. From the current step on,
    the weight falls to 0 at the end of the previous chunk, as the soft mask of real-time chunking
    does where nothing is delayed (Black, Galliker and Levine 2025, equation 5).

    Args:
        spec: Sizes of the model.
        executed: Steps executed of the previous chunk.
    """
    first, left = spec.history - 1, spec.horizon - executed
    weights = torch.zeros(spec.latent_size // spec.action_size)
    weights[:first] = 1
    falling = torch.arange(left, 0, -1) / (left + 1)
    weights[first : first + left] = falling * torch.expm1(falling) / math.expm1(1)
    return weights.repeat_interleave(spec.action_size)


def chunk_flops(model: ActionDiffusion | LatentChunks) -> PolicyFlops:
    """Count the FLOPs of a re-plan; chunks run open loop, so a control step costs nothing."""
    spec, device = model.spec, model.diffusion.latent.mean.device
    latent = torch.zeros(1, spec.latent_size, device=device)
    state = torch.zeros(1, spec.history * spec.observation_size, device=device)
    decoder = count_parameters(model.vae.decoder) if isinstance(model, LatentChunks) else 0
    return PolicyFlops(
        denoiser=denoiser_flops(model.diffusion),
        decoding=count_flops(lambda: model.actions(latent, state)),
        parameters=count_parameters(model.diffusion.denoiser) + decoder,
    )


def chunk_moments(
    spec: ChunkSpec, data: SnippetStore, batches: SnippetBatches, current: int
) -> Moments:
    """Return the moments of the real (not padded) actions of all snippets.

    Args:
        spec: What actions are relative to.
        data: The demonstrations.
        batches: Snippets of the training split.
        current: Step within the snippets at which the policy observes.
    """
    if spec.action_target != "relative":
        return data.moments(("action",), "train")
    episodes, offsets = batches.every()
    parts = []
    for start in range(0, len(episodes), PASS_BATCH):
        part = slice(start, start + PASS_BATCH)
        batch = batches.cut(episodes[part], offsets[part])
        moved = batch.actions - spec.reference(batch.observations[:, current : current + 1])
        parts.append(Moments.of_rows(moved[batch.mask > 0].cpu().numpy()))
    counts = np.array([part.count for part in parts])
    return Moments.merge(
        counts,
        mean=np.stack([part.mean for part in parts]),
        m2=np.stack([part.variance * part.count for part in parts]),
        minimum=np.stack([part.minimum for part in parts]),
        maximum=np.stack([part.maximum for part in parts]),
    )
