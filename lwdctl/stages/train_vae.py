"""`train-vae`: fit the policy VAE to a snippet store (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages.stage import Stage, StageContext
from lwdctl.stages.training_settings import TrainingConfig, loop_settings

if TYPE_CHECKING:
    import torch

    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.data.batches import SnippetBatches
    from lwdctl.models.vae import VaeSpec
    from lwdctl.training.objectives import VaeObjective

DECODERS = ("xs", "s", "m", "l")


@dataclass(frozen=True)
class TrainVaeConfig(TrainingConfig):
    """How to train the policy VAE."""

    snippet_length: int = option(
        64,
        "Steps per snippet; 'episode' takes the longest episode. Also the horizon that eval uses",
        minimum=0,
        words={"episode": 0},
    )
    stride: int = option(1, "Steps between neighboring snippet starts", minimum=1)
    starts: str = option(
        "anywhere",
        "Where snippets start: anywhere in the episode, or only at its first step",
        choices=("anywhere", "first"),
    )
    min_valid_fraction: float = option(
        0.25, "Smallest share of real steps in a snippet; the rest is padding", minimum=0, maximum=1
    )
    decoder: str = option("s", "Hypernetwork size", choices=DECODERS)
    latent_size: int = option(256, "Components of the latent", minimum=1)
    policy_width: int = option(256, "Width of the generated policy's layers", minimum=1)
    policy_layers: int = option(2, "Hidden layers of the generated policy", minimum=1)
    time_input: bool = option(True, "Show the generated policy how far through its snippet it is")
    action_target: str = option(
        "auto",
        "What the policy outputs: targets as they are, or relative to the robot's position",
        choices=("auto", "absolute", "relative"),
    )
    observation_keys: tuple[str, ...] = option(
        (), "Observation keys networks see (default: those the data marks)"
    )
    beta_kl: float = option(1e-8, "Weight of the KL term", minimum=0)
    loss_steps: int = option(
        32, "Time steps reconstructed per snippet and update; 0 takes all", minimum=0
    )
    observation_noise: float = option(
        0.0,
        "Largest deviation of noise on the policy's normalized observations (with relative"
        " targets: on the robot's own position), so that it learns to return to its path",
        minimum=0,
    )
    batch_size: int = option(64, "Snippets per update", minimum=1)
    snapshots: int = option(
        0,
        "Times to keep the averaged weights, evenly spaced over training, for `analyze"
        " reconstruction`; each takes the disk space of the model's ema.safetensors",
        minimum=0,
    )
    cache: str = option(
        "auto", "Where steps are kept while training", choices=("auto", "device", "ram", "none")
    )


def run(config: TrainVaeConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Train and publish a `vae` artifact.

    Raises:
        ConfigError: The data cannot be used with these settings.
        LwdctlError: Training diverged.
    """
    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.models.files import save_model
    from lwdctl.models.flops import policy_flops
    from lwdctl.models.normalizer import SMALLEST_STD
    from lwdctl.models.vae import PolicyVae
    from lwdctl.training.device import choose_device
    from lwdctl.training.loop import TrainingLoop
    from lwdctl.training.vae import fit_normalizers

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


def vae_spec(config: TrainVaeConfig, store: SnippetStore) -> VaeSpec:
    """Work out the model's sizes from the configuration and the data."""
    from lwdctl.models.hypernetwork import DECODER_SIZES
    from lwdctl.models.vae import VaeSpec

    keys = _keys(config, store)
    target, start = _action_target(config, store, keys)
    return VaeSpec(
        snippet_length=config.snippet_length or int(store.episodes.length.max()),
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


def _keys(config: TrainVaeConfig, store: SnippetStore) -> tuple[str, ...]:
    known = [item.name for item in store.spec.observations]
    for key in config.observation_keys:
        if key not in known:
            raise ConfigError(f"the data has no observation '{key}'", did_you_mean(key, known))
    return config.observation_keys or store.spec.network_keys


def _action_target(
    config: TrainVaeConfig, store: SnippetStore, keys: tuple[str, ...]
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
    config: TrainVaeConfig, store: SnippetStore, spec: VaeSpec, device: torch.device
) -> VaeObjective:
    from lwdctl.data.batches import SnippetBatches
    from lwdctl.data.windows import WindowRule
    from lwdctl.training.objectives import VaeObjective

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
    import torch

    from lwdctl.core.seeding import derive_seed

    torch.manual_seed(derive_seed("initial-weights", seed))
    return model(spec)


def _announcement(config: TrainVaeConfig, spec: VaeSpec, objective: VaeObjective) -> str:
    from lwdctl.training.vae import epochs

    count = len(objective.batches.episodes)
    passed = epochs(config.updates, config.batch_size, count)
    return (
        f"{count} training episodes; snippets of {spec.snippet_length} steps,"
        f" {objective.batches.padding_fraction():.0%} padding; {config.updates} updates ="
        f" {passed:.0f} epochs; steps kept in {objective.batches.cache};"
        f" policy of {spec.policy_shape.weight_count:,} weights"
    )


def _sizes(spec: VaeSpec, batches: SnippetBatches, config: TrainVaeConfig) -> dict[str, Any]:
    from lwdctl.models.encoder import REDUCTION

    return {
        "snippet_length": spec.snippet_length,
        "padding_fraction": round(batches.padding_fraction(), 4),
        "policy_weights": spec.policy_shape.weight_count,
        "action_target": spec.action_target,
        "beta_kl": config.beta_kl,
        "reduction": REDUCTION,
    }


STAGE = Stage("train-vae", "vae", TrainVaeConfig, ("snippets",), run, resumable=True)
