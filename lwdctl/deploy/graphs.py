"""Trained policies as two ONNX graphs: `plan` re-plans, `act` takes a control step.

Everything is in the graphs: normalization, one-hot conditions, the unrolled denoising steps, and
the action's limits. `runtime.PolicyDescription` describes their inputs and outputs, which have no
batch axis.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec
from lwdctl.deploy.runtime import ACT, PLAN
from lwdctl.methods.chunks import TrainedChunks
from lwdctl.methods.lwd import TrainedLwd
from lwdctl.methods.method import Acting, TrainedPolicy
from lwdctl.methods.mlp import TrainedMlp
from lwdctl.models.behavior_cloning import ClonedPolicy
from lwdctl.models.chunks import ActionDiffusion, LatentChunks
from lwdctl.models.diffusion import LatentDiffusion, inference_timesteps
from lwdctl.models.vae import PolicyVae

OPSET = 17

Named = Mapping[str, Tensor]


class Graph(nn.Module, ABC):
    """What is traced to a graph.

    Args:
        inputs: Name to a tensor of the input's shape and type.
    """

    def __init__(self, inputs: Named) -> None:
        super().__init__()
        self.example = dict(inputs)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the inputs in their order."""
        return tuple(self.outputs(dict(zip(self.example, values, strict=True))).values())

    @abstractmethod
    def outputs(self, given: Named) -> Named:
        """Return the outputs by name."""

    def write(self, path: Path) -> None:
        """Trace the graph and write it as an ONNX file."""
        with warnings.catch_warnings():
            # The newer exporter needs onnxscript; tracing is exact here, because shapes are fixed.
            # With gradients: without, attention takes a fused operator that ONNX does not have.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.eval(),
                tuple(self.example.values()),
                str(path),
                input_names=list(self.example),
                output_names=list(self.outputs(self.example)),
                opset_version=OPSET,
                dynamo=False,
            )


class PlanGraph(Graph):
    """Samples a latent from noise with DDIM; subclasses decode it.

    Args:
        diffusion: The diffusion model.
        num_inference_steps: Denoising steps.
        observations: (history, obs) that it depends on, or None.
    """

    def __init__(
        self,
        diffusion: LatentDiffusion,
        num_inference_steps: int,
        observations: tuple[int, int] | None,
    ) -> None:
        spec = diffusion.spec
        inputs = {} if observations is None else {"observations": torch.zeros(observations)}
        for name in ("task", "label"):
            if name in spec.condition:
                inputs[name] = torch.tensor(0)
        super().__init__({**inputs, "noise": torch.zeros(spec.denoiser.latent_size)})
        self.diffusion = diffusion
        self._timesteps = tuple(inference_timesteps(spec, num_inference_steps))

    def outputs(self, given: Named) -> Named:
        """Return what the sampled latent decodes to, by name."""
        model, spec = self.diffusion, self.diffusion.spec
        none, noise = torch.zeros(1, dtype=torch.long), given["noise"][None]
        state = given["observations"].flatten()[None] if "observations" in given else noise[:, :0]
        task, label = (given[name][None] if name in given else none for name in ("task", "label"))
        condition = model.condition(state, task, label)
        table = spec.sampling_steps("ddim", self._timesteps)
        latent = model.denoise(table, torch.tensor(self._timesteps), noise[None], condition)
        return self.decode(latent, state)

    @abstractmethod
    def decode(self, latent: Tensor, state: Tensor) -> Named:
        """Return the outputs for a latent (1, latent) and a state (1, history * obs)."""


class NetworkPlan(PlanGraph):
    """LWD: a generated network, as the weights (out, in) and biases (out,) of `nn.Linear`."""

    def __init__(
        self, vae: PolicyVae, diffusion: LatentDiffusion, num_inference_steps: int
    ) -> None:
        history, seen = diffusion.spec.history, "state" in diffusion.spec.condition
        observations = (history, vae.spec.observation_size) if seen else None
        super().__init__(diffusion, num_inference_steps, observations)
        self.vae = vae

    def decode(self, latent: Tensor, state: Tensor) -> Named:
        """Cut the weight vector into the tensors of every layer."""
        del state
        shapes = layers_of(self.vae)
        sizes = [math.prod(shape) for shape in shapes.values()]
        parts = torch.split(self.vae.decoder(latent)[0], sizes)
        return {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }


class ChunkPlan(PlanGraph):
    """Diffusion Policy and LDP: a `chunk` (time, action), environment units."""

    def __init__(self, model: ActionDiffusion | LatentChunks, num_inference_steps: int) -> None:
        observations = model.spec.history, model.spec.observation_size
        super().__init__(model.diffusion, num_inference_steps, observations)
        self.model = model

    def decode(self, latent: Tensor, state: Tensor) -> Named:
        """Return the chunk."""
        return {"chunk": self.model.actions(latent, state)[0]}


