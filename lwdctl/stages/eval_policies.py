"""The policies of an evaluation's arms, and what they are conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import METHOD, RANDOM, EvalConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.models.files import load_spec
from lwdctl.policies.loading import load_vae
from lwdctl.policies.policy import BatchPolicy
from lwdctl.policies.random import RandomPolicy
from lwdctl.stages.baseline_policy import baseline_policy
from lwdctl.stages.eval_arms import Arm
from lwdctl.stages.lwd_policy import SAMPLED, Chain, check_inference_steps, lwd_policy
from lwdctl.training.device import choose_device


class Policies:
    """Builds policies; refuses beforehand what could not run.

    Args:
        config: The evaluation's settings.
        store: The data of all models.
        arms: What is to run.

    Raises:
        ConfigError: An unknown label, too many denoising steps, or a horizon that a
            baseline's chunks do not reach.
    """

    def __init__(self, config: EvalConfig, store: SnippetStore, arms: Sequence[Arm]) -> None:
        self.arms = arms
        self.device = choose_device(config.device)
        self._config, self._store = config, store
        self._chain: tuple[Artifact, Chain] | None = None
        used = [(arm, arm.trained.main) for arm in arms]
        for arm in {(main.path, arm.trained.horizon): arm for arm, main in used if main}.values():
            self._check(arm)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Behavior labels to run; all where a model is conditioned on them and none is named."""
        known = self._store.spec.labels
        for label in self._config.label:
            if label not in known:
                raise ConfigError(f"'{label}' is no label of this data", did_you_mean(label, known))
        if self._config.label:
            return tuple(dict.fromkeys(self._config.label))
        return known if any(_sees_label(arm) for arm in self.arms) else ()

    def build(self, arm: Arm, slots: int = 0) -> BatchPolicy:
        """Make the policy of an arm, for so many slots (0: the evaluation's)."""
        config = self._config
        if arm.policy == RANDOM:
            return RandomPolicy(self._store.spec.action, slots or config.num_envs)
        if arm.policy == METHOD:
            return lwd_policy(
                arm.latent,
                self._open(arm),
                self.lengths(arm)[1] or 0,
                config.sampler,
                config.num_inference_steps,
                config.warm_start,
            )
        return baseline_policy(
            arm.trained.artifacts["baseline"],
            self._store,
            arm.trained.horizon,
            config.sampler,
            config.num_inference_steps,
            self.device,
            config.warm_start,
        )

    def lengths(self, arm: Arm) -> tuple[int | None, int | None]:
        """Return the steps a model was trained for, and those executed per query (0: all)."""
        if arm.trained.main is None:
            return None, None
        key = "snippet_length" if arm.policy == METHOD else "horizon"
        model = arm.trained.artifacts["vae" if arm.policy == METHOD else "baseline"]
        trained = load_spec(model.path).get(key)
        return trained, trained if arm.trained.horizon is None else arm.trained.horizon

    def _open(self, arm: Arm) -> Chain:
        vae = arm.trained.artifacts["vae"]
        if self._chain is None or self._chain[0] != arm.trained.main:
            chain = Chain(
                arm.trained.artifacts, self._store, load_vae(vae, self.device), self.device
            )
            assert arm.trained.main is not None
            self._chain = arm.trained.main, chain
        return self._chain[1]

    def _check(self, arm: Arm) -> None:
        if arm.policy != METHOD:
            self.build(arm)
            return
        if SAMPLED not in self._config.latent:
            return
        check_inference_steps(arm.trained.artifacts["diffusion"], self._config.num_inference_steps)


def _sees_label(arm: Arm) -> bool:
    if arm.policy == METHOD:
        models = arm.trained.artifacts
        return "diffusion" in models and "label" in _diffusion_spec(arm)["condition"]
    main = arm.trained.main
    return main is not None and "label" in main.manifest.config["condition"]


def _diffusion_spec(arm: Arm) -> dict[str, Any]:
    return dict(load_spec(arm.trained.artifacts["diffusion"].path))
