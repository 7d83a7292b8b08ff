"""`analyze ...`: open what an analysis reads, run it, and publish its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lwdctl.analysis.analyses import analysis_of
from lwdctl.analysis.evaluations import read_evaluation
from lwdctl.analysis.sections import Findings
from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.described import open_or_describe
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import RolloutConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import SimulatorError
from lwdctl.evaluation.checks import check_fresh_seeds
from lwdctl.methods.lwd import METHOD
from lwdctl.methods.method import TrainedPolicy
from lwdctl.methods.trained import open_policy
from lwdctl.models.chunks import LatentChunks
from lwdctl.models.files import saved_method
from lwdctl.models.vae import PolicyVae, load_vae
from lwdctl.stages.stage import LOST, StageContext
from lwdctl.training import checkpoint
from lwdctl.training.loop import choose_device

Inputs = Mapping[str, Artifact]


def run(config: Any, inputs: Inputs, context: StageContext) -> Artifact:
    """Run the analysis that `config` belongs to and publish an `analysis` artifact.

    Raises:
        LwdctlError: The analysis cannot be made of these inputs.
        SimulatorError: Episodes were lost to simulator errors (after publishing the others).
    """
    analysis, primary = analysis_of(config), list(inputs.values())[-1]
    device = choose_device(getattr(config, "device", "cpu"))
    module, _, name = analysis.function.partition(":")
    function: Callable[..., Findings] = getattr(import_module(module), name)
    if "trained" in analysis.arguments:
        for item in lineage.trace([primary], context.workspace.root)[0].values():
            if item.type == "snippets":
                recorded = open_or_describe(item.path).episodes.seed
                check_fresh_seeds(recorded, config.seed, config.episodes)
    with context.workspace.begin(
        "analysis",
        context.name or primary.name,
        config=to_mapping(config),
        inputs=list(inputs.values()),
    ) as output:
        opened = {
            argument: _open(argument, inputs, context.workspace.root, device)
            for argument in analysis.arguments
        }
        findings = function(config, progress=context.progress, **opened)
        findings.save(output.path, f"{findings.title}: {primary.reference}")
        summary = {**findings.summary, **({LOST: dict(findings.lost)} if findings.lost else {})}
        artifact = output.publish(summary, seed=config.seed, device=str(device))
    if findings.lost and isinstance(config, RolloutConfig):
        raise SimulatorError(
            f"{sum(findings.lost.values())} episodes were lost to simulator errors; the others are"
            f" in {artifact.reference}",
            f"lwdctl analyze {analysis.name}",
        )
    return artifact


def _open(argument: str, inputs: Inputs, root: Path, device: torch.device) -> Any:
    """Open an argument of an analysis, by its name in the table."""
    match argument:
        case "snippets":
            return SnippetStore.open(inputs["snippets"].path)
        case "vae":
            return load_vae(inputs["vae"], device)
        case "latents":
            return LatentStore.open(inputs["latents"].path)
        case "evaluation":
            return read_evaluation(inputs["evaluation"], root)
        case "policy":
            return METHOD.open(inputs, device)
        case "snapshots":
            return _snapshots(inputs["vae"], device)
        case "trained":
            return _trained(inputs, device)
    raise ValueError(f"no analysis takes '{argument}'")


def _trained(
    inputs: Inputs, device: torch.device
) -> tuple[TrainedPolicy, list[int], Callable[[int], None]]:
    """Return a policy, the training steps of its snapshots, and what loads a snapshot into it."""
    if "baseline" in inputs:
        path = inputs["baseline"].path
        policy = open_policy(saved_method(path), inputs, device)
        model = policy.model
        if isinstance(model, LatentChunks):  # snapshots are those of its denoiser
            model, path = model.diffusion, path / "diffusion"
    else:
        path, policy = inputs["diffusion"].path, METHOD.open(inputs, device)
        model = policy.diffusion
    load = partial(checkpoint.load_snapshot, model, path)
    return policy, checkpoint.snapshot_updates(path), load


def _snapshots(vae: Artifact, device: torch.device) -> Iterator[tuple[int, PolicyVae]]:
    """Yield the training step and the VAE of every snapshot that its training kept."""
    for step in checkpoint.snapshot_updates(vae.path):
        model = load_vae(vae, device)
        checkpoint.load_snapshot(model, vae.path, step)
        yield step, model
