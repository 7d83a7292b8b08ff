"""An exported policy in a control loop: NumPy, safetensors and ONNX Runtime, no torch.

Re-planning (slow) samples a latent and decodes it to the weights of a small network; a control
step (fast) runs that network once.
"""

from __future__ import annotations

import importlib
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.files import sha256_of
from lwdctl.core.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from lwdctl.core.records import ActionSpec, FloatArray, ObservationSpec
from lwdctl.core.seeding import generator
from lwdctl.models import ddim
from lwdctl.policies.policy import checked_observations, known_name

FORMAT = "lwdctl-policy"
FORMAT_VERSION = 2
DESCRIPTION = "policy.json"
DENOISER = "denoiser.onnx"
DECODER = "decoder.onnx"
CONSTANTS = "constants.safetensors"

Layer = tuple[FloatArray, FloatArray]
"""Matrix (out, in) and bias (out,) of one layer of a generated network."""
Observation = Mapping[str, FloatArray] | FloatArray


@dataclass(frozen=True)
class PolicyDescription:
    """Everything but tensors that running an exported policy needs.

    Attributes:
        observations: What the policy observes, in the order of its components.
        action: What it outputs. Limits that the data does not state are infinite here, and null
            in the file.
        history: Observations in the state condition, oldest first.
        snippet_length: Steps of the snippets it was trained on: the unit of its time input.
        horizon: Action horizon: steps executed per re-plan; None keeps one plan all episode.
        time_input: Whether the network also sees the fraction of its snippet that has elapsed.
        reference_start: First observation component that actions are relative to; None where
            they are absolute.
        layers: (in, out) of every layer of the generated network. A weight vector holds, layer
            by layer, the matrix (out, in) row by row and then the bias (out,).
        latent_size: Components of the latent.
        condition: Parts of the denoiser's condition, out of state, task, label: its inputs.
        tasks: Task names in the order of their indices.
        labels: Behavior labels in the order of their indices.
        prediction: What the denoiser predicts: `"sample"`, `"epsilon"` or `"v_prediction"`.
        sampler: `"ddim"`.
        timesteps: Inference timesteps from the noisiest to the cleanest.
        provenance: Artifacts with digests, software versions, commit.
        parity: Difference from the policy that was exported, and the timings of both.
        files: File name to `bytes` and `sha256`.
    """

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    history: int
    snippet_length: int
    horizon: int | None
    time_input: bool
    reference_start: int | None
    layers: tuple[tuple[int, int], ...]
    latent_size: int
    condition: tuple[str, ...]
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    prediction: str
    sampler: str
    timesteps: tuple[int, ...]
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def write(self, directory: Path) -> None:
        """Write `policy.json`, with the digests of the other files as they are now."""
        paths = [directory / name for name in (DENOISER, DECODER, CONSTANTS)]
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths
        }
        values = asdict(replace(self, files=files))
        for side in ("low", "high"):
            values["action"][side] = [
                v if math.isfinite(v) else None for v in values["action"][side]
            ]
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, **values}
        text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
        (directory / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> PolicyDescription:
        """Read `policy.json` and check the files beside it.

        Raises:
            ArtifactError: No exported policy, one of another format version, or a damaged one.
        """
        path = directory / DESCRIPTION
        export = "export one with: lwdctl export policy"
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
                raise ArtifactError(f"{path} does not describe an exported policy", export)
            version = body.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"{path} has format version {version}, this lwdctl reads version"
                    f" {FORMAT_VERSION}",
                    "export the policy again with lwdctl export policy, or install the lwdctl that"
                    " wrote it (see 'provenance' in the file)",
                )
            found = cls._build(body)
        except OSError as error:
            raise ArtifactError(
                f"{directory} holds no exported policy: {path.name} cannot be read"
                f" ({error.strerror})",
                export,
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is damaged: {error!r}", "export the policy again"
            ) from error
        for name in (DENOISER, DECODER, CONSTANTS):
            file = directory / name
            if not file.is_file():
                raise ArtifactError(
                    f"{file} is missing", "copy the whole directory, or export the policy again"
                )
            if sha256_of(file) != found.files.get(name, {}).get("sha256"):
                raise ArtifactError(
                    f"{file} is not the file that was exported: its SHA-256 differs",
                    "copy the directory again, or export the policy again",
                )
        return found

    @classmethod
    def _build(cls, body: Mapping[str, Any]) -> PolicyDescription:
        action = dict(body["action"])
        for side, sign in (("low", -1.0), ("high", 1.0)):
            action[side] = tuple(sign * math.inf if v is None else float(v) for v in action[side])
        lists = {name: tuple(body[name]) for name in ("condition", "tasks", "labels", "timesteps")}
        typed = {
            "observations": tuple(ObservationSpec(**item) for item in body["observations"]),
            "action": ActionSpec(**action),
            "layers": tuple((int(i), int(o)) for i, o in body["layers"]),
        }
        return cls(**{**body, **lists, **typed})


