"""A trained chain to files that run without torch: ONNX graphs, constants, a description."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.provenance import now, software
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError, LwdctlError, MissingExtraError
from lwdctl.core.installation import installed_version
from lwdctl.core.progress import Progress
from lwdctl.core.records import ObservationSpec
from lwdctl.deploy.description import CONSTANTS, DECODER, DENOISER, PolicyDescription
from lwdctl.deploy.networks import load_onnxruntime
from lwdctl.deploy.parity import LARGEST_DIFFERENCE, Trained, measure_parity
from lwdctl.models.diffusion import (
    LatentDiffusion,
    check_num_inference_steps,
    inference_timesteps,
    sampling_schedule,
)
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.loading import load_diffusion, load_vae

OPSET = 17
KINDS = ("snippets", "vae", "latents", "diffusion")


@dataclass(frozen=True)
class ExportSettings:
    """What may be chosen when a policy is exported.

    Attributes:
        horizon: Executed steps between two plans, 0 for one plan all episode; None takes the
            snippet length.
        num_inference_steps: DDIM steps per plan.
    """

    horizon: int | None = None
    num_inference_steps: int = 10


def export_policy(
    inputs: Mapping[str, Artifact], directory: Path, settings: ExportSettings, progress: Progress
) -> PolicyDescription:
    """Export the policy of a trained chain; the directory appears whole or not at all.

    Args:
        inputs: The chain's artifacts by kind: snippets, vae, latents and diffusion.
        directory: What to make; it may exist when it is empty.
        settings: Horizon and denoising steps.
        progress: Where to report.

    Raises:
        ConfigError: The directory holds something, or too many denoising steps.
        MissingExtraError: onnx or onnxruntime is not installed.
        LwdctlError: The exported policy does not act like the trained one.
    """
    checker = _load_checker()
    _refuse_occupied(directory)
    device = torch.device("cpu")
    vae = load_vae(inputs["vae"], device)
    diffusion = load_diffusion(inputs["diffusion"], device)
    store = SnippetStore.open(inputs["snippets"].path)
    description = _describe(inputs, vae, diffusion, store, settings)
    trained = Trained(vae, diffusion, store, settings.num_inference_steps)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
    try:
        progress.message("writing the graphs of denoiser and decoder")
        _write_graphs(partial, vae, diffusion)
        for name in (DENOISER, DECODER):
            checker.check_model(str(partial / name))
        (partial / CONSTANTS).write_bytes(save(_constants(vae, diffusion, description)))
        description.write(partial)
        progress.message("comparing with the trained policy on a demonstration")
        parity = measure_parity(partial, trained)
        _refuse_difference(parity)
        replace(description, parity=parity).write(partial)
        partial.chmod(0o755)  # temporary directories are for their owner alone
        partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PolicyDescription.read(directory)


def _load_checker() -> Any:
    load_onnxruntime()
    try:
        return importlib.import_module("onnx.checker")
    except ImportError as error:
        raise MissingExtraError(
            "exporting needs the package 'onnx', which is not installed",
            "pip install 'lwdctl[onnx]'",
        ) from error


def _refuse_occupied(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"{directory} exists already", "name another with --output")


def _refuse_difference(parity: Mapping[str, Any]) -> None:
    found = parity["largest_action_difference"]
    if not found <= LARGEST_DIFFERENCE:
        raise LwdctlError(
            f"the exported policy differs from the trained one by {found:.2g} standard deviations"
            f" of an action, more than {LARGEST_DIFFERENCE:g}",
            "nothing was written; more --num-inference-steps or another onnxruntime may help",
        )


def _describe(
    inputs: Mapping[str, Artifact],
    vae: PolicyVae,
    diffusion: LatentDiffusion,
    store: SnippetStore,
    settings: ExportSettings,
) -> PolicyDescription:
    spec, source = vae.spec, store.spec
    check_num_inference_steps(diffusion.spec.num_train_timesteps, settings.num_inference_steps)
    keys = spec.observation_keys
    sizes = zip(keys, source.sizes(keys), strict=True)
    return PolicyDescription(
        observations=tuple(ObservationSpec(name, size) for name, size in sizes),
        action=source.action,
        history=diffusion.spec.history,
        snippet_length=spec.snippet_length,
        horizon=spec.snippet_length if settings.horizon is None else settings.horizon,
        time_input=spec.time_input,
        reference_start=spec.reference_start if spec.action_target == "relative" else -1,
        layers=spec.policy_shape.layers,
        latent_size=spec.latent_size,
        condition=diffusion.spec.condition,
        tasks=source.env.tasks,
        labels=source.labels,
        prediction=diffusion.spec.prediction,
        sampler="ddim",
        visited=tuple(inference_timesteps(diffusion.spec, settings.num_inference_steps)),
        provenance=_provenance(inputs),
        parity={},
        files={},
    )


def _provenance(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    versions = {name: installed_version(name) for name in ("onnx", "onnxruntime", "safetensors")}
    return {
        "artifacts": {
            kind: {"reference": inputs[kind].reference, "digest": inputs[kind].digest}
            for kind in KINDS
        },
        "trained": inputs["diffusion"].manifest.provenance,
        "exported": {**software(), "runtime": versions, "opset": OPSET, "time": now()},
    }


class _Denoiser(nn.Module):
    """One denoising step, the building of the condition included."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor, step: Tensor, *parts: Tensor) -> Tensor:
        """Map standardized latent (1, latent), step (1,) and condition to (1, latent)."""
        given = dict(zip(self.model.spec.condition, parts, strict=True))
        none = torch.zeros(1, dtype=torch.long)
        state = given.get("state", latent.new_zeros(1, 0))
        condition = self.model.condition(state, given.get("task", none), given.get("label", none))
        answer: Tensor = self.model.denoiser(latent, step, condition)
        return answer


