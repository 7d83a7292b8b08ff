"""Latent Weight Diffusion: sample a latent, decode it to a network, run the network closed loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import read_description
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import Horizon
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.records import FloatArray, SourceSpec
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.methods.method import (
    Acting,
    ActingCost,
    Method,
    PolicyFlops,
    TrainedPolicy,
    denoiser_calls,
)
from lwdctl.models import generated
from lwdctl.models.diffusion import (
    DiffusionSpec,
    LatentDiffusion,
    check_sampling,
    load_diffusion,
)
from lwdctl.models.flops import count_flops, count_parameters, denoiser_flops
from lwdctl.models.vae import PolicyVae, VaeSpec, load_vae
from lwdctl.policies.latent_source import (
    LatentSource,
    MeanLatents,
    NearestLatents,
    OracleLatents,
    RecordedLatents,
    SampledLatents,
)
from lwdctl.policies.replanning import (
    GeneratedNetworks,
    IntArray,
    RecordedPaths,
    ReplanningPolicy,
)

SAMPLED: Final = "sampled"
ORACLE: Final = "oracle"
NEAREST: Final = "nearest"
RANDOM: Final = "random"
SHUFFLED: Final = "shuffled"
MEAN: Final = "mean"


class TrainedLwd(TrainedPolicy):
    """A policy VAE and a latent diffusion model; weights are read when they are first needed.

    Args:
        source: The data that the models were trained on.
        device: Where networks run.
        vae: The VAE, in memory or as an artifact.
        diffusion: The diffusion model likewise; None where no latents are sampled.
        artifacts: What other latents need: `snippets` (oracle), `latents` (the rest).
    """

    can_replan_early = True

    def __init__(
        self,
        source: SourceSpec,
        device: torch.device,
        vae: PolicyVae | Artifact,
        diffusion: LatentDiffusion | Artifact | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
    ) -> None:
        self.source, self.device = source, device
        self._vae, self._diffusion, self._artifacts = vae, diffusion, artifacts or {}
        spec = VaeSpec.load(vae.path) if isinstance(vae, Artifact) else vae.spec
        spec.check_source(source, "the VAE")
        self.observation_keys = spec.observation_keys
        self.snippet_length: int = spec.snippet_length
        self._spec = (
            DiffusionSpec.load(diffusion.path)
            if isinstance(diffusion, Artifact)
            else None
            if diffusion is None
            else diffusion.spec
        )
        if self._spec is not None:
            _check_pair(spec, self._spec)
        parts = self._spec.condition if self._spec else ()
        self.condition = tuple(part for part in parts if part != "state")

    @cached_property
    def vae(self) -> PolicyVae:
        """The policy VAE with its EMA weights."""
        vae = self._vae
        return load_vae(vae, self.device) if isinstance(vae, Artifact) else vae.eval()

    @cached_property
    def diffusion(self) -> LatentDiffusion:
        """The latent diffusion model with its EMA weights."""
        model = self._diffusion
        if model is None:
            raise ConfigError("sampling latents needs a diffusion model", "lwdctl train-diffusion")
        return load_diffusion(model, self.device) if isinstance(model, Artifact) else model.eval()

    def horizon(self, acting: Acting) -> Horizon:
        """Return the steps executed per re-plan; as many as a snippet has where none is named."""
        return self.snippet_length if acting.horizon is None else acting.horizon

    def samples(self, acting: Acting) -> bool:
        """Return whether the diffusion model is run; the controls take their latents elsewhere."""
        return acting.latent == SAMPLED

    def check(self, acting: Acting) -> None:
        """Check that the latents' source is there, and that the model can be sampled so."""
        if not self.samples(acting):
            needed = "snippets" if acting.latent == ORACLE else "latents"
            self._check_has(needed, f"the latent '{acting.latent}'", "latent")
            return
        if self._spec is not None:
            check_sampling(self._spec, acting.sampler, acting.num_inference_steps, acting.guidance)
        if self._replans_early(acting):
            for needed in ("latents", "snippets"):
                self._check_has(needed, "replan_beyond", "replan_beyond")

    def _check_has(self, needed: str, what: str, setting: str) -> None:
        if needed not in self._artifacts:
            raise ConfigError(
                f"{what} needs the {needed} of a workspace",
                f"open the policy by its reference in a workspace, or leave out {setting}",
            )

    def batch_policy(self, acting: Acting, num_envs: int) -> ReplanningPolicy:
        """Return the policy; one generated network per environment."""
        del num_envs
        self.check(acting)
        horizon = self.horizon(acting)
        return ReplanningPolicy(
            GeneratedNetworks(self.vae),
            self.latents(acting),
            None if horizon == "episode" else horizon,
            self._paths(acting) if self._replans_early(acting) else None,
            self.source.sizes(self.observation_keys),
        )

    def _replans_early(self, acting: Acting) -> bool:
        return acting.replan_beyond is not None and self.samples(acting)

    def _paths(self, acting: Acting) -> RecordedPaths:
        """Return what recorded snippets observed, to re-plan where a motion has left it."""
        assert acting.replan_beyond is not None
        store = self._latent_store()
        batches = self.demonstrations(SnippetStore.open(self._artifacts["snippets"].path))
        episode, start = store.episode.astype(np.int64), store.start

        def observed(rows: IntArray) -> FloatArray:
            return batches.cut(episode[rows], start[rows]).observations.cpu().numpy()

        latents, std = (
            torch.from_numpy(values.astype(np.float32)).to(self.device)
            for values in (store.mean, store.statistics()[1])
        )
        scale = self.vae.observation.scale.cpu().numpy()
        return RecordedPaths(
            latents / std, std, observed, scale, acting.replan_beyond, acting.replan_after
        )

    def _latent_store(self) -> LatentStore:
        return LatentStore.open(self._artifacts["latents"].path)

    def latents(self, acting: Acting) -> LatentSource:
        """Return where the policy's latents come from."""
        tasks, labels = self.source.env.tasks, self.source.labels
        if acting.latent == SAMPLED:
            return SampledLatents(
                self.diffusion,
                tasks,
                labels,
                acting.sampler,
                acting.num_inference_steps,
                self.diffusion.spec.history,
                warm_start=acting.warm_start,
                guidance=acting.guidance,
            )
        if acting.latent == ORACLE:
            data = SnippetStore.open(self._artifacts["snippets"].path)
            return OracleLatents(self.vae, self.demonstrations(data), data.episodes.length)
        store = self._latent_store()
        recorded = store.mean, store.task, store.label, tasks, labels
        if acting.latent == NEAREST:
            scale = self.vae.observation.scale.cpu().numpy()
            return NearestLatents(*recorded, own=True, state=store.state, std=scale)
        if acting.latent in (SHUFFLED, RANDOM):
            return RecordedLatents(*recorded, own=acting.latent == RANDOM)
        mean, _ = store.statistics()
        return MeanLatents(mean.astype("float32"))

    def demonstrations(self, data: SnippetStore, split: str = "all") -> SnippetBatches:
        """Return the snippets of a split, cut as the VAE was trained on them."""
        rule = WindowRule(*self.vae.spec.window)
        return SnippetBatches(
            data, self.observation_keys, rule, split=split, seed=0, device=self.device
        )

    def cost(self, acting: Acting) -> ActingCost:
        """Count the FLOPs; see `lwd_flops`."""
        if acting.latent != SAMPLED:
            flops = lwd_flops(self.vae, None)
            if acting.latent == NEAREST:
                # The search subtracts, divides, squares, and adds. That of one task among several
                # looks at fewer snippets, so that this is an upper bound.
                store = self._latent_store()
                search = 4 * store.count * store.state_size
                flops = replace(flops, decoding=flops.decoding + search)
            return ActingCost(flops, horizon=self.horizon(acting))
        flops = lwd_flops(self.vae, self.diffusion)
        if self._replans_early(acting):  # subtract, square, and add; by step, divide as well
            store = self._latent_store()
            search, watch = 3 * store.count * store.latent_size, 4 * self.vae.spec.observation_size
            flops = replace(flops, decoding=flops.decoding + search, step=flops.step + watch)
        return ActingCost(flops, *denoiser_calls(self.diffusion.spec, acting))


