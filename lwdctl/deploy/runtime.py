"""An exported policy in a control loop: NumPy and ONNX Runtime, no torch.

Two graphs hold all of its arithmetic. The first one, `plan`, re-plans (slow): it samples a latent
and decodes it to the weights of a small network, or to a chunk of actions. The second one, `act`,
follows the plan for one control step (fast).
"""

from __future__ import annotations

import importlib
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from lwdctl.artifacts.files import sha256_of, user_path, write_durably
from lwdctl.artifacts.stored_files import stored_file
from lwdctl.core.errors import (
    ArtifactError,
    ConfigError,
    MissingExtraError,
    NotFiniteError,
    first_line,
    install_extra,
)
from lwdctl.core.plain_text import listed, plain_text
from lwdctl.core.records import ActionSpec, FloatArray, ObservationSpec
from lwdctl.core.seeding import generator
from lwdctl.core.untrusted import parse_json, read_bytes, typed
from lwdctl.deploy.graph_checks import check_graph
from lwdctl.policies.policy import checked_observations, known_name

FORMAT = "lwdctl-policy"
FORMAT_VERSION = 3
DESCRIPTION = "policy.json"
PLAN, ACT = "plan", "act"
"""Names of the graphs; their files are `plan.onnx` and `act.onnx`."""
TYPES: Mapping[str, Literal["float32", "int64"]] = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
}
"""NumPy's names of the types of ONNX Runtime."""

Observation = Mapping[str, FloatArray] | FloatArray
Arrays = Mapping[str, npt.NDArray[Any]]


class Port(TypedDict):
    """An input or output of a graph: the name of its type, and its shape."""

    type: Literal["float32", "int64"]
    shape: list[Annotated[int, Meta(ge=0, le=2**27)]]


Signature = Mapping[Literal["inputs", "outputs"], Mapping[str, Port]]
"""`inputs` and `outputs` of a graph by name."""

_AGAIN = "export the policy again"


