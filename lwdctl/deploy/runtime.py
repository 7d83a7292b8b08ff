"""An exported policy in a control loop: NumPy, safetensors and ONNX Runtime, no torch.

The slow path samples a latent and decodes it to the weights of a small network; the fast path
runs that network once per control step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.records import FloatArray
from lwdctl.core.seeding import generator
from lwdctl.core.suggest import did_you_mean
from lwdctl.deploy.description import PolicyDescription
from lwdctl.deploy.networks import Layer, Networks


@dataclass(frozen=True)
class Request:
    """Everything that a plan is made from; later observations do not change it.

    Attributes:
        state: (history * obs,), environment units, oldest observation first.
        task: Index of the task.
        label: Index of the behavior label.
        noise: (latent,), standard normal.
        step: Control steps taken in this episode before the newest observation.
        episode: Which `reset` it belongs to.
    """

    state: FloatArray
    task: int
    label: int
    noise: FloatArray
    step: int
    episode: int


@dataclass(frozen=True)
class Plan:
    """A network to follow.

    Attributes:
        request: What it was made from.
        latent: (latent,), standardized.
        layers: Matrix and bias of every layer.
    """

    request: Request
    latent: FloatArray
    layers: list[Layer]


class ExportedPolicy:
    """Acts for one robot. `act` is all that a loop at one rate needs.

    Two rates: `observe` what the robot sees, `step` to act on it with the present plan (fast);
    `replan` a `request` wherever and whenever there is time for it (slow; it changes nothing
    here and may run in another thread), then `adopt` the plan. `controller.TwoRateController`
    does so.

    Args:
        source: Directory that `lwdctl export policy` wrote, or its networks to share.
        threads: Threads of ONNX Runtime for one graph.

    Raises:
        ArtifactError: No exported policy, one of a newer format, or a damaged one.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, source: Path | str | Networks, threads: int = 1) -> None:
        if not isinstance(source, Networks):
            source = Networks(Path(source), threads)
        self.networks = source
        self.steps = 0
        """Control steps taken in this episode."""
        self.plan: Plan | None = None
        self._recent: deque[FloatArray] = deque(maxlen=self.description.history)
        self._seed = self._task = self._label = self._queries = self._episode = 0
        self._task_name = ""

    @property
    def description(self) -> PolicyDescription:
        """What the policy sees, gives and was made from."""
        return self.networks.description

    def reset(self, seed: int, task: str = "", label: str = "") -> None:
        """Begin an episode.

        Args:
            seed: Fixes the sampling noise, together with task and query number.
            task: Which task to do; may be left out where the policy knows one.
            label: Behavior to follow, for a policy that is conditioned on labels.

        Raises:
            ConfigError: An unknown task or label, or one that is needed and missing.
        """
        said = self.description
        self._task = _index("task", task, said.tasks, needed="task" in said.condition)
        self._label = _index("label", label, said.labels, needed="label" in said.condition)
        self._seed, self._task_name = seed, task or (said.tasks[0] if said.tasks else "")
        self.steps = self._queries = 0
        self._episode += 1
        self._recent.clear()
        self.plan = None

    def act(self, observations: Mapping[str, FloatArray]) -> FloatArray:
        """Return the action (action,) for what is seen now, re-planning first when it is due.

        Args:
            observations: Key to (obs,), environment units; further keys are ignored.

        Raises:
            DataError: An observation is missing, has another size, or is not finite.
        """
        self.observe(observations)
        if self.due:
            self.adopt(self.replan(self.request()))
        return self.step()

    @property
    def due(self) -> bool:
        """Whether there is no plan, or the present one has been followed for its horizon."""
        horizon, age = self.description.horizon, self.age
        return age is None or (horizon > 0 and age >= horizon)

    @property
    def age(self) -> int | None:
        """Control steps since the observation that the present plan was made from, or None."""
        return None if self.plan is None else self.steps - self.plan.request.step

    def observe(self, observations: Mapping[str, FloatArray]) -> None:
        """Take in what is seen now; an episode's first observation stands for those before it.

        Raises:
            DataError: An observation is missing, has another size, or is not finite.
        """
        if not self._episode:
            raise ConfigError("the policy has no episode", "call reset(seed) first")
        seen = self.description.observations
        current = np.concatenate([_checked(observations, item.name, item.size) for item in seen])
        while len(self._recent) < self.description.history - 1:
            self._recent.append(current)
        self._recent.append(current)

    def request(self, noise: FloatArray | None = None) -> Request:
        """Return what a plan for the present moment is made from.

        Args:
            noise: (latent,), standard normal; None draws what (seed, task, query) fix.
        """
        if noise is None:
            rng = generator("exported-latent", self._task_name, self._seed, self._queries)
            noise = rng.standard_normal(self.description.latent_size, dtype=np.float32)
        self._queries += 1
        state = np.concatenate(list(self._recent))
        return Request(state, self._task, self._label, noise, self.steps, self._episode)

    def replan(self, request: Request) -> Plan:
        """Sample a latent and decode it: the slow path."""
        latent = self.networks.sample(request.state, request.task, request.label, request.noise)
        weights = self.networks.decode(latent)
        return Plan(request, latent, self.networks.unpack(weights))

    def adopt(self, plan: Plan) -> None:
        """Follow a plan from the next step on; one of an earlier episode is passed over.

        The plan's clock runs since the observation it was made from, not since now.
        """
        if plan.request.episode == self._episode:
            self.plan = plan

    def step(self) -> FloatArray:
        """Act on the newest observation with the present plan: the fast path.

        Returns:
            (action,), environment units, clipped to the action's limits.

        Raises:
            DataError: The network gave NaN or infinity; do not send that to a robot.
        """
        if self.plan is None or self.age is None:
            raise ConfigError("the policy has no plan", "adopt one before the first step")
        phase = min(self.age / self.description.snippet_length, 1.0)
        action = self.networks.act(self.plan.layers, self._recent[-1], phase)
        self.steps += 1
        if not np.isfinite(action).all():
            raise DataError("the policy gave an action that is not finite", "stop the robot")
        return action


def _index(noun: str, name: str, names: tuple[str, ...], *, needed: bool) -> int:
    if name in names:
        return names.index(name)
    if name:
        raise ConfigError(f"this policy knows no {noun} '{name}'", did_you_mean(name, names))
    if needed and len(names) > 1:
        raise ConfigError(f"this policy needs a {noun}", f"known: {', '.join(names)}")
    return 0


def _checked(observations: Mapping[str, FloatArray], name: str, size: int) -> FloatArray:
    if name not in observations:
        given = ", ".join(sorted(observations)) or "none"
        raise DataError(
            f"the observation '{name}' is missing", f"given: {given}; all of policy.json's are used"
        )
    values = np.asarray(observations[name], dtype=np.float32)
    if values.shape != (size,):
        raise DataError(
            f"the observation '{name}' has the shape {values.shape}, the policy sees ({size},)",
            "one robot, one moment: no batch and no time axis",
        )
    if not np.isfinite(values).all():
        raise DataError(f"the observation '{name}' holds NaN or infinity")
    return values
