"""`train-vae`: fit the policy VAE to a snippet store (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import VaeConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.seeding import derive_seed
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models.encoder import REDUCTION
from lwdctl.models.files import save_model
from lwdctl.models.flops import policy_flops
from lwdctl.models.hypernetwork import DECODER_SIZES
from lwdctl.models.normalizer import SMALLEST_STD
from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.stages.stage import StageContext
from lwdctl.stages.training_settings import loop_settings
from lwdctl.training.device import choose_device
from lwdctl.training.loop import TrainingLoop
from lwdctl.training.objectives import VaeObjective
from lwdctl.training.vae import epochs, fit_normalizers


def run(config: VaeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `vae` artifact.

    Raises:
        ConfigError: The data cannot be used with these settings.
        LwdctlError: Training diverged.
    """
    source = inputs["snippets"]
    store = SnippetStore.open(source.path)
    device = choose_device(config.device)
    spec = vae_spec(config, store)
    with context.workspace.begin(
        "vae",
        context.name or source.name,
        config=to_mapping(config),
        inputs=[source],
        resume=context.resume,
    ) as draft:
        model = _fresh(PolicyVae, spec, config.seed).to(device)
        unscaled = fit_normalizers(model, store)
        if unscaled:
            context.progress.message(
                f"note: {unscaled} of {spec.action_size} action components vary by less than"
                f" {SMALLEST_STD:g} in their units and count as constant: the loss hardly"
                " sees them; store them in smaller units"
            )
        objective = _objective(config, store, spec, device)
        context.progress.message(_announcement(config, spec, objective))
        settings = replace(loop_settings(config, config.batch_size), snapshots=config.snapshots)
        loop = TrainingLoop(model, objective, settings, draft.path, context.progress)
        numbers = loop.run("train-vae")
        save_model(draft.path, spec.to_mapping(), model, loop.ema_model)
        summary = {**numbers, **policy_flops(model), **_sizes(spec, objective.batches, config)}
        return draft.publish(summary, seed=config.seed, device=str(device))


def vae_spec(config: VaeConfig, store: SnippetStore) -> VaeSpec:
    """Work out the model's sizes from the configuration and the data."""
    keys = _keys(config, store)
    target, start = _action_target(config, store, keys)
    return VaeSpec(
        snippet_length=(
            int(store.episodes.length.max())
            if config.snippet_length == "episode"
            else config.snippet_length
        ),
        observation_keys=keys,
        observation_size=sum(store.spec.sizes(keys)),
        action_size=store.spec.action.size,
        latent_size=config.latent_size,
        decoder_layers=DECODER_SIZES[config.decoder],
        policy_hidden=(config.policy_width,) * config.policy_layers,
        time_input=config.time_input,
        action_target=target,
        reference_start=start,
        stride=config.stride,
        starts=config.starts,
        min_valid_fraction=config.min_valid_fraction,
    )


def _keys(config: VaeConfig, store: SnippetStore) -> tuple[str, ...]:
    known = [item.name for item in store.spec.observations]
    for key in config.observation_keys:
        if key not in known:
            raise ConfigError(f"the data has no observation '{key}'", did_you_mean(key, known))
    return config.observation_keys or store.spec.network_keys


def _action_target(
    config: VaeConfig, store: SnippetStore, keys: tuple[str, ...]
) -> tuple[str, int]:
    reference = store.spec.action.reference
    usable = reference in keys
    if config.action_target == "relative" and not usable:
        raise ConfigError(
            "this data names no observation that actions could be relative to",
            "use --action-target absolute",
        )
    if config.action_target == "absolute" or not usable:
        return "absolute", -1
    return "relative", sum(store.spec.sizes(keys[: keys.index(reference)]))


def _objective(
    config: VaeConfig, store: SnippetStore, spec: VaeSpec, device: torch.device
) -> VaeObjective:
    batches = SnippetBatches(
        store,
        spec.observation_keys,
        WindowRule(*spec.window),
        split="train",
        seed=config.seed,
        cache=config.cache,
        device=device,
    )
    some_held_out = bool((store.episodes.split == 1).any())
    return VaeObjective(
        batches=batches,
        held_out=batches.of_split("validation") if some_held_out else None,
        batch_size=config.batch_size,
        table=store.episodes,
        weights={"kl": config.beta_kl},
        loss_steps=config.loss_steps or None,
        observation_noise=config.observation_noise,
    )


def _fresh(model: Any, spec: Any, seed: int) -> Any:
    torch.manual_seed(derive_seed("initial-weights", seed))
    return model(spec)


def _announcement(config: VaeConfig, spec: VaeSpec, objective: VaeObjective) -> str:
    count = len(objective.batches.episodes)
    passed = epochs(config.updates, config.batch_size, count)
    return (
        f"{count} training episodes; snippets of {spec.snippet_length} steps,"
        f" {objective.batches.padding_fraction():.0%} padding; {config.updates} updates ="
        f" {passed:.0f} epochs; steps kept in {objective.batches.cache};"
        f" policy of {spec.policy_shape.weight_count:,} weights"
    )


def _sizes(spec: VaeSpec, batches: SnippetBatches, config: VaeConfig) -> dict[str, Any]:
    return {
        "snippet_length": spec.snippet_length,
        "padding_fraction": round(batches.padding_fraction(), 4),
        "policy_weights": spec.policy_shape.weight_count,
        "action_target": spec.action_target,
        "beta_kl": config.beta_kl,
        "reduction": REDUCTION,
    }
