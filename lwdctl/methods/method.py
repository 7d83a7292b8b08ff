"""The contract of a method: how its policies are trained, opened, run and counted.

A method is one module of this package and one row of `METHODS`, or an object of a subclass of
`Method` in another package, named by an entry point of the group `lwdctl.policies`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig, Horizon, LatentName, Sampler, StageSettings
from lwdctl.core.config import option
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.records import SourceSpec
from lwdctl.models.diffusion import DiffusionSpec, inference_timesteps, truncate_schedule
from lwdctl.policies.policy import BatchPolicy
from lwdctl.training.loop import Trained


@dataclass(frozen=True)
class Acting(StageSettings):
    """How a trained policy is run.

    Attributes:
        horizon: Steps executed per re-plan, `"episode"` for one plan all episode, or None for
            what the policy was trained for.
        latent: Where LWD's latents come from: `"sampled"`, or one of the controls `"oracle"`,
            `"nearest"`, `"random"`, `"shuffled"` and `"mean"`. Other methods ignore it.
        sampler: Denoising sampler.
        num_inference_steps: Denoising steps per re-plan.
        warm_start: Fraction of the denoising steps to run when re-planning, starting from the
            re-noised previous latent or chunk; 0 always starts from pure noise.
        temporal_ensemble: Chunks only: average what all chunks so far predict for a step, with
            weights exp(-m i) where i counts from the oldest chunk and m is this number; None
            executes the newest chunk.
        guidance: Factor of the difference that the condition makes; 1 as trained.
        inpainting: Diffusion Policy only: factor of the weights with which a new chunk keeps to
            what the previous one holds for the same steps; see `inpainting_weights`. 0 samples it
            anew.
        replan_beyond: LWD only: re-plan before the horizon when the observation differs by more
            than this from the recorded snippet with the most similar latent (root mean square over
            components, in standard deviations). None never does. Ignored where latents are not
            sampled.
        replan_after: Minimum number of steps between two re-plans, where `replan_beyond` is set.

    Raises:
        ConfigError: A value of a wrong type, an unknown name, or a number out of range.
    """

    horizon: Horizon | None = option(None, "Steps executed per re-plan", minimum=1)
    latent: LatentName = option("sampled", "Where LWD's latents come from")
    sampler: Sampler = option("ddim", "Denoising sampler")
    num_inference_steps: int = option(10, "Denoising steps per re-plan", minimum=1)
    warm_start: float = option(0.0, "Fraction of the denoising steps to run", minimum=0, maximum=1)
    temporal_ensemble: float | None = option(
        None, "Rate at which weights of chunks fall", minimum=0
    )
    guidance: float = option(1.0, "Factor of the difference that the condition makes", minimum=0)
    inpainting: float = option(
        0.0, "Factor of the weights that keep to the previous chunk", minimum=0, maximum=1
    )
    replan_beyond: float | None = option(None, "Distance beyond which to re-plan early", minimum=0)
    replan_after: int = option(8, "Minimum number of steps between two re-plans", minimum=1)

    @classmethod
    def of(cls, config: StageSettings, **changes: Any) -> Acting:
        """Return what a stage's configuration says of how to act, with some settings changed."""
        names = {item.name for item in fields(cls)} & vars(config).keys() - changes.keys()
        return cls(**{name: getattr(config, name) for name in names}, **changes)


@dataclass(frozen=True)
class PolicyFlops:
    """The cost of acting in one environment.

    Attributes:
        denoiser: FLOPs of one denoiser call.
        decoding: FLOPs of decoding one latent.
        step: FLOPs of one control step.
        control_parameters: Weights of the network that runs at every control step.
        parameters: Trained weights of all networks that are used; generated weights not included.
    """

    denoiser: int = 0
    decoding: int = 0
    step: int = 0
    control_parameters: int = 0
    parameters: int = 0


@dataclass(frozen=True)
class ActingCost:
    """What running a policy costs, before it is spread over the steps of episodes.

    Attributes:
        flops: FLOPs and parameters of its networks.
        first_calls: Denoiser calls of an episode's first re-plan, 0 without a denoiser.
        later_calls: Denoiser calls of every later re-plan.
        horizon: Steps between two re-plans of a policy that does not sample its latents;
            None where the re-plans of an episode are counted.
    """

    flops: PolicyFlops = field(default_factory=PolicyFlops)
    first_calls: int = 0
    later_calls: int = 0
    horizon: Horizon | None = None


