"""Training of the policy VAE (paper section 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import VaeConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.windows import WindowRule
from lwdctl.models.dynamics import Dynamics
from lwdctl.models.files import CUSTOM, check_outputs
from lwdctl.models.flops import matmul_flops
from lwdctl.models.generated import DECODER_SIZES
from lwdctl.models.normalizer import SMALLEST_STD
from lwdctl.models.skeleton import check_batch_memory
from lwdctl.models.vae import REDUCTION, Focus, PolicyVae, VaeSpec
from lwdctl.training.loop import Trained, TrainingLoop, choose_device, with_initial_weights
from lwdctl.training.objectives import (
    SnippetObjective,
    describe_training,
    training_batches,
    warn_of_unused,
)
from lwdctl.training.update import LoopSettings

TrainedVae = Trained[PolicyVae]
VALIDATION_BATCH = 32


def train_vae(
    data: SnippetStore,
    config: VaeConfig,
    *,
    directory: Path,
    progress: Progress,
    encoder: nn.Module | None = None,
) -> TrainedVae:
    """Train the policy VAE.

    Args:
        data: Demonstrations.
        config: Settings.
        directory: Gets checkpoints, `metrics.jsonl`, `log.txt`, TensorBoard logs and snapshots. If
            it holds a checkpoint, training resumes from it.
        progress: Where to report.
        encoder: A module of your own in the place of the MLP encoder; see `PolicyVae`.

    Returns:
        The trained model; `save` writes it.

    Raises:
        ConfigError: The settings do not fit the data, or the encoder breaks its contract.
        LwdctlError: Training diverged.
    """
    device = choose_device(config.device)
    _warn_of_unused(config, progress)
    spec = vae_spec(config, data, architecture=CUSTOM if encoder else "mlp")
    # A generated network and its gradient for every snippet.
    check_batch_memory(config.batch_size, 2 * 4 * spec.policy_shape.weight_count)
    model = with_initial_weights(
        lambda: _with_dynamics(PolicyVae(spec, encoder), config), config.seed
    )
    model = model.to(device)
    constant = fit_normalizers(model, data)
    if constant:
        progress.message(
            f"note: {constant} of {spec.action_size} action components vary by less than"
            f" {SMALLEST_STD:g} in their units and are treated as constant, so the loss almost"
            " ignores them; store them in smaller units"
        )
    window = WindowRule(*spec.window)
    batches, held_out = training_batches(data, spec.observation_keys, window, config)
    # Up to eight batches of 32, for eight snippets of every episode.
    count = len(held_out.episodes) * 8 // VALIDATION_BATCH if held_out else 0
    objective = SnippetObjective(
        batches,
        held_out,
        config.batch_size,
        weights={"kl": config.beta_kl, "rollout": config.dynamics_weight},
        options={
            "loss_steps": config.loss_steps,
            "observation_noise": config.observation_noise,
            "padding": config.padding,
            "focus": None
            if config.focus == "none"
            else Focus(config.focus, config.focus_steps, config.focus_weight),
        },
        validation=(max(1, min(8, count)), VALIDATION_BATCH),
    )
    if encoder is not None:
        step_size = spec.observation_size + spec.action_size
        inputs = torch.zeros(2, spec.snippet_length, step_size), torch.ones(2, spec.snippet_length)
        check_outputs("encoder", model.encoder, inputs, [(2, spec.latent_size)] * 2, device)
    settings = LoopSettings.of(config)
    about, *warnings = describe_training(batches, config, settings)
    weights = spec.policy_shape.weight_count
    progress.message(f"{about}; steps kept in {batches.cache}; policy of {weights:,} weights")
    for line in warnings:
        progress.message(line)
    loop = TrainingLoop(model, objective, settings, directory, progress)
    summary: dict[str, Any] = {
        **loop.run("train-vae"),
        "decoder_flops": matmul_flops(model.decoder),
        "policy_flops": spec.policy_shape.flops,
        "snippet_length": spec.snippet_length,
        "padding_fraction": round(batches.padding_fraction(), 4),
        "policy_weights": spec.policy_shape.weight_count,
        "action_target": spec.action_target,
        "beta_kl": config.beta_kl,
        "reduction": REDUCTION,
    }
    return loop.trained(spec.to_mapping(), summary)


def vae_spec(
    config: VaeConfig, data: SnippetStore, architecture: Literal["mlp", "custom"] = "mlp"
) -> VaeSpec:
    """Return the model's sizes and its window rule, from the configuration and the data.

    Raises:
        ConfigError: The data has no such observation, or none that actions can be relative to; or
            rollouts are not shorter than snippets.
    """
    known = [item.name for item in data.spec.observations]
    for key in config.observation_keys:
        if key not in known:
            raise ConfigError(f"the data has no observation '{key}'", did_you_mean(key, known))
    keys, length = config.observation_keys or data.spec.network_keys, config.snippet_length
    if length == "episode":
        length = int(data.episodes.length.max())
    if config.dynamics_steps >= length:
        raise ConfigError(
            f"a rollout of {config.dynamics_steps} steps needs {config.dynamics_steps + 1}"
            f" observations, and a snippet has {length}",
            f"--dynamics-steps takes 0 to {length - 1} here",
        )
    return VaeSpec(
        snippet_length=length,
        observation_keys=keys,
        observation_size=sum(data.spec.sizes(keys)),
        action_size=data.spec.action.size,
        latent_size=config.latent_size,
        decoder_layers=DECODER_SIZES[config.decoder],
        policy_hidden=(config.policy_width,) * config.policy_layers,
        time_input=config.time_input,
        reference_start=_reference_start(config, data, keys),
        stride=config.stride,
        starts=config.starts,
        min_valid_fraction=config.min_valid_fraction,
        architecture=architecture,
    )


def _warn_of_unused(config: VaeConfig, progress: Progress) -> None:
    """Warn of options that others leave without effect."""
    for is_off, what, options in (
        (config.focus == "none", "a loss without --focus", ("focus_steps", "focus_weight")),
        (not config.dynamics_steps, "a loss without --dynamics-steps", ("dynamics_weight",)),
        (config.starts == "first", "--starts first", ("stride", "min_valid_fraction")),
    ):
        if is_off:
            warn_of_unused(config, what, options, progress)


def _with_dynamics(model: PolicyVae, config: VaeConfig) -> PolicyVae:
    """Add the model of the next observation where rollouts are asked for."""
    if config.dynamics_steps:
        model.dynamics = Dynamics(
            model.spec.observation_size,
            model.spec.action_size,
            config.dynamics_steps,
            growth=config.updates // 2,
            noise=config.observation_noise,
        )
    return model


def fit_normalizers(model: PolicyVae, data: SnippetStore) -> int:
    """Fit both normalizers to the training split.

    Returns:
        How many action components vary so little that they count as constant, though they vary.
    """
    spec = model.spec
    model.observation.standardize(data.moments(spec.observation_keys, "train"))
    key = "action_relative" if spec.action_target == "relative" else "action"
    moments = data.moments((key,), "train")
    model.action.standardize(moments)
    std = torch.as_tensor(moments.deviation, dtype=torch.float32)
    unscaled = (model.action.scale.cpu() == 1.0) & (std < SMALLEST_STD)
    return int((unscaled & (std > 1e-6 * model.action.mean.cpu().abs())).sum())


def _reference_start(config: VaeConfig, data: SnippetStore, keys: tuple[str, ...]) -> int | None:
    reference = data.spec.action.reference
    usable = reference in keys
    if config.action_target == "relative" and not usable:
        raise ConfigError(
            "this data names no observation that actions could be relative to",
            "use --action-target absolute",
        )
    if config.action_target == "absolute" or not usable:
        return None
    return sum(data.spec.sizes(keys[: keys.index(reference)]))
