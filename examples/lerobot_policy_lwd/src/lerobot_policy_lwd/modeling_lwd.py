"""An exported policy as a LeRobot policy, for any number of environments."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_ENV_STATE
from torch import Tensor

from lerobot_policy_lwd.configuration_lwd import UNTRAINABLE, LWDConfig
from lerobot_policy_lwd.processor_lwd import make_lwd_pre_post_processors

try:
    from lwdctl.core.errors import ConfigError, DataError
    from lwdctl.core.lerobot_features import feature_names
    from lwdctl.core.suggest import did_you_mean
    from lwdctl.deploy.runtime import DESCRIPTION, ExportedPolicy, PolicyDescription
    from lwdctl.policies.policy import known_name
except ImportError as error:
    raise ImportError(
        f"lerobot_policy_lwd needs lwdctl ({error}); in a checkout of lwdctl:"
        " pip install --no-deps ."
    ) from error


class LWDPolicy(PreTrainedPolicy):
    """Acts with an exported policy, one copy of it per environment; ONNX Runtime, on the CPU.

    The first batch after `reset` begins one episode per row: its size says how many environments
    there are, and its `task` which task each one has. LeRobot does not tell a policy that one
    environment of several has begun another episode, so `reset` concerns all.

    Args:
        config: Settings; its features are filled in from the exported policy.
        directory: What `lwdctl export policy` wrote, or a directory with those files in it.
        unused: What else LeRobot passes (statistics of a dataset).

    Raises:
        ArtifactError: The directory holds no exported policy, or a damaged one.
        ConfigError: Settings that the policy does not fit.
    """

    config_class = LWDConfig
    name = "lwd"

    def __init__(
        self, config: LWDConfig, directory: Path | str | None = None, **unused: Any
    ) -> None:
        super().__init__(config)
        if directory is None:
            raise ConfigError(
                "a policy of the type 'lwd' cannot be made from settings alone",
                "export one with lwdctl export policy, then: python -m lerobot_policy_lwd EXPORTED"
                " DIR, and give --policy.path=DIR",
            )
        self.directory = Path(directory)
        self.exported = ExportedPolicy(self.directory)
        self._check_names()
        self._check_action()
        config.feature_names = self._features()
        config.input_features = {
            feature: PolicyFeature(
                FeatureType.ENV if feature == OBS_ENV_STATE else FeatureType.STATE, (item.size,)
            )
            for item in self.description.observations
            for feature in [config.feature_names[item.name]]
        }
        config.output_features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (self.description.action.size,))
        }
        # Files that were downloaded live as long as this policy.
        self.copies: tempfile.TemporaryDirectory | None = None
        self._environments: list[ExportedPolicy] = []
        self._begun = 0
        self.reset()

    @property
    def description(self) -> PolicyDescription:
        """What the exported policy observes, what it outputs and how it was trained."""
        return self.exported.description

    def _check_names(self) -> None:
        """Check the tasks and the label of the settings, so that a wrong one is found at once."""
        tasks, labels = self.description.tasks, self.description.labels
        for name in (self.config.task or "", *self.config.task_names.values()):
            known_name("task", name, tasks, needed=False)
        known_name("label", self.config.label or "", labels, needed=False)

    def _check_action(self) -> None:
        """Compare the action with the environment's, which LeRobot writes into the settings."""
        found = (self.config.output_features or {}).get(ACTION)
        if found is not None and tuple(found.shape) != (self.description.action.size,):
            raise ConfigError(
                f"the policy's action has {self.description.action.size} components, the"
                f" environment's or dataset's has the shape {tuple(found.shape)}",
                "evaluate it in the environment that it was trained for",
            )

    def _features(self) -> dict[str, str]:
        """Return the LeRobot feature of every observation of the policy."""
        observations, given = self.description.observations, self.config.feature_names
        known = [item.name for item in observations]
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"feature_names: the policy has no observation '{name}'",
                    did_you_mean(name, known),
                )
        names = {**feature_names([i for i in observations if i.name not in given]), **given}
        if len(set(names.values())) < len(names):
            raise ConfigError(f"feature_names: two observations of one feature: {names}")
        return {name: names[name] for name in known}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        force_download: bool = False,
        resume_download: bool | None = None,
        proxies: dict | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        strict: bool = False,
        **kwargs: Any,
    ) -> LWDPolicy:
        """Load a policy from a directory that `save_pretrained` wrote, or from the hub.

        Args:
            pretrained_name_or_path: Directory, or `user/name` on the hub.
            config: Settings; those in the directory by default.
            force_download: Download again what is there already.
            resume_download: Not used any more.
            proxies: Not used any more.
            token: The hub's access token.
            cache_dir: Where downloads are kept.
            local_files_only: Download nothing.
            revision: Branch, tag or commit on the hub.
            strict: Not used: there are no weights beside the graphs.
            kwargs: What else LeRobot passes.

        Raises:
            ArtifactError: There is no exported policy, or a damaged one.
            ConfigError: Settings that the policy does not fit.
        """
        hub = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **hub, **kwargs)
        directory, copies = Path(pretrained_name_or_path), None
        if not directory.is_dir():
            patterns = [DESCRIPTION, "*.onnx"]
            name = str(pretrained_name_or_path)
            cached = Path(snapshot_download(name, allow_patterns=patterns, **hub))
            # The hub's cache holds links, which are refused in an exported policy: copy the files.
            copies = tempfile.TemporaryDirectory(prefix="lerobot_policy_lwd-")
            directory = Path(copies.name)
            for file in cached.iterdir():
                if file.name == DESCRIPTION or file.suffix == ".onnx":
                    shutil.copyfile(file, directory / file.name)
        policy = cls(config, directory, **kwargs)
        policy.copies = copies
        policy.eval()
        return policy

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write settings, processors and the exported files: all that `--policy.path` needs."""
        if save_directory.resolve() != self.directory.resolve():
            for name in (*(f"{graph}.onnx" for graph in self.description.graphs), DESCRIPTION):
                shutil.copyfile(self.directory / name, save_directory / name)
            PolicyDescription.read(save_directory)
        self.config.save_pretrained(save_directory)
        for processor in make_lwd_pre_post_processors(self.config):
            processor.save_pretrained(save_directory)

    def get_optim_params(self) -> dict:
        """Return no parameters: nothing is trained here."""
        return {}

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        """Refuse training; LeRobot's base class demands that every policy has this method."""
        raise NotImplementedError(UNTRAINABLE)

    def reset(self) -> None:
        """End the episodes of all environments; the next batch begins new ones."""
        self._begun += len(self._environments)
        self._environments = []

    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the next action of every environment as a chunk of one, (batch, 1, action).

        A generated network reads every observation, so that later actions cannot be given now.
        The step counts as taken, as with `select_action`.
        """
        return self.select_action(batch).unsqueeze(1)

    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the next action of every environment, re-planning where that is due.

        Args:
            batch: Feature to (batch, values), environment units; `task` to one text per row.
                Further keys are ignored.

        Returns:
            (batch, action), environment units, clipped to the action's limits.

        Raises:
            DataError: A feature is missing, has another size or is not finite, or the number of
                environments has changed.
            ConfigError: An unknown task or label, or a missing one.
        """
        observations = self._observations(batch)
        count = len(next(iter(observations.values())))
        if not self._environments:
            self._begin(count, batch)
        if count != len(self._environments):
            raise DataError(
                f"a batch of {count} environments, after one of {len(self._environments)}",
                "call reset() first: it begins new episodes",
            )
        actions = [
            policy.act({name: rows[index] for name, rows in observations.items()})
            for index, policy in enumerate(self._environments)
        ]
        return torch.from_numpy(np.stack(actions)).to(self.config.device)

    def _observations(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return observation of the policy to (batch, obs)."""
        found = {}
        for item in self.description.observations:
            feature = self.config.feature_names[item.name]
            if feature not in batch:
                given = ", ".join(sorted(key for key in batch if key.startswith("observation")))
                raise DataError(
                    f"the batch has no '{feature}', which is the policy's observation"
                    f" '{item.name}'; it has: {given or 'no observations'}",
                    f"""name its feature: --policy.feature_names='{{"{item.name}": "FEATURE"}}'""",
                )
            found[item.name] = _rows(feature, batch[feature], item.size)
        counts = {self.config.feature_names[name]: len(rows) for name, rows in found.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"features of different numbers of environments: {counts}")
        return found

    def _begin(self, count: int, batch: Mapping[str, Any]) -> None:
        """Begin one episode per row."""
        first, label = self.config.seed + self._begun, self.config.label or ""
        tasks = self._tasks(count, batch)
        environments = [self.exported.copy() for _ in range(count)]
        for index, (policy, task) in enumerate(zip(environments, tasks, strict=True)):
            policy.reset(first + index, task, label)
        self._environments = environments

    def _tasks(self, count: int, batch: Mapping[str, Any]) -> list[str]:
        """Return the task of every environment, "" where the policy has no use for it."""
        if "task" not in self.description.condition:
            return [""] * count
        texts = self.config.task or batch.get("task") or ""
        texts = [texts] * count if isinstance(texts, str) else list(texts)
        if len(texts) != count:
            raise DataError(f"{len(texts)} tasks for {count} environments")
        return [self.config.task_names.get(text, text) for text in texts]


def _rows(feature: str, values: Any, size: int) -> np.ndarray:
    """Return the values of a feature as (batch, size), float32.

    Raises:
        DataError: There is no batch axis, or an environment has another number of values.
    """
    rows = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if rows.ndim == 0 or rows[:1].numel() != size or not len(rows):
        raise DataError(
            f"'{feature}' has the shape {tuple(rows.shape)}, the policy needs (batch, {size}): one"
            " row per environment, no time axis"
        )
    return rows.reshape(len(rows), size).numpy()