@dataclass(frozen=True)
class PolicyDescription:
    """Everything but the graphs that running an exported policy needs.

    The inputs of the graphs are among `noise` (latent,), standard normal; `task` and `label` (),
    indices; `observations` (history, obs), environment units, oldest first; `observation` (obs,),
    the current one; `time` (), control steps since the observation that the plan was made for; and
    the outputs of `plan`, which are inputs of `act`. What `act` outputs is `action` (action,),
    environment units, within the action's limits, and `unclipped`, the same before clipping.

    Attributes:
        method: Method of the policy: lwd, dp, ldp or mlp.
        observations: What the policy observes, in the order of its components.
        action: What it outputs. Limits that the data does not state are infinite here, and null
            in the file.
        history: Observations that the input `observations` holds.
        horizon: Action horizon: steps executed per re-plan; None keeps one plan all episode.
        condition: What it is conditioned on beside observations, out of task, label.
        tasks: Task names in the order of their indices.
        labels: Behavior labels in the order of their indices.
        num_inference_steps: Denoising (DDIM) steps per re-plan; 0 where nothing is sampled.
        opset: Version of the ONNX operators.
        graphs: Graph name to its inputs and outputs; where nothing is sampled there is no `plan`.
        provenance: Artifacts with digests, software versions, commit.
        parity: Differences from the policy that was exported, and the timings of both.
        files: File name to `bytes` and `sha256`.
    """

    method: str
    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    history: Annotated[int, Meta(ge=1, le=10_000)]
    horizon: Annotated[int, Meta(ge=1)] | None
    condition: tuple[str, ...]
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    num_inference_steps: Annotated[int, Meta(ge=0)]
    opset: int
    graphs: dict[str, Signature]
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    @property
    def noise_size(self) -> int:
        """Components of the noise that a re-plan starts from."""
        ports = self.graphs[PLAN]["inputs"] if PLAN in self.graphs else {}
        return math.prod(ports["noise"]["shape"]) if "noise" in ports else 0

    def write(self, directory: Path) -> None:
        """Write `policy.json`, with the digests of the graphs as they are now."""
        paths = [directory / f"{name}.onnx" for name in self.graphs]
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
        write_durably(directory / DESCRIPTION, f"{text}\n".encode())

    @classmethod
    def read(cls, directory: Path) -> PolicyDescription:
        """Read `policy.json` and check the files beside it.

        Raises:
            ArtifactError: No exported policy, one of another format version, or a damaged one.
        """
        path = directory / DESCRIPTION
        export = "export one with: lwdctl export policy"
        where = f"{directory} holds no exported policy: {path.name} cannot be read"
        body = parse_json(read_bytes(path, hint=export, where=where), str(path), hint=_AGAIN)
        if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
            raise ArtifactError(f"{path} does not describe an exported policy", export)
        version = body.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format version {plain_text(str(version), 60)}, this lwdctl reads"
                f" version {FORMAT_VERSION}",
                "export the policy again with lwdctl export policy, or install the lwdctl that"
                " wrote it (see 'provenance' in the file)",
            )
        found = cls._build(body, f"{path} is damaged")
        for name in found.graphs:
            file = stored_file(directory, f"{name}.onnx")
            if sha256_of(file) != found.files.get(file.name, {}).get("sha256"):
                raise ArtifactError(
                    f"{file} is not the file that was exported: its SHA-256 differs",
                    "copy the directory again, or export the policy again",
                )
        return found

    @classmethod
    def _build(cls, body: dict[str, Any], where: str) -> PolicyDescription:
        action = typed(dict[str, Any], body.get("action"), f"{where}: action", hint=_AGAIN)
        for side, sign in (("low", -1.0), ("high", 1.0)):
            limits = action.get(side)
            if isinstance(limits, list):
                action[side] = [sign * math.inf if value is None else value for value in limits]
        found = typed(cls, {**body, "action": action}, where, hint=_AGAIN)
        ports = [
            port
            for graph in found.graphs.values()
            for side in graph.values()
            for port in side.values()
        ]
        odd = (
            f"its graphs are {listed(found.graphs)}"
            if not {ACT} <= {*found.graphs} <= {PLAN, ACT}
            else "action: its limits do not have its size"
            if not len(found.action.low) == len(found.action.high) == found.action.size
            else "graphs: an array of more than 1 GB"
            if any(math.prod(port["shape"]) > 2**27 for port in ports)
            else ""
        )
        if odd:
            raise ArtifactError(f"{where}: {odd}", _AGAIN)
        return found


@dataclass(frozen=True)
class Request:
    """Everything that a re-plan depends on; later observations do not change it.

    Attributes:
        observations: (history, obs), environment units, oldest first.
        task: Index of the task.
        label: Index of the behavior label.
        noise: (latent,), standard normal.
        step: Control steps taken in this episode before the newest observation.
        episode: Which `reset` it belongs to.
    """

    observations: FloatArray
    task: int
    label: int
    noise: FloatArray
    step: int
    episode: int

    @property
    def inputs(self) -> Arrays:
        """Values by the names that the graphs give them."""
        return {
            "observations": self.observations,
            "task": np.array(self.task, dtype=np.int64),
            "label": np.array(self.label, dtype=np.int64),
            "noise": self.noise,
        }