def _check_pair(vae: VaeSpec, diffusion: DiffusionSpec) -> None:
    """Check that a diffusion model samples the latents of a VAE.

    Raises:
        ArtifactError: It samples others, or sees other observations.
    """
    sizes = {vae.latent_size: diffusion.denoiser.latent_size}
    if diffusion.state_size:
        sizes[vae.observation_size] = diffusion.state_size // diffusion.history
    for own, other in sizes.items():
        if own != other:
            raise ArtifactError(
                f"the diffusion model was trained for another VAE: it has latents or observations"
                f" of {other} components, the VAE of {own}",
                "name models of one lineage; `lwdctl list` shows them",
            )


def lwd_flops(vae: PolicyVae, diffusion: LatentDiffusion | None) -> PolicyFlops:
    """Count the FLOPs of both networks; without a denoiser where latents are not sampled."""
    device = vae.observation.mean.device
    latent = torch.zeros(1, vae.spec.latent_size, device=device)
    seen = torch.zeros(1, vae.spec.observation_size, device=device)
    with torch.no_grad():
        layers = generated.unpack(vae.decoder(latent), vae.spec.policy_shape)
    denoising = count_parameters(diffusion.denoiser) if diffusion else 0
    return PolicyFlops(
        denoiser=denoiser_flops(diffusion) if diffusion else 0,
        decoding=count_flops(lambda: vae.decoder(latent)),
        step=count_flops(lambda: vae.act(layers, seen, torch.zeros(1, device=device))),
        control_parameters=vae.spec.policy_shape.weight_count,
        parameters=count_parameters(vae.decoder) + denoising,
    )


