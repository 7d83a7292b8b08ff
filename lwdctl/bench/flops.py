"""FLOPs per environment step of every network size, counted without training.

The networks are on torch's meta device: they have shapes but no weights, so that the largest ones
fit on any machine. Sizes are those of the paper's tables (appendix).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lwdctl.configs import DenoiserSize
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import ConditionPart, DiffusionSpec, LatentDiffusion
from lwdctl.models.flops import count_parameters, denoiser_flops, matmul_flops
from lwdctl.models.generated import DECODER_SIZES, PolicyDecoder, PolicyShape
from lwdctl.models.unet import UNET_SIZES

HISTORY = 2
LATENT = 256
LAYOUT = (16, 16)
WIDTHS = (128, 256, 512)
CHUNKS = (32, 128)


@dataclass(frozen=True)
class Sizes:
    """What the counts depend on.

    Attributes:
        observation: Components of the observation.
        action: Components of the action.
        tasks: Tasks that the policy is conditioned on (one-hot); 1 for no condition.
        episode: Steps of an episode.
        num_inference_steps: Denoiser calls per re-plan.
    """

    observation: int = 39
    action: int = 4
    tasks: int = 10
    episode: int = 500
    num_inference_steps: int = 10

    @property
    def task_inputs(self) -> int:
        """Components of the condition that hold the task."""
        return self.tasks if self.tasks > 1 else 0


@dataclass(frozen=True)
class Count:
    """One row: a policy and what it costs.

    Attributes:
        policy: lwd, dp or mlp.
        network: Its sizes, for people.
        horizon: Action horizon, the steps executed per re-plan; None without re-plans.
        denoiser: FLOPs of one denoiser call.
        per_step: FLOPs per environment step over a whole episode.
        parameters: Trained weights of the networks that take part.
        control_parameters: Weights of the network that runs at every step.
    """

    policy: str
    network: str
    horizon: int | None
    denoiser: int
    per_step: float
    parameters: int
    control_parameters: int = 0


def count_all(sizes: Sizes) -> list[Count]:
    """Count LWD's generated policies, Diffusion Policy's U-Nets and plain MLPs of every size.

    As in the paper, LWD re-plans once per episode, Diffusion Policy after half of its chunk.
    """
    lwd = [_lwd(sizes, width, architecture) for architecture in ("mlp", "unet") for width in WIDTHS]
    dp = [_dp(sizes, name, chunk) for name in UNET_SIZES for chunk in CHUNKS]
    return [*lwd, *dp, *(_mlp(sizes, width) for width in WIDTHS)]


def _lwd(sizes: Sizes, width: int, architecture: str) -> Count:
    shape = PolicyShape(sizes.observation, (width, width), sizes.action)
    decoder = PolicyDecoder(shape, LATENT, DECODER_SIZES["xs"])
    condition = HISTORY * sizes.observation + sizes.task_inputs
    denoiser = DenoiserSpec(architecture, LATENT, condition, LAYOUT, "m", 512, 3, 0.0)
    model = _diffusion(denoiser, sizes)
    one = denoiser_flops(model)
    replan = sizes.num_inference_steps * one + matmul_flops(decoder)
    name = "residual MLP 512" if architecture == "mlp" else "U-Net m"
    return Count(
        "lwd",
        f"generated {width} x {width}, denoiser {name}, decoder xs",
        sizes.episode,
        one,
        replan / sizes.episode + shape.flops,
        count_parameters(model.denoiser) + count_parameters(decoder),
        shape.weight_count,
    )


def _dp(sizes: Sizes, name: DenoiserSize, chunk: int) -> Count:
    multiple, executed = UNET_SIZES[name].multiple, chunk // 2
    length = math.ceil(chunk / multiple) * multiple
    condition = HISTORY * sizes.observation + sizes.task_inputs
    layout = (length, sizes.action)
    denoiser = DenoiserSpec("unet", length * sizes.action, condition, layout, name, 0, 0, 0.0)
    model = _diffusion(denoiser, sizes)
    one = denoiser_flops(model)
    replans = math.ceil(sizes.episode / executed)
    per_step = replans * sizes.num_inference_steps * one / sizes.episode
    network = f"U-Net {name}, predicts {length}"
    return Count("dp", network, executed, one, per_step, count_parameters(model.denoiser))


def _mlp(sizes: Sizes, width: int) -> Count:
    shape = PolicyShape(sizes.observation + sizes.task_inputs, (width, width), sizes.action)
    count = shape.weight_count
    return Count("mlp", f"{width} x {width}", None, 0, shape.flops, count, count)


def _diffusion(denoiser: DenoiserSpec, sizes: Sizes) -> LatentDiffusion:
    state = HISTORY * sizes.observation
    condition: tuple[ConditionPart, ...] = ("state", "task")
    spec = DiffusionSpec(denoiser, "sample", 100, condition, state, sizes.task_inputs, 0)
    with torch.device("meta"):
        return LatentDiffusion(spec)