class Plan:
    """A generated network or a chunk of actions, followed until the next re-plan.

    It binds the graph `act` to arrays that stay in place, so that a control step copies no weights;
    it acts in one thread at a time.

    Args:
        request: What it was made from.
        outputs: What the graph `plan` output.
        act: Session of the graph `act`.
        signature: Inputs and outputs of that graph.
    """

    def __init__(self, request: Request, outputs: Arrays, act: Any, signature: Signature) -> None:
        self.request, self.outputs = request, outputs
        self._act, self._binding = act, act.io_binding()
        self._inputs: dict[str, npt.NDArray[Any]]
        self._results: dict[str, npt.NDArray[Any]]
        self._inputs, self._results = (
            {name: np.zeros(item["shape"], item["type"]) for name, item in signature[side].items()}
            for side in ("inputs", "outputs")
        )
        for name, values in {**request.inputs, **outputs}.items():
            if name in self._inputs:
                self._inputs[name][...] = values
        for bind, arrays in (
            (self._binding.bind_input, self._inputs),
            (self._binding.bind_output, self._results),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def act(self, observations: Sequence[FloatArray], time: int) -> tuple[FloatArray, FloatArray]:
        """Run the graph `act`.

        Args:
            observations: Of the history, each (obs,), environment units, the current one last.
            time: Control steps since the observation that the plan was made for.

        Returns:
            The action (action,), environment units, within the limits, and before it was clipped.
        """
        inputs = self._inputs
        if "observation" in inputs:
            inputs["observation"][:] = observations[-1]
        if "observations" in inputs:
            inputs["observations"][:] = observations
        if "time" in inputs:
            inputs["time"][...] = time
        self._act.run_with_iobinding(self._binding)
        return self._results["action"].copy(), self._results["unclipped"].copy()


class Graphs:
    """The graphs of an exported policy; no state, safe to share between threads.

    Args:
        directory: The exported policy.
        threads: Threads of ONNX Runtime for `plan`; `act`, which takes microseconds, has one.

    Raises:
        ArtifactError: No exported policy, one of another format version, or a damaged one.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, directory: Path, threads: int = 1) -> None:
        self.description = PolicyDescription.read(directory)
        self._sessions = {
            name: open_session(directory / f"{name}.onnx", threads if name == PLAN else 1)
            for name in self.description.graphs
        }
        self._check(directory / DESCRIPTION)

    def _check(self, path: Path) -> None:
        """Check that the graphs have the arrays of the description, of the sizes that follow.

        Raises:
            ArtifactError: They have others.
        """
        described = self.description
        size = sum(item.size for item in described.observations)
        shapes = {
            "observations": [described.history, size], "observation": [size], "task": [],
            "label": [], "time": [], "action": [described.action.size],
        }  # fmt: skip
        for name, session in self._sessions.items():
            found = signature_of(session)
            ports = {**found["inputs"], **found["outputs"]}
            odd = [
                port
                for port, item in ports.items()
                if item["shape"] != shapes.get(port, item["shape"])
            ]
            if found != described.graphs[name] or odd:
                raise ArtifactError(
                    f"{path} is damaged: {name}.onnx has other inputs and outputs", _AGAIN
                )
        if described.num_inference_steps and "noise" not in described.graphs[PLAN]["inputs"]:
            raise ArtifactError(f"{path} is damaged: {PLAN}.onnx takes no noise", _AGAIN)

    def plan(self, request: Request) -> Plan:
        """Run the graph `plan`, if there is one."""
        outputs: dict[str, npt.NDArray[Any]] = {}
        if PLAN in self._sessions:
            signature, given = self.description.graphs[PLAN], request.inputs
            inputs = {name: given[name] for name in signature["inputs"]}
            found = self._sessions[PLAN].run(list(signature["outputs"]), inputs)
            outputs = dict(zip(signature["outputs"], found, strict=True))
        return Plan(request, outputs, self._sessions[ACT], self.description.graphs[ACT])

    def warm(self) -> None:
        """Run both graphs on zeros: a graph's first run takes longer than the others."""
        size = sum(item.size for item in self.description.observations)
        observations = np.zeros((self.description.history, size), dtype=np.float32)
        noise = np.zeros(self.description.noise_size, dtype=np.float32)
        self.plan(Request(observations, 0, 0, noise, 0, 0)).act(list(observations), 0)


class ExportedPolicy:
    """An exported policy for one robot. `reset` and `act` are all that a loop at one rate needs.

    A loop at two rates calls `observe` with what the robot sees and `step` to act on it with the
    current plan (fast). It calls `replan` with a `request` wherever and whenever there is time
    (slow; this changes nothing here and may run in another thread), then `adopt` with the plan.
    `controller.TwoRateController` does so.

    Args:
        source: Directory that `lwdctl export policy` wrote, or its graphs to share.
        threads: Threads of ONNX Runtime for re-planning.

    Raises:
        ArtifactError: No exported policy, one of another format version, or a damaged one.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, source: Path | str | Graphs, threads: int = 1) -> None:
        if not isinstance(source, Graphs):
            source = Graphs(user_path(source), threads)
        self.graphs = source
        self.steps = 0
        """Control steps taken in this episode."""
        self.replans = 0
        """Re-plans requested in this episode."""
        self.plan: Plan | None = None
        """The current plan."""
        self.unclipped: FloatArray = np.zeros(self.description.action.size, dtype=np.float32)
        """The last action before it was clipped."""
        self._recent: deque[FloatArray] = deque(maxlen=self.description.history)
        self._seed = self._episode = 0

    def __repr__(self) -> str:
        """Name the observations and the action."""
        seen = ", ".join(f"{item.name} ({item.size})" for item in self.description.observations)
        return f"ExportedPolicy({seen} -> action ({self.description.action.size}))"

    @property
    def description(self) -> PolicyDescription:
        """What the policy observes, what it outputs and how it was trained."""
        return self.graphs.description

    def copy(self) -> ExportedPolicy:
        """Return a policy with episodes of its own that shares the graphs."""
        return ExportedPolicy(self.graphs)

    def warm(self) -> None:
        """Run both graphs once, so that an episode's first step is as fast as the others."""
        self.graphs.warm()

    def reset(self, seed: int = 0, task: str = "", label: str = "") -> None:
        """Begin an episode.

        Args:
            seed: Fixes the sampling noise, together with the task and the number of re-plans. NumPy
                draws it, so that the same seed samples another latent in the trained policy.
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
            observation: Key to (obs,), environment units, where further keys are ignored; or
                (obs,), where the policy observes one key.

        Raises:
            DataError: An observation is missing, holds no numbers, has another size, or is not
                finite; or there is no mapping for several keys.
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
            DataError: As for `act`.
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
            noise = rng.standard_normal(self.description.noise_size, dtype=np.float32)
        self.replans += PLAN in self.description.graphs
        tasks, labels = self.description.tasks, self.description.labels
        return Request(
            np.stack(self._recent),
            tasks.index(self._task) if self._task else 0,
            labels.index(self._label) if self._label else 0,
            noise,
            self.steps,
            self._episode,
        )

    def replan(self, request: Request) -> Plan:
        """Sample a network or a chunk of actions (slow)."""
        return self.graphs.plan(request)

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
            NotFiniteError: The action is NaN or infinite; do not send it to a robot.
        """
        if self.plan is None:
            raise ConfigError("the policy has no plan", "adopt one before the first step")
        action = self.follow(self.plan)
        self.steps += 1
        return action

    def follow(self, plan: Plan) -> FloatArray:
        """Return what a plan, current or not, does on the newest observation; take no step.

        Returns:
            (action,), environment units, clipped to the action's limits.

        Raises:
            NotFiniteError: The action is NaN or infinite; do not send it to a robot.
        """
        action, self.unclipped = plan.act(self._recent, self.steps - plan.request.step)
        if not np.isfinite(self.unclipped).all():
            raise NotFiniteError("the policy's action is not finite", "stop the robot")
        return action


def open_session(path: Path, threads: int) -> Any:
    """Open a graph with ONNX Runtime, whose waiting threads do not spin.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ArtifactError: It is no graph that it can run, or reads more than its own file.
    """
    runtime = load_onnxruntime()
    check_graph(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads of a re-plan that wait by spinning would take the core that the control step needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"{path} cannot be opened: {first_line(error)}", _AGAIN) from error


def signature_of(session: Any) -> Signature:
    """Return the inputs and outputs of an open graph.

    Raises:
        ArtifactError: One is of a type that no graph of ours has.
    """
    ports = (session.get_inputs(), session.get_outputs())
    odd = [item.type for items in ports for item in items if item.type not in TYPES]
    if odd:
        raise ArtifactError(f"a graph has an input or output of the type {odd[0]}", _AGAIN)
    inputs, outputs = (
        {item.name: Port(type=TYPES[item.type], shape=item.shape) for item in items}
        for items in ports
    )
    return {"inputs": inputs, "outputs": outputs}


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
            f"pip install onnxruntime, or with everything: {install_extra('onnx')}",
        ) from error
