"""Behavior cloning with an MLP: one network for all of the data, one action per step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig
from lwdctl.core.progress import Progress
from lwdctl.core.records import FloatArray
from lwdctl.data.windows import WindowRule
from lwdctl.methods import training
from lwdctl.methods.method import Acting, ActingCost, Method, PolicyFlops, TrainedPolicy
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.files import SavedPolicy, load_model
from lwdctl.models.flops import count_flops, count_parameters, matmul_flops
from lwdctl.policies.device import download, upload
from lwdctl.policies.policy import EpisodePlan, PolicyCost, condition_indices
from lwdctl.policies.replanning import Observed
from lwdctl.training.loop import Trained
from lwdctl.training.objectives import warn_of_unused

DEFAULTS = {**training.DENOISER_DEFAULTS, "updates": 20_000}


class MlpPolicy:
    """Runs a cloned policy in all environments as one batch.

    Args:
        model: The network.
        tasks: Task names in the order of their indices.
        labels: Behavior labels in the order of their indices.
        sizes: Components of each observation key, to check what environments show; () checks none.
    """

    def __init__(
        self,
        model: ClonedPolicy,
        tasks: tuple[str, ...],
        labels: tuple[str, ...],
        sizes: tuple[int, ...] = (),
    ) -> None:
        self._model = model
        self._parts = ("task", tasks, model.spec.tasks), ("label", labels, model.spec.labels)
        self._device = model.observation.mean.device
        self._observed = Observed(model.spec.observation_keys, model.spec.history, sizes)
        self.reset(())

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves it idle."""
        self._steps = np.zeros(len(episodes), dtype=np.int64)
        self._observed.clear()
        self._task, self._label = (
            torch.tensor(
                condition_indices(part, episodes, names) if used else [0] * len(episodes),
                dtype=torch.long,
                device=self._device,
            )
            for part, names, used in self._parts
        )
        self._seconds = 0.0

    @torch.inference_mode()
    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return actions (env, action) in environment units.

        The network runs on every row, because another batch size might change the last digits.
        """
        begun = time.perf_counter()
        self._observed.add(observations, active)
        state = upload(self._observed.state, self._device)
        steps = upload(self._steps.copy(), self._device)
        actions = download(self._model.act(state, steps, self._task, self._label))
        self._steps[active] += 1
        self._seconds += time.perf_counter() - begun
        return actions

    def acts_in_parts(self, running: npt.NDArray[np.bool_]) -> bool:
        """Return True: nothing connects one environment with another."""
        del running
        return True

    def cost(self) -> PolicyCost:
        """Return no re-plans and the time spent since the last `reset`."""
        return PolicyCost(np.zeros(len(self._steps), dtype=np.int64), {"policy": self._seconds})


class TrainedMlp(TrainedPolicy):
    """A cloned MLP; its weights are read when they are first needed.

    Args:
        path: Directory of `model.json` and the weights.
        device: Where the network runs.
    """

    snippet_length: None = None

    def __init__(self, path: Path, device: torch.device) -> None:
        saved, self._spec = SavedPolicy.load(path, ClonedSpec)
        self._path, self.device, self.source = path, device, saved.source
        self.observation_keys = self._spec.observation_keys
        sizes = {"task": self._spec.tasks, "label": self._spec.labels}
        self.condition = tuple(part for part, size in sizes.items() if size)

    @cached_property
    def model(self) -> ClonedPolicy:
        """The network with its EMA weights."""
        return load_model(lambda: ClonedPolicy(self._spec), self._path).to(self.device)

    def horizon(self, acting: Acting) -> None:
        """Return None: the network acts on every observation."""

    def check(self, acting: Acting) -> None:
        """Accept every setting: none of them concerns an MLP."""

    def batch_policy(self, acting: Acting, num_envs: int) -> MlpPolicy:
        """Return the policy."""
        del acting, num_envs
        sizes = self.source.sizes(self.observation_keys)
        return MlpPolicy(self.model, self.source.env.tasks, self.source.labels, sizes)

    def cost(self, acting: Acting) -> ActingCost:
        """Count the FLOPs of one control step."""
        del acting
        return ActingCost(mlp_flops(self.model))


def mlp_flops(model: ClonedPolicy) -> PolicyFlops:
    """Count the FLOPs of one control step."""
    inputs = torch.zeros(1, model.spec.shape.inputs, device=model.observation.mean.device)
    weights, step = count_parameters(model.network), count_flops(lambda: model.network(inputs))
    return PolicyFlops(step=step, control_parameters=weights, parameters=weights)


_UNUSED = (
    "denoiser", "unet_size", "transformer_size", "latent_layout", "width", "blocks", "prediction",
    "num_train_timesteps", "latent_size", "beta_kl",
)  # fmt: skip


class BehaviorCloning(Method):
    """The policy of the generated networks' architecture, trained on all demonstrations."""

    artifact_type = "baseline"

    def train(
        self, data: SnippetStore, config: BaselineConfig, directory: Path, progress: Progress
    ) -> Trained[ClonedPolicy]:
        """Train on single steps with their history, each visited once per epoch."""
        training.check_unused(
            config, "executed", "dropout", "vae_updates", "padding", "condition_dropout"
        )
        warn_of_unused(config, config.method, _UNUSED, progress)
        work = training.Work(config, data, directory, progress)
        sizes, parts = work.sizes, work.condition
        spec = ClonedSpec(
            **sizes.shared(),
            hidden=(config.policy_width,) * config.layers,
            tasks=len(data.spec.env.tasks) if "task" in parts else 0,
            labels=len(data.spec.labels) if "label" in parts else 0,
            history=config.history or 1,
            episode_steps=_episode_steps(data) if config.time_input else 0,
        )
        model = work.initialize(lambda: ClonedPolicy(spec))
        model.observation.standardize(data.moments(spec.observation_keys, "train"))
        key = "action_relative" if spec.action_target == "relative" else "action"
        model.action.standardize(data.moments((key,), "train"))
        settings = work.settings(DEFAULTS)
        rule = WindowRule(spec.history, before=spec.history - 1)
        noise = {"observation_noise": config.observation_noise}
        objective = work.objective(rule, settings, options=noise)
        loop, summary = work.train(model, objective, settings, directory, "train-baseline mlp")
        summary |= {
            "action_target": sizes.action_target,
            "policy_flops": matmul_flops(model.network),
        }
        return work.trained(spec.to_mapping(), loop.ema_model, model, summary)

    def open_directory(self, path: Path, device: torch.device, name: str) -> TrainedMlp:
        """Open a trained model."""
        del name
        return TrainedMlp(path, device)


def _episode_steps(data: SnippetStore) -> int:
    """Return the environment's step limit, or where it has none the longest demonstration."""
    return data.spec.env.max_steps or int(data.episodes.length.max())


METHOD = BehaviorCloning()
