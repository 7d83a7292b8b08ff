"""What the trainings of all baselines share: sizes, batches, settings, and the loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import (
    NO_CONDITION,
    BaselineConfig,
    DiffusionConfig,
    Prediction,
    VaeConfig,
)
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.data.windows import WindowRule
from lwdctl.models.chunks import ChunkSpec
from lwdctl.models.vae import VaeSpec
from lwdctl.training.diffusion import (
    check_condition,
    diffusion_spec,
    options_of_others,
)
from lwdctl.training.loop import Trained, TrainingLoop, choose_device, with_initial_weights
from lwdctl.training.objectives import (
    SnippetObjective,
    describe_training,
    training_batches,
    warn_of_unused,
)
from lwdctl.training.update import LoopSettings, Objective
from lwdctl.training.vae import vae_spec

M = TypeVar("M", bound=nn.Module)

_SHARED = ("learning_rate", "warmup", "clip_norm", "ema_decay", "updates", "batch_size")
VAE_DEFAULTS = {name: getattr(VaeConfig, name) for name in _SHARED} | {"weight_decay": 0.0}
DENOISER_DEFAULTS = {name: getattr(DiffusionConfig, name) for name in (*_SHARED, "weight_decay")}
_REPORTED = (*_SHARED[:-2], "batch_size", "weight_decay", "betas", "ema_power")


CHUNK_HISTORY = 2


def check_unused(config: BaselineConfig, *options: str) -> None:
    """Check that no option is set that the method does not have.

    Raises:
        ConfigError: One is set.
    """
    for option in options:
        value = getattr(config, option)
        if value and value != getattr(BaselineConfig, option):
            name = option.replace("_", "-")
            raise ConfigError(f"{config.method} has no option --{name}", f"leave --{name} out")


@dataclass(frozen=True)
class Work:
    """A training of a baseline: its settings, its data, and where it leaves its files."""

    config: BaselineConfig
    data: SnippetStore
    directory: Path
    progress: Progress

    @cached_property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return choose_device(self.config.device)

    @cached_property
    def sizes(self) -> VaeSpec:
        """Observation keys, sizes and action target, read off the data as `train-vae` does."""
        config = self.config
        chosen = VaeConfig(
            snippet_length=config.snippet_length,
            observation_keys=config.observation_keys,
            action_target=config.action_target or ("absolute" if config.method == "dp" else "auto"),
        )
        return vae_spec(chosen, self.data)

    @cached_property
    def condition(self) -> tuple[str, ...]:
        """What the policy is conditioned on: the state, and by default the task of several."""
        data, config = self.data, self.config
        default = ("task",) if len(data.spec.env.tasks) > 1 else ()
        extras = () if config.condition == (NO_CONDITION,) else config.condition or default
        return check_condition(("state", *extras), data.episodes.task, data.episodes.label)

    @property
    def history(self) -> int:
        """Observations in the condition of a model that samples chunks."""
        return self.config.history or CHUNK_HISTORY

    def chunk_spec(
        self,
        denoiser: str,
        layout: str,
        prediction: Prediction,
        latent_size: int,
        dropout: float = 0.0,
    ) -> ChunkSpec:
        """Return the sizes of a model that samples chunks.

        Args:
            denoiser: Architecture of the denoiser.
            layout: Shape that it sees the latent in, as LENGTHxCHANNELS.
            prediction: What it predicts where the settings do not say.
            latent_size: Components of the latent.
            dropout: Dropout where the settings do not say.
        """
        config, sizes = self.config, self.sizes
        others = options_of_others(denoiser)
        warn_of_unused(config, f"the denoiser '{denoiser}'", others, self.progress)
        chosen = DiffusionConfig(
            denoiser=denoiser,
            latent_layout=layout,
            unet_size=config.unet_size,
            transformer_size=config.transformer_size,
            width=config.width,
            blocks=config.blocks,
            dropout=dropout if config.dropout is None else config.dropout,
            prediction=config.prediction or prediction,
            num_train_timesteps=config.num_train_timesteps,
            condition_dropout=config.condition_dropout,
        )
        return ChunkSpec(
            **sizes.shared(),
            history=self.history,
            horizon=sizes.snippet_length,
            diffusion=diffusion_spec(
                chosen,
                self.condition,
                latent_size,
                sizes.observation_size,
                self.history,
                self.data.spec,
            ),
        )

    def initialize(self, build: Callable[[], M]) -> M:
        """Build a model whose initial weights the training seed fixes."""
        return with_initial_weights(build, self.config.seed).to(self.device)

    def settings(self, defaults: Mapping[str, Any], fraction: float = 1.0) -> LoopSettings:
        """Return the loop's settings, those that are None taken from the method's defaults.

        Args:
            defaults: The method's own settings.
            fraction: Fraction of the time limit that this loop may use.
        """
        config = self.config
        given = {name: getattr(config, name, None) for name in defaults}
        chosen = {**defaults, **{name: value for name, value in given.items() if value is not None}}
        limit = config.time_limit and fraction * config.time_limit
        return LoopSettings(
            time_limit=limit,
            seed=config.seed,
            threads=config.threads,
            precision=config.precision,
            cuda_graphs=config.cuda_graphs,
            snapshots=config.snapshots,
            **chosen,
        )

    def objective(
        self,
        rule: WindowRule,
        settings: LoopSettings,
        *,
        every: bool = True,
        options: Mapping[str, Any] | None = None,
        **weights: float,
    ) -> SnippetObjective:
        """Return the loss on the training snippets, and log how often each is visited.

        Args:
            rule: Which snippets of an episode are used.
            settings: Training steps and batch size.
            every: Whether an epoch visits every snippet, instead of one per episode.
            options: Further arguments of the model's `terms` while training.
            **weights: Weights of terms of the loss, by name.
        """
        keys = self.sizes.observation_keys
        batches, held_out = training_batches(self.data, keys, rule, self.config, every=every)
        for line in describe_training(batches, self.config, settings, every=every):
            self.progress.message(line)
        return SnippetObjective(batches, held_out, settings.batch_size, weights, options or {})

    def train(
        self,
        model: nn.Module,
        objective: Objective,
        settings: LoopSettings,
        directory: Path,
        title: str,
    ) -> tuple[TrainingLoop[Any], dict[str, Any]]:
        """Run the loop to its end; return it and the numbers to publish."""
        loop = TrainingLoop(model, objective, settings, directory, self.progress)
        numbers: dict[str, Any] = dict(loop.run(title))
        values = asdict(settings)
        return loop, {**numbers, "training": {name: values[name] for name in _REPORTED}}

    def trained(
        self, spec: Mapping[str, Any], model: M, last: M, summary: Mapping[str, Any]
    ) -> Trained[M]:
        """Return what `train-baseline` publishes.

        Args:
            spec: What the model is rebuilt from.
            model: The model with its EMA weights.
            last: The model with its last weights.
            summary: Numbers to publish.
        """
        described = {"method": self.config.method, "source": self.data.spec.to_mapping(), **spec}
        return Trained(described, model.eval(), last, summary)

    def train_part(
        self, model: nn.Module, objective: Objective, settings: LoopSettings, name: str
    ) -> tuple[TrainingLoop[Any], dict[str, Any]]:
        """Train one of several models; its checkpoints and its log have a folder of their own."""
        checkpoints = self.directory / "checkpoints" / name
        checkpoints.mkdir(parents=True, exist_ok=True)
        title = f"train-baseline {self.config.method}: {name}"
        trained = self.train(model, objective, settings, checkpoints, title)
        shutil.copytree(
            checkpoints,
            self.directory / name,
            ignore=shutil.ignore_patterns("checkpoints"),
            dirs_exist_ok=True,
        )
        return trained