class Networks:
    """The graphs and constants of an exported policy; no state, safe to share between threads.

    Args:
        directory: The exported policy.
        threads: Threads of ONNX Runtime for one graph.

    Raises:
        ArtifactError: No exported policy, one of another format version, or a damaged one.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, directory: Path, threads: int = 1) -> None:
        self.description = PolicyDescription.read(directory)
        runtime = load_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._denoiser, self._decoder = (
            runtime.InferenceSession(
                str(directory / name), options, providers=["CPUExecutionProvider"]
            )
            for name in (DENOISER, DECODER)
        )
        from safetensors.numpy import load_file

        self.constants: dict[str, FloatArray] = load_file(directory / CONSTANTS)

    def sample(self, state: FloatArray, task: int, label: int, noise: FloatArray) -> FloatArray:
        """Sample a normalized latent (latent,); see `Request` for the arguments."""
        description = self.description
        parts: dict[str, npt.NDArray[Any]] = {
            "state": state[None].astype(np.float32),
            "task": np.array([task], dtype=np.int64),
            "label": np.array([label], dtype=np.int64),
        }
        condition = {name: parts[name] for name in description.condition}
        alphas = self.constants["alphas_cumprod"].tolist()

        def predict_clean(latent: FloatArray, step: int) -> FloatArray:
            inputs = {"latent": latent, "step": np.array([step], dtype=np.int64), **condition}
            predicted = self._denoiser.run(None, inputs)[0]
            signal, std = ddim.coefficients(alphas[step])
            clean: FloatArray = ddim.clean_sample(
                predicted, latent, description.prediction, signal, std
            )
            return clean

        start = noise[None].astype(np.float32)
        latent: FloatArray = ddim.sample(predict_clean, start, description.timesteps, alphas)[0]
        return latent

    def decode(self, latent: FloatArray) -> FloatArray:
        """Decode a normalized latent (latent,) to a weight vector (weight,)."""
        weights: FloatArray = self._decoder.run(None, {"latent": latent[None]})[0][0]
        return weights

    def unpack(self, weights: FloatArray) -> list[Layer]:
        """Cut a weight vector (weight,) into layers, which are views."""
        layers: list[Layer] = []
        start = 0
        for width, out in self.description.layers:
            middle, end = start + width * out, start + (width + 1) * out
            layers.append((weights[start:middle].reshape(out, width), weights[middle:end]))
            start = end
        return layers

    def act(self, layers: list[Layer], observation: FloatArray, elapsed: float) -> FloatArray:
        """Run an unpacked network on an observation (obs,), environment units.

        Returns:
            (action,), environment units, clipped to the action's limits.
        """
        description, constants = self.description, self.constants
        hidden = (observation - constants["observation_mean"]) / constants["observation_scale"]
        if description.time_input:
            hidden = np.append(hidden, np.float32(2.0 * elapsed - 1.0))
        for matrix, bias in layers[:-1]:
            hidden = np.maximum(matrix @ hidden + bias, 0.0)
        matrix, bias = layers[-1]
        action = (matrix @ hidden + bias) * constants["action_scale"] + constants["action_mean"]
        if description.reference_start is not None:
            start = description.reference_start
            action = action + observation[start : start + description.action.size]
        low, high = constants["action_low"], constants["action_high"]
        clipped: FloatArray = np.clip(action, low, high).astype(np.float32)
        return clipped


@dataclass(frozen=True)
class Request:
    """Everything that a re-plan depends on; later observations do not change it.

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
    """A generated network, which acts until the next re-plan.

    Attributes:
        request: What it was generated from.
        latent: (latent,), normalized.
        layers: Matrix and bias of every layer.
    """

    request: Request
    latent: FloatArray
    layers: list[Layer]