class GeneratedNetwork(nn.Module):
    """One generated policy as an ordinary module, in environment units.

    Args:
        vae: The VAE whose decoder generated it; its normalizers are copied.
        weights: (weight,), as the decoder gives them.
    """

    def __init__(self, vae: PolicyVae, weights: Tensor) -> None:
        super().__init__()
        self.spec = vae.spec
        self.observation, self.action = copy.deepcopy(vae.observation), copy.deepcopy(vae.action)
        layers: list[nn.Module] = []
        for matrix, bias in generated.unpack(weights.detach().clone()[None], vae.spec.policy_shape):
            linear = nn.Linear(*matrix.shape[1:])
            linear.weight = nn.Parameter(matrix[0].T.contiguous())
            linear.bias = nn.Parameter(bias[0, 0].contiguous())
            layers += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, observations: Tensor, elapsed: Tensor | float = 0.0) -> Tensor:
        """Map observations to actions, not clipped.

        Args:
            observations: (..., obs), environment units.
            elapsed: (...) or a number: fraction of the snippet elapsed, in [0, 1]; ignored by
                policies without a time input.

        Returns:
            (..., action), environment units.
        """
        inputs = self.observation.normalize(observations)
        if self.spec.time_input:
            time = torch.as_tensor(elapsed, dtype=inputs.dtype, device=inputs.device)
            time = (2.0 * time - 1.0).expand(inputs.shape[:-1]).unsqueeze(-1)
            inputs = torch.cat([inputs, time], -1)
        actions: Tensor = self.action.restore(self.layers(inputs))
        return actions + self.spec.reference(observations)


class LatentWeightDiffusion(Method):
    """Trained by `train-vae`, `encode` and `train-diffusion`."""

    artifact_type = "diffusion"
    replans = True

    def open(self, artifacts: Mapping[str, Artifact], device: torch.device) -> TrainedLwd:
        """Open the models of one lineage."""
        source = read_description(artifacts["snippets"].path)
        return TrainedLwd(source, device, artifacts["vae"], artifacts.get("diffusion"), artifacts)


METHOD = LatentWeightDiffusion()
