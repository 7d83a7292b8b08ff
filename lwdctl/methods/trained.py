"""Opening trained policies: one way for every method, and a policy to act with at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import LINEAGE, BaselineConfig
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.records import FloatArray, ObservationSpec, SourceSpec
from lwdctl.methods import METHODS
from lwdctl.methods.lwd import NEAREST, RANDOM, SHUFFLED, GeneratedNetwork, TrainedLwd
from lwdctl.methods.method import Acting, ActingCost, Method, TrainedPolicy, check_used
from lwdctl.methods.untrained import PlugInPolicy
from lwdctl.models.files import saved_method
from lwdctl.policies.policy import (
    BatchPolicy,
    EpisodePlan,
    checked_observations,
    known_name,
)
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy
from lwdctl.training.loop import Trained, choose_device

Observation = Mapping[str, FloatArray] | FloatArray


def load_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        ConfigError: No method has that name.
    """
    found = METHODS.load(name)
    if isinstance(found, type) and issubclass(found, Method):
        found = found()
    return found if isinstance(found, Method) else PlugInPolicy(name, found)


def open_policy(
    name: str, artifacts: Mapping[str, Artifact], device: torch.device
) -> TrainedPolicy:
    """Open a policy of the method called `name`; see `Method.open`.

    Raises:
        ConfigError: No method has that name, or it opened something else than a `TrainedPolicy`.
    """
    return _checked(name, load_method(name).open(artifacts, device))


def open_directory(name: str, path: Path, device: torch.device) -> TrainedPolicy:
    """Open a policy of the method called `name` out of a directory that `save` wrote.

    Raises:
        ConfigError: As for `open_policy`.
    """
    return _checked(name, load_method(name).open_directory(path, device, str(path)))


def train_method(
    data: SnippetStore, config: BaselineConfig, directory: Path, progress: Progress
) -> Trained[Any]:
    """Train a policy of the method that `config` names, and note the name in its model file.

    Raises:
        ConfigError: The settings do not fit the method or the data.
        LwdctlError: Training diverged.
    """
    trained = load_method(config.method).train(data, config, directory, progress)
    return replace(trained, spec={**trained.spec, "method": config.method})


def _checked(name: str, opened: Any) -> TrainedPolicy:
    if not isinstance(opened, TrainedPolicy):
        raise ConfigError(
            f"the method '{name}' opened a {type(opened).__name__}, expected a TrainedPolicy",
            "for an object with reset and act, name a function from a SourceSpec to it instead of"
            " a Method",
        )
    return opened


def open_trained(artifact: Artifact, workspace: Workspace, device: str = "auto") -> TrainedPolicy:
    """Open the policy that a `diffusion` or `baseline` artifact holds.

    Args:
        artifact: The artifact.
        workspace: Where what it was derived from stands.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.

    Raises:
        ArtifactError: A part of its lineage is missing or damaged.
        ConfigError: It holds no policy.
    """
    place = choose_device(device)
    if artifact.type == "baseline":
        return open_policy(saved_method(artifact.path), {"baseline": artifact}, place)
    if artifact.type != "diffusion":
        raise ConfigError(
            f"{artifact.reference} holds no policy",
            "name a diffusion or baseline artifact; `lwdctl list` shows what there is",
        )
    ancestors = workspace.ancestors(artifact, LINEAGE[:-1])
    return open_policy("lwd", {**ancestors, "diffusion": artifact}, place)