class ExportedPolicy:
    """An exported policy for one robot. `reset` and `act` are all that a loop at one rate needs.

    A loop at two rates calls `observe` with what the robot sees and `step` to act on it with the
    current plan (fast). It calls `replan` with a `request` wherever and whenever there is time
    (slow; this changes nothing here and may run in another thread), then `adopt` with the plan.
    `controller.TwoRateController` does so.

    Args:
        source: Directory that `lwdctl export policy` wrote, or its networks to share.
        threads: Threads of ONNX Runtime for one graph.

    Raises:
        ArtifactError: No exported policy, one of another format version, or a damaged one.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, source: Path | str | Networks, threads: int = 1) -> None:
        if not isinstance(source, Networks):
            source = Networks(Path(source), threads)
        self.networks = source
        self.steps = 0
        """Control steps taken in this episode."""
        self.replans = 0
        """Re-plans requested in this episode."""
        self.plan: Plan | None = None
        """The current generated network."""
        self._recent: deque[FloatArray] = deque(maxlen=self.description.history)
        self._seed = self._episode = 0

    def __repr__(self) -> str:
        """Name the observations and the action."""
        seen = ", ".join(f"{item.name} ({item.size})" for item in self.description.observations)
        return f"ExportedPolicy({seen} -> action ({self.description.action.size}))"

    @property
    def description(self) -> PolicyDescription:
        """What the policy observes, what it outputs and how it was trained."""
        return self.networks.description

    def copy(self) -> ExportedPolicy:
        """Return a policy with episodes of its own that shares the networks."""
        return ExportedPolicy(self.networks)

    def reset(self, seed: int = 0, task: str = "", label: str = "") -> None:
        """Begin an episode.

        Args:
            seed: Fixes the sampling noise, together with the task and the number of re-plans.
            task: Task to do; may be left out where the policy has one task or is not conditioned
                on tasks.
            label: Behavior label, for a policy that is conditioned on labels.

        Raises:
            ConfigError: An unknown task or label, or a missing one that the policy is conditioned
                on.
        """
        description, condition = self.description, self.description.condition
        self._task, self._label = (
            known_name(part, name, names, needed=part in condition)
            for part, name, names in (
                ("task", task, description.tasks),
                ("label", label, description.labels),
            )
        )
        self._seed = seed
        self.steps = self.replans = 0
        self._episode += 1
        self._recent.clear()
        self.plan = None

    def act(self, observation: Observation) -> FloatArray:
        """Return the action (action,) for an observation, re-planning first when that is due.

        Args:
            observation: Key to (obs,), environment units, where further keys are ignored; or all
                keys in the order of `description.observations`, (obs,).

        Raises:
            DataError: An observation is missing, has another size, or is not finite.
        """
        self.observe(observation)
        if self.due:
            self.adopt(self.replan(self.request()))
        return self.step()

    @property
    def due(self) -> bool:
        """Whether there is no plan, or the current one has been run for the action horizon."""
        horizon, age = self.description.horizon, self.age
        return age is None or (horizon is not None and age >= horizon)

    @property
    def age(self) -> int | None:
        """Control steps since the observation that the current plan is for, or None."""
        return None if self.plan is None else self.steps - self.plan.request.step

    def observe(self, observation: Observation) -> None:
        """Add an observation; an episode's first one also stands for those before it.

        Raises:
            DataError: An observation is missing, has another size, or is not finite.
        """
        if not self._episode:
            raise ConfigError("the policy has no episode", "call reset(seed) first")
        found = checked_observations(observation, self.description.observations)
        current = np.concatenate(list(found.values()))
        while len(self._recent) < self.description.history - 1:
            self._recent.append(current)
        self._recent.append(current)

    def request(self, noise: FloatArray | None = None) -> Request:
        """Return what a re-plan from the newest observation depends on.

        Args:
            noise: (latent,), standard normal; None draws what the seed, the task and the number of
                re-plans fix.
        """
        if noise is None:
            rng = generator("exported-latent", self._task, self._seed, self.replans)
            noise = rng.standard_normal(self.description.latent_size, dtype=np.float32)
        self.replans += 1
        state = np.concatenate(list(self._recent))
        tasks, labels = self.description.tasks, self.description.labels
        return Request(
            state,
            tasks.index(self._task) if self._task else 0,
            labels.index(self._label) if self._label else 0,
            noise,
            self.steps,
            self._episode,
        )

    def replan(self, request: Request) -> Plan:
        """Sample a latent and decode it to a network (slow)."""
        latent = self.networks.sample(request.state, request.task, request.label, request.noise)
        weights = self.networks.decode(latent)
        return Plan(request, latent, self.networks.unpack(weights))

    def adopt(self, plan: Plan) -> None:
        """Act with a plan from the next step on; a plan for an earlier episode is ignored.

        The plan's time input counts from the observation that it was made for, not from now.
        """
        if plan.request.episode == self._episode:
            self.plan = plan

    def step(self) -> FloatArray:
        """Act on the newest observation with the current plan (fast).

        Returns:
            (action,), environment units, clipped to the action's limits.

        Raises:
            DataError: The action is NaN or infinite; do not send it to a robot.
        """
        if self.plan is None or self.age is None:
            raise ConfigError("the policy has no plan", "adopt one before the first step")
        elapsed = min(self.age / self.description.snippet_length, 1.0)
        action = self.networks.act(self.plan.layers, self._recent[-1], elapsed)
        self.steps += 1
        if not np.isfinite(action).all():
            raise DataError("the policy's action is not finite", "stop the robot")
        return action


def load_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError(
            "exported policies need the package 'onnxruntime', which is not installed",
            "pip install onnxruntime, or with everything: pip install 'lwdctl[onnx]'",
        ) from error
