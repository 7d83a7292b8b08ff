"""Settings of the policy type `lwd`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig


@PreTrainedConfig.register_subclass("lwd")
@dataclass
class LWDConfig(PreTrainedConfig):
    """How an exported policy is run in LeRobot; everything else is in its `policy.json`.

    Every setting can be given on LeRobot's command line, as in `--policy.task=reach`.

    Attributes:
        feature_names: Observation of the policy to the LeRobot feature that holds it. One that is
            left out is called as `lwdctl export lerobot` calls it (`KEY` is `observation.KEY`).
        task: Task of every environment; None takes the texts that LeRobot gives as `task`. Only
            policies that are conditioned on the task use it.
        task_names: LeRobot's task text to the task's name in the policy; other texts are names.
        label: Behavior label of every environment, for a policy that is conditioned on labels.
        seed: Seed of the first episode's sampling noise; the n-th episode after it has `seed + n`.
            Equal to the default of `lerobot-eval --seed`, so that both count alike.
        device: Where actions are put. The policy itself runs on the CPU.
    """

    feature_names: dict[str, str] = field(default_factory=dict)
    task: str | None = None
    task_names: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    seed: int = 1000
    device: str | None = "cpu"
    push_to_hub: bool = False  # type: ignore[assignment]

    @property
    def observation_delta_indices(self) -> None:
        """None: a batch holds the current observation; the policy keeps the earlier ones."""

    @property
    def action_delta_indices(self) -> None:
        """None: nothing is trained here."""

    @property
    def reward_delta_indices(self) -> None:
        """None: nothing is trained here."""

    def get_optimizer_preset(self):
        """Refuse training; LeRobot's base class demands that every policy has this method."""
        raise NotImplementedError(UNTRAINABLE)

    def get_scheduler_preset(self) -> None:
        """Return none: nothing is trained here."""

    def validate_features(self) -> None:
        """Do nothing: loading a policy compares the features with its description."""


UNTRAINABLE = (
    "an exported policy cannot be trained in LeRobot: train with 'lwdctl train-vae' and"
    " 'lwdctl train-diffusion', then export it with 'lwdctl export policy'"
)