class TrainedPolicy(ABC):
    """A trained policy in memory.

    Attributes:
        source: The data it was trained on: observations, actions, environment, labels.
        observation_keys: Observation keys that it sees.
        condition: What it is conditioned on beside observations: `"task"`, `"label"`.
        snippet_length: Steps that a plan was trained for, None for a policy without plans.
        device: Where its networks run.
        has_chunks: Whether its plans are chunks of actions.
        can_replan_early: Whether it supports `Acting.replan_beyond`.
        can_inpaint: Whether it supports `Acting.inpainting`.
        has_known_cost: Whether `cost` counts what it computes.
    """

    source: SourceSpec
    observation_keys: tuple[str, ...]
    condition: tuple[str, ...]
    snippet_length: int | None
    device: torch.device
    has_chunks: ClassVar[bool] = False
    can_replan_early: ClassVar[bool] = False
    can_inpaint: bool = False
    has_known_cost: bool = True

    @property
    def model(self) -> Any:
        """The network with its EMA weights, None for a policy that has no single one."""
        return None

    @abstractmethod
    def horizon(self, acting: Acting) -> Horizon | None:
        """Return the steps executed per re-plan, None for a policy without plans."""

    def samples(self, acting: Acting) -> bool:
        """Return whether it samples with a denoiser when it is run so."""
        return self.horizon(acting) is not None

    @abstractmethod
    def check(self, acting: Acting) -> None:
        """Check that it can be run so.

        Raises:
            ConfigError: It cannot; the message names the setting.
        """

    @abstractmethod
    def batch_policy(self, acting: Acting, num_envs: int) -> BatchPolicy:
        """Return the policy for a batch of environments.

        Raises:
            ConfigError: It cannot be run so.
        """

    @abstractmethod
    def cost(self, acting: Acting) -> ActingCost:
        """Count what running it costs."""


class Method:
    """Trains and opens policies of one kind; subclasses fill in what they have.

    Attributes:
        artifact_type: Type of the artifact that holds a trained policy; None for a policy that is
            not trained.
        replans: Whether its policies re-plan, so that an action horizon means something.
    """

    artifact_type: ClassVar[str | None] = None
    replans: ClassVar[bool] = False

    def train(
        self, data: SnippetStore, config: BaselineConfig, directory: Path, progress: Progress
    ) -> Trained[Any]:
        """Train a policy on a snippet store.

        Args:
            data: The demonstrations.
            config: Settings; None stands for the method's own default.
            directory: Where checkpoints and logs go; a training that was interrupted there goes
                on from its newest checkpoint.
            progress: Where to report.

        Raises:
            ConfigError: The settings do not fit the method or the data.
            LwdctlError: Training diverged.
        """
        del data, directory, progress
        raise ConfigError(
            f"'{config.method}' is not trained by lwdctl train-baseline",
            f"run it as it is: lwdctl eval --policy {config.method}",
        )

    def open_directory(self, path: Path, device: torch.device, name: str) -> TrainedPolicy:
        """Open what `train` returned and `Trained.save` wrote.

        Args:
            path: The directory.
            device: Where networks run.
            name: What error messages call it.

        Raises:
            ConfigError: The directory holds no such policy.
        """
        del path, device
        raise ConfigError(f"{name}: {type(self).__name__} has no open_directory, which opens it")

    def open(self, artifacts: Mapping[str, Artifact], device: torch.device) -> TrainedPolicy:
        """Open a trained policy out of artifacts.

        Args:
            artifacts: Artifact type to artifact: the one that holds the policy, and those that
                it was derived from as far as they are needed.
            device: Where its networks run.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        artifact = artifacts["baseline"]
        artifact.check()
        return self.open_directory(artifact.path, device, artifact.reference)


def check_used(trained: TrainedPolicy, acting: Acting) -> None:
    """Check that a policy has a use for all settings that change how it acts.

    An evaluation of several policies does without: others may have a use for them.

    Raises:
        ConfigError: One would have no effect.
    """
    uses: dict[str, Callable[[], bool]] = {
        "warm_start": lambda: trained.horizon(acting) is not None,
        "guidance": lambda: trained.horizon(acting) is not None,
        "temporal_ensemble": lambda: trained.has_chunks,
        "inpainting": lambda: trained.can_inpaint,
        "replan_beyond": lambda: trained.can_replan_early,
        "replan_after": lambda: trained.can_replan_early and acting.replan_beyond is not None,
    }
    for name, is_used in uses.items():
        if getattr(acting, name) != getattr(Acting, name) and not is_used():
            raise ConfigError(
                f"'{name}' has no effect on how this policy is run",
                "leave it out; lwdctl.Acting says what has which settings",
            )


def denoiser_calls(spec: DiffusionSpec, acting: Acting) -> tuple[int, int]:
    """Return the denoiser calls of an episode's first re-plan, and of each later one."""
    steps = inference_timesteps(spec, acting.num_inference_steps)
    later = truncate_schedule(steps, acting.warm_start) if acting.warm_start else steps
    each = 1 if acting.guidance == 1 else 2
    return each * len(steps), each * len(later)
