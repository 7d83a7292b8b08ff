"""Export of a trained policy: ONNX graphs, constants and a description, run without torch."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import now, software
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import LINEAGE
from lwdctl.core.errors import ConfigError, LwdctlError, MissingExtraError
from lwdctl.core.installation import installed_version
from lwdctl.core.progress import Progress
from lwdctl.core.records import ActionSpec, FloatArray, ObservationSpec
from lwdctl.core.seeding import EVALUATION_SEED_START, derive_seed
from lwdctl.deploy.runtime import (
    CONSTANTS,
    DECODER,
    DENOISER,
    ExportedPolicy,
    PolicyDescription,
    load_onnxruntime,
)
from lwdctl.evaluation.latency import time_policy
from lwdctl.methods.lwd import METHOD, TrainedLwd
from lwdctl.methods.method import Acting
from lwdctl.models.diffusion import LatentDiffusion, inference_timesteps
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.single import SingleRobotPolicies

OPSET = 17
LARGEST_DIFFERENCE = 1e-3
"""Largest difference of an action, in standard deviations of the demonstrations' actions."""
COMPARED_STEPS = 300


def export_policy(
    inputs: Mapping[str, Artifact], directory: Path, acting: Acting, progress: Progress
) -> PolicyDescription:
    """Export a trained policy; the directory is written completely or not at all.

    Args:
        inputs: Artifacts by type: snippets, vae, latents and diffusion.
        directory: Directory to write; it may exist when it is empty.
        acting: Action horizon and denoising steps.
        progress: Where to report.

    Raises:
        ConfigError: The directory is not empty, there are too many denoising steps, or something
            else than DDIM is to run.
        MissingExtraError: onnx or onnxruntime is not installed.
        LwdctlError: The actions of the exported policy differ from those of the trained one.
    """
    checker = _load_checker()
    _check_empty(directory)
    trained = METHOD.open(inputs, torch.device("cpu"))
    trained.check(acting)
    plain = Acting(acting.horizon, num_inference_steps=acting.num_inference_steps)
    if acting != plain:
        raise ConfigError(
            "an exported policy samples with ddim and from noise",
            "leave sampler, latent and warm_start out",
        )
    vae, diffusion = trained.vae, trained.diffusion
    data = SnippetStore.open(inputs["snippets"].path)
    description = _describe(inputs, trained, acting)
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
    try:
        progress.message("writing the graphs of denoiser and decoder")
        _write_graphs(unfinished, vae, diffusion)
        for name in (DENOISER, DECODER):
            checker.check_model(str(unfinished / name))
        (unfinished / CONSTANTS).write_bytes(save(_constants(vae, diffusion, description.action)))
        description.write(unfinished)
        progress.message("comparing with the trained policy on a demonstration")
        parity = measure_parity(unfinished, trained, data, acting)
        _check_difference(parity)
        replace(description, parity=parity).write(unfinished)
        unfinished.chmod(0o755)  # only the owner can read a temporary directory
        unfinished.replace(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
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


def _check_empty(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty", "name another directory with --output")


def _check_difference(parity: Mapping[str, Any]) -> None:
    found = parity["largest_action_difference"]
    if not found <= LARGEST_DIFFERENCE:
        raise LwdctlError(
            f"the exported policy differs from the trained one by {found:.2g} standard deviations"
            f" of an action, more than {LARGEST_DIFFERENCE:g}",
            "nothing was written; try more --num-inference-steps or another version of onnxruntime",
        )


def _describe(
    inputs: Mapping[str, Artifact], trained: TrainedLwd, acting: Acting
) -> PolicyDescription:
    spec, diffusion, source = trained.vae.spec, trained.diffusion.spec, trained.source
    keys, horizon = spec.observation_keys, trained.horizon(acting)
    sizes = zip(keys, source.sizes(keys), strict=True)
    return PolicyDescription(
        observations=tuple(ObservationSpec(name, size) for name, size in sizes),
        action=source.action,
        history=diffusion.history,
        snippet_length=spec.snippet_length,
        horizon=None if horizon == "episode" else horizon,
        time_input=spec.time_input,
        reference_start=spec.reference_start,
        layers=spec.policy_shape.layers,
        latent_size=spec.latent_size,
        condition=diffusion.condition,
        tasks=source.env.tasks,
        labels=source.labels,
        prediction=diffusion.prediction,
        sampler=acting.sampler,
        timesteps=tuple(inference_timesteps(diffusion, acting.num_inference_steps)),
        provenance=_provenance(inputs),
        parity={},
        files={},
    )


def _provenance(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    versions = {name: installed_version(name) for name in ("onnx", "onnxruntime", "safetensors")}
    return {
        "artifacts": {
            name: {"reference": inputs[name].reference, "digest": inputs[name].digest}
            for name in LINEAGE
        },
        "trained": inputs["diffusion"].manifest.provenance,
        "exported": {**software(), "runtime": versions, "opset": OPSET, "time": now()},
    }


class _Denoiser(nn.Module):
    """One call of the denoiser, with the condition built inside the graph."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor, step: Tensor, *parts: Tensor) -> Tensor:
        """Map normalized latent (1, latent), timestep (1,) and condition to (1, latent)."""
        given = dict(zip(self.model.spec.condition, parts, strict=True))
        none = torch.zeros(1, dtype=torch.long)
        state = given.get("state", latent.new_zeros(1, 0))
        condition = self.model.condition(state, given.get("task", none), given.get("label", none))
        predicted: Tensor = self.model.denoiser(latent, step, condition)
        return predicted


class _Decoder(nn.Module):
    """Maps a normalized latent to a weight vector."""

    def __init__(self, vae: PolicyVae, model: LatentDiffusion) -> None:
        super().__init__()
        self.decoder, self.latent = vae.decoder, model.latent

    def forward(self, latent: Tensor) -> Tensor:
        """Map (1, latent) to (1, weight)."""
        weights: Tensor = self.decoder(self.latent.restore(latent))
        return weights


def _write_graphs(directory: Path, vae: PolicyVae, diffusion: LatentDiffusion) -> None:
    latent, index = torch.zeros(1, vae.spec.latent_size), torch.zeros(1, dtype=torch.long)
    every = {"state": torch.zeros(1, diffusion.spec.state_size), "task": index, "label": index}
    condition = {name: every[name] for name in diffusion.spec.condition}
    inputs = {"latent": latent, "step": index, **condition}
    _write_graph(_Denoiser(diffusion), inputs, "prediction", directory / DENOISER)
    _write_graph(_Decoder(vae, diffusion), {"latent": latent}, "weights", directory / DECODER)


def _write_graph(module: nn.Module, inputs: Mapping[str, Tensor], output: str, path: Path) -> None:
    with warnings.catch_warnings():
        # The newer exporter needs onnxscript; tracing is exact here, because shapes are fixed.
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
    vae: PolicyVae, diffusion: LatentDiffusion, action: ActionSpec
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return {
        "observation_mean": vae.observation.mean.numpy(),
        "observation_scale": vae.observation.scale.numpy(),
        "action_mean": vae.action.mean.numpy(),
        "action_scale": vae.action.scale.numpy(),
        "action_low": np.array(action.low, dtype=np.float32),
        "action_high": np.array(action.high, dtype=np.float32),
        "alphas_cumprod": diffusion.alphas_cumprod.numpy(),
    }


def torch_noise(plan: EpisodePlan, replan: int, size: int) -> FloatArray:
    """Return the noise (latent,) that the trained policy starts its n-th re-plan from."""
    seed = derive_seed("latent", plan.task, plan.seed, replan)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    values: FloatArray = noise.numpy()
    return values


def act_with_noise(
    policy: ExportedPolicy, plan: EpisodePlan, observations: Mapping[str, FloatArray]
) -> FloatArray:
    """Run an exported policy over observations (time, obs) with the trained policy's noise.

    Returns:
        (time, action), clipped to the action's limits.
    """
    policy.reset(plan.seed, plan.task, plan.label)
    actions, replans = [], 0
    for step in range(min(len(rows) for rows in observations.values())):
        policy.observe({key: rows[step] for key, rows in observations.items()})
        if policy.due:
            noise = torch_noise(plan, replans, policy.description.latent_size)
            policy.adopt(policy.replan(policy.request(noise)))
            replans += 1
        actions.append(policy.step())
    return np.stack(actions)


def measure_parity(
    directory: Path, trained: TrainedLwd, data: SnippetStore, acting: Acting
) -> dict[str, Any]:
    """Compare an exported policy with the trained one on the longest demonstration.

    Returns:
        Compared steps; the largest difference of an action in standard deviations; and for
        both policies the median milliseconds of a control step and of a re-plan.
    """
    exported = ExportedPolicy(directory)
    description = exported.description
    policy = trained.batch_policy(acting, 1)
    plan, observations = _demonstration(data, trained.observation_keys)
    actual = act_with_noise(exported, plan, observations)
    policy.reset([plan])
    one = np.ones(1, dtype=np.bool_)
    rows = [
        policy.act({key: rows[step : step + 1] for key, rows in observations.items()}, one)[0]
        for step in range(len(actual))
    ]
    expected = np.clip(np.stack(rows), description.action.low, description.action.high)
    scale = trained.vae.action.scale.numpy()
    device = torch.device("cpu")
    batch = SingleRobotPolicies(exported, 1)
    timed = {
        "torch": time_policy(policy, plan, observations, device).summary(),
        "exported": time_policy(batch, plan, observations, device).summary(),
    }
    return {
        "steps": len(actual),
        "largest_action_difference": float(np.abs((actual - expected) / scale).max()),
        "torch_threads": torch.get_num_threads(),
        "exported_threads": 1,
        **{
            f"{side}_{what}_ms": _rounded(timed[side][f"latency_{what}_ms"])
            for what in ("step", "replan")
            for side in timed
        },
    }


def _demonstration(
    data: SnippetStore, keys: tuple[str, ...]
) -> tuple[EpisodePlan, Mapping[str, FloatArray]]:
    """Return the longest demonstration as an episode, at most `COMPARED_STEPS` long."""
    table, spec = data.episodes, data.spec
    index = int(table.length.argmax())
    start, length = int(table.start[index]), min(COMPARED_STEPS, int(table.length[index]))
    task, label = int(table.task[index]), int(table.label[index])
    plan = EpisodePlan(
        0,
        EVALUATION_SEED_START,
        spec.env.tasks[task] if task >= 0 else "",
        spec.label_name(label),
    )
    return plan, {key: data.read(key, start, start + length) for key in keys}


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else float(f"{milliseconds:.3g}")