class ActGraph(Graph):
    """Maps a plan and observations to an action; subclasses follow the plan.

    Args:
        inputs: Name to a tensor of the input's shape and type.
        action: Its limits.
    """

    def __init__(self, inputs: Named, action: ActionSpec) -> None:
        super().__init__(inputs)
        self._low, self._high = torch.tensor((action.low, action.high), dtype=torch.float32)

    def outputs(self, given: Named) -> Named:
        """Return the action within its limits, and before it was clipped."""
        unclipped = self.action(given)
        clipped = torch.maximum(torch.minimum(unclipped, self._high), self._low)
        return {"action": clipped, "unclipped": unclipped}

    @abstractmethod
    def action(self, given: Named) -> Tensor:
        """Return the action (action,), environment units."""


class NetworkAct(ActGraph):
    """LWD: a generated network in closed loop; its weights are inputs."""

    def __init__(self, vae: PolicyVae, action: ActionSpec) -> None:
        inputs = {name: torch.zeros(shape) for name, shape in layers_of(vae).items()}
        inputs["observation"] = torch.zeros(vae.spec.observation_size)
        if vae.spec.time_input:
            inputs["time"] = torch.tensor(0.0)
        super().__init__(inputs, action)
        self.vae = vae

    def action(self, given: Named) -> Tensor:
        """Run the network on the current observation."""
        vae, observation = self.vae, given["observation"]
        elapsed = given.get("time", torch.tensor(0.0)) / vae.spec.snippet_length
        hidden = vae.policy_inputs(observation[None], elapsed.clamp(max=1.0)[None])
        tensors = [given[name] for name in layers_of(vae)]
        for number, (weight, bias) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
            # A batched product, as `vae.act` has it, is slower on a single observation.
            hidden = nn.functional.linear(torch.relu(hidden) if number else hidden, weight, bias)
        return vae.action.restore(hidden[0]) + vae.spec.reference(observation)


class ChunkAct(ActGraph):
    """Diffusion Policy and LDP: a chunk in open loop, which stays at its last action."""

    def __init__(self, model: ActionDiffusion | LatentChunks, action: ActionSpec) -> None:
        chunk = torch.zeros(model.spec.horizon, model.spec.action_size)
        super().__init__({"chunk": chunk, "time": torch.tensor(0.0)}, action)

    def action(self, given: Named) -> Tensor:
        """Return the action of the current step."""
        step = given["time"].long().clamp(max=len(self.example["chunk"]) - 1)
        return given["chunk"].index_select(0, step[None])[0]


class ClonedAct(ActGraph):
    """Behavior cloning: one network, whose weights are in the graph."""

    def __init__(self, model: ClonedPolicy, action: ActionSpec) -> None:
        spec = model.spec
        inputs = {"observations": torch.zeros(spec.history, spec.observation_size)}
        used = {"time": spec.episode_steps, "task": spec.tasks, "label": spec.labels}
        for name, size in used.items():
            if size:
                inputs[name] = torch.tensor(0.0 if name == "time" else 0)
        super().__init__(inputs, action)
        self.model = model

    def action(self, given: Named) -> Tensor:
        """Run the network on the history of observations."""
        state, none = given["observations"].flatten()[None], torch.zeros(1, dtype=torch.long)
        rest = (given[name][None] if name in given else none for name in ("time", "task", "label"))
        return self.model.act(state, *rest)[0]


def layers_of(vae: PolicyVae) -> dict[str, list[int]]:
    """Return the shapes of a generated network's tensors, as `nn.Linear` has them, by name."""
    shapes = vae.spec.policy_shape.parameter_shapes
    names = [f"layers.{n}.{part}" for n in range(len(shapes) // 2) for part in ("weight", "bias")]
    return dict(zip(names, shapes, strict=True))


def graphs_of(trained: TrainedPolicy, acting: Acting) -> dict[str, Graph]:
    """Return the graphs of a trained policy by name.

    Raises:
        ConfigError: Policies of its method cannot be exported.
    """
    action, steps = trained.source.action, acting.num_inference_steps
    if isinstance(trained, TrainedLwd):
        plan = NetworkPlan(trained.vae, trained.diffusion, steps)
        return {PLAN: plan, ACT: NetworkAct(trained.vae, action)}
    if isinstance(trained, TrainedChunks):
        return {PLAN: ChunkPlan(trained.model, steps), ACT: ChunkAct(trained.model, action)}
    if isinstance(trained, TrainedMlp):
        return {ACT: ClonedAct(trained.model, action)}
    raise ConfigError(
        f"a {type(trained).__name__} cannot be exported", "policies of lwd, dp, ldp and mlp can"
    )