class LoadedPolicy:
    """A trained policy that acts for one robot, or for a batch of environments.

    Use `lwdctl.load_policy`. `reset` begins an episode, `act` returns the action for what is
    observed now; the policy re-plans by itself.

    Args:
        trained: The models.
        acting: Horizon, sampler and so on.
        name: What to call it in tables.
    """

    def __init__(self, trained: TrainedPolicy, acting: Acting, name: str) -> None:
        trained.check(acting)
        check_used(trained, acting)
        self.trained, self.acting, self.name = trained, acting, name
        self._policy: BatchPolicy | None = None
        self._num_envs = 0

    def __repr__(self) -> str:
        """Say what it is, what it sees and how it is run."""
        horizon = self.trained.horizon(self.acting)
        every = "once per episode" if horizon == "episode" else f"every {horizon} steps"
        plans = "" if horizon is None else f", plans {every}"
        sizes = zip(self.observation_keys, self.source.sizes(self.observation_keys), strict=True)
        seen = ", ".join(f"{key} [{size}]" for key, size in sizes)
        return f"<{self.name}: {seen} -> action [{self.source.action.size}]{plans}>"

    @property
    def source(self) -> SourceSpec:
        """The data that it was trained on: environment, actions and their limits, labels."""
        return self.trained.source

    @property
    def observation_keys(self) -> tuple[str, ...]:
        """Observation keys that it sees, in order."""
        return self.trained.observation_keys

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that it was trained on."""
        return self.source.env.tasks

    def with_settings(self, **changes: Any) -> LoadedPolicy:
        """Return the same policy, run differently: `horizon`, `latent`, `sampler`, and so on.

        Raises:
            ConfigError: An unknown setting, or one that the models do not allow.
        """
        acting = from_mapping(Acting, {**vars(self.acting), **changes})
        return LoadedPolicy(self.trained, acting, self.name)

    def copy(self) -> LoadedPolicy:
        """Return a policy that shares the models and has episodes of its own."""
        return LoadedPolicy(self.trained, self.acting, self.name)

    def batch_policy(self, num_envs: int) -> BatchPolicy:
        """Return the policy as the rollout engine steps it."""
        return self.trained.batch_policy(self.acting, num_envs)

    def cost(self) -> ActingCost:
        """Return the FLOPs and parameters of its networks."""
        return self.trained.cost(self.acting)

    def reset(self, seed: int = 0, task: str = "", label: str = "") -> None:
        """Begin an episode.

        Args:
            seed: Fixes what is sampled.
            task: Task to do; may be left out where the policy knows only one, or is neither
                conditioned on it nor chooses recorded latents by it.
            label: Behavior to follow, for a policy that is conditioned on labels.

        Raises:
            ConfigError: An unknown task or label, or one that is needed and missing.
        """
        self.reset_batch([seed], [task], [label])

    def reset_batch(
        self, seeds: Sequence[int], tasks: Sequence[str] = (), labels: Sequence[str] = ()
    ) -> None:
        """Begin one episode per environment; see `reset`."""
        tasks, labels = tasks or [""] * len(seeds), labels or [""] * len(seeds)
        plans = [
            EpisodePlan(index, seed, self._known("task", task), self._known("label", label))
            for index, (seed, task, label) in enumerate(zip(seeds, tasks, labels, strict=True))
        ]
        if self._policy is None or self._num_envs != len(plans):
            self._policy, self._num_envs = self.batch_policy(len(plans)), len(plans)
        self._policy.reset(plans)

    def act(self, observation: Observation) -> FloatArray:
        """Return the action (action,), environment units, within the action's limits.

        Args:
            observation: Key to (obs,), environment units; or (obs,), where the policy observes one
                key.

        Raises:
            ConfigError: `reset` was not called.
            DataError: An observation is missing, holds no numbers, has another shape, or is not
                finite; or there is no mapping for several keys.
        """
        batch: Any = [observation]
        if isinstance(observation, Mapping):
            batch = {key: [values] for key, values in observation.items()}
        actions: FloatArray = self.act_batch(batch)[0]
        return actions

    def act_batch(self, observations: Observation) -> FloatArray:
        """Return actions (env, action), environment units, within the action's limits.

        Args:
            observations: Key to (env, obs), environment units; or (env, obs), where the policy
                observes one key.

        Raises:
            ConfigError: `reset` was not called.
            DataError: An observation is missing, holds no numbers, has another shape, or is not
                finite; or there is no mapping for several keys.
        """
        if self._policy is None:
            raise ConfigError("the policy has no episode", "call reset(seed=0) first")
        keys = self.observation_keys
        specs = [ObservationSpec(*item) for item in zip(keys, self.source.sizes(keys), strict=True)]
        seen = checked_observations(observations, specs, (self._num_envs,))
        actions = self._policy.act(seen, np.ones(self._num_envs, dtype=np.bool_))
        limits = self.source.action
        return np.clip(actions, limits.low, limits.high).astype(np.float32, copy=False)

    def network(self, env_index: int = 0) -> nn.Module:
        """Return the generated network that is followed now, in environment units.

        The module maps observations (..., obs) and the fraction of the snippet elapsed, in [0, 1],
        to actions (..., action); paper section 3.1.

        Raises:
            ConfigError: No network was generated yet, or the policy generates none.
        """
        if not isinstance(self.trained, TrainedLwd):
            raise ConfigError(f"{self.name} generates no network", "only LWD policies do")
        plans = self._policy.plans if isinstance(self._policy, ReplanningPolicy) else None
        if not isinstance(plans, GeneratedNetworks) or not bool(plans.weights[env_index].any()):
            raise ConfigError("no network was generated yet", "call reset(seed=0) and act first")
        return GeneratedNetwork(plans.vae, plans.weights[env_index])

    def _known(self, part: str, name: str) -> str:
        names = self.tasks if part == "task" else self.source.labels
        is_chosen = part == "task" and self.acting.latent in (NEAREST, RANDOM, SHUFFLED)
        return known_name(part, name, names, needed=is_chosen or part in self.trained.condition)