class _Decoder(nn.Module):
    """Standardized latent to weight vector."""

    def __init__(self, vae: PolicyVae, model: LatentDiffusion) -> None:
        super().__init__()
        self.decoder, self.latent = vae.decoder, model.latent

    def forward(self, latent: Tensor) -> Tensor:
        """Map (1, latent) to (1, weight)."""
        answer: Tensor = self.decoder(self.latent.restore(latent))
        return answer


def _write_graphs(directory: Path, vae: PolicyVae, diffusion: LatentDiffusion) -> None:
    latent, index = torch.zeros(1, vae.spec.latent_size), torch.zeros(1, dtype=torch.long)
    every = {"state": torch.zeros(1, diffusion.spec.state_size), "task": index, "label": index}
    condition = {name: every[name] for name in diffusion.spec.condition}
    inputs = {"latent": latent, "step": index, **condition}
    _write_graph(_Denoiser(diffusion), inputs, "prediction", directory / DENOISER)
    _write_graph(_Decoder(vae, diffusion), {"latent": latent}, "weights", directory / DECODER)


def _write_graph(module: nn.Module, inputs: Mapping[str, Tensor], output: str, path: Path) -> None:
    with warnings.catch_warnings():
        # The newer exporter needs onnxscript; shapes are fixed, so tracing loses nothing.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=False,
        )


def _constants(
    vae: PolicyVae, diffusion: LatentDiffusion, description: PolicyDescription
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    action, device = description.action, torch.device("cpu")
    schedule = sampling_schedule("ddpm", diffusion.spec, description.visited, device)
    return {
        "observation_mean": vae.observation.mean.numpy(),
        "observation_scale": vae.observation.scale.numpy(),
        "action_mean": vae.action.mean.numpy(),
        "action_scale": vae.action.scale.numpy(),
        "action_low": np.array(action.low, dtype=np.float32),
        "action_high": np.array(action.high, dtype=np.float32),
        "signal_shares": schedule.alphas_cumprod.numpy(),
    }
