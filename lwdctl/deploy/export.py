"""Export of a trained policy: two ONNX graphs and a description, run without torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import whole_directory
from lwdctl.artifacts.manifest import now, software
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import LINEAGE
from lwdctl.core.errors import ConfigError, LwdctlError, MissingExtraError, install_extra
from lwdctl.core.installation import installed_version
from lwdctl.core.plain_text import encodable
from lwdctl.core.progress import Progress
from lwdctl.core.records import ActionSpec, FloatArray, ObservationSpec
from lwdctl.core.seeding import EVALUATION_SEED_START, derive_seed, generator
from lwdctl.deploy.graphs import OPSET, graphs_of
from lwdctl.deploy.runtime import (
    ExportedPolicy,
    PolicyDescription,
    load_onnxruntime,
    open_session,
    signature_of,
)
from lwdctl.evaluation.latency import time_policy
from lwdctl.methods.method import Acting, TrainedPolicy
from lwdctl.methods.trained import open_policy
from lwdctl.models.files import saved_method
from lwdctl.models.normalizer import Normalizer
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.single import SingleRobotPolicies

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of standardized actions, relative to the action where that is above 1.

Actions are standardized by mean and standard deviation of the demonstrations' actions. Random
inputs lead to actions of many standard deviations, of which single precision has no more digits.
"""
MOST_CLIPPED = 0.05
"""Fraction of action values that limits may clip on demonstrations without a warning: people reach
the limits in earnest too, and a policy then hovers around them."""
COMPARED_EPISODES = 4
COMPARED_STEPS = 100
RANDOM_SCALE = 2.0
"""Standard deviation of random observations, in those of the demonstrations' observations."""

Episode = tuple[EpisodePlan, Mapping[str, FloatArray]]
"""An episode and its observations by key, (time, obs), environment units."""


def export_policy(
    inputs: Mapping[str, Artifact], directory: Path, acting: Acting, progress: Progress
) -> PolicyDescription:
    """Export a trained policy; the directory is written completely or not at all.

    Args:
        inputs: Artifacts by type: `snippets`, and a `baseline` or `vae`, `latents`, `diffusion`.
        directory: Directory to write; it may exist when it is empty.
        acting: Action horizon and denoising steps.
        progress: Where to report.

    Raises:
        ConfigError: The directory is not empty, there are too many denoising steps, it is to be
            run in a way that is not exported, or policies of the method cannot be exported.
        MissingExtraError: onnx or onnxruntime is not installed.
        LwdctlError: The actions of the exported policy differ from those of the trained one.
    """
    checker = _load_checker()
    _check_empty(directory)
    method = saved_method(inputs["baseline"].path) if "baseline" in inputs else "lwd"
    trained = open_policy(method, inputs, torch.device("cpu"))
    trained.check(acting)
    plain = Acting(acting.horizon, num_inference_steps=acting.num_inference_steps)
    if acting != plain:
        raise ConfigError(
            "an exported policy samples with ddim and from noise, and executes the newest plan",
            "leave out all settings but horizon and num_inference_steps",
        )
    data = SnippetStore.open(inputs["snippets"].path)
    with whole_directory(directory) as unfinished:
        graphs = graphs_of(trained, acting)
        progress.message(f"writing the graphs: {', '.join(graphs)}")
        for name, graph in graphs.items():
            path = unfinished / f"{name}.onnx"
            graph.write(path)
            checker.check_model(str(path))
        description = _describe(inputs, method, trained, acting, unfinished)
        description.write(unfinished)
        progress.message("comparing with the trained policy")
        parity = measure_parity(unfinished, trained, data, acting)
        _check_difference(parity)
        if warning := _clipping(parity["demonstrations"], description.action):
            progress.message(warning)
        replace(description, parity=parity).write(unfinished)
    return PolicyDescription.read(directory)


def _load_checker() -> Any:
    load_onnxruntime()
    try:
        return importlib.import_module("onnx.checker")
    except ImportError as error:
        raise MissingExtraError(
            "exporting needs the package 'onnx', which is not installed",
            install_extra("onnx"),
        ) from error


def _check_empty(directory: Path) -> None:
    if encodable(str(directory)) != str(directory):
        raise ConfigError(
            f"{directory} is no UTF-8 text, and ONNX takes no other paths",
            "name another directory with --output",
        )
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty", "name another directory with --output")


def _check_difference(parity: Mapping[str, Any]) -> None:
    for inputs in ("demonstrations", "random_inputs"):
        for side in ("before_clipping", "after_clipping"):
            found = parity[inputs][side]
            if not found <= LARGEST_DIFFERENCE:
                raise LwdctlError(
                    f"the exported policy differs from the trained one by {found:.2g} standard"
                    f" deviations of an action, more than {LARGEST_DIFFERENCE:g}"
                    f" ({inputs.replace('_', ' ')}, {side.replace('_', ' ')})",
                    "nothing was written; try more --num-inference-steps or another version of"
                    " onnxruntime",
                )


def _clipping(found: Mapping[str, Any], action: ActionSpec) -> str:
    """Return a warning where limits change what the policy does on demonstrations, else ""."""
    if found["clipped"] <= MOST_CLIPPED:
        return ""
    return (
        f"warning: the action limits (source: {action.limits}) clip {found['clipped']:.1%} of the"
        f" policy's action values on demonstrations, by up to {found['largest_clipping']:.3g}:"
        " compare them with the robot's, and ingest again with --action-limits"
    )


def _describe(
    inputs: Mapping[str, Artifact],
    method: str,
    trained: TrainedPolicy,
    acting: Acting,
    directory: Path,
) -> PolicyDescription:
    source, keys, horizon = trained.source, trained.observation_keys, trained.horizon(acting)
    if horizon == "episode":  # a network acts on for as long as an episode takes, a chunk ends
        horizon = trained.snippet_length if trained.has_chunks else None
    sizes = zip(keys, source.sizes(keys), strict=True)
    graphs = {path.stem: signature_of(open_session(path, 1)) for path in directory.glob("*.onnx")}
    history = [
        found["inputs"]["observations"]["shape"][0]
        for found in graphs.values()
        if "observations" in found["inputs"]
    ]
    return PolicyDescription(
        method=method,
        observations=tuple(ObservationSpec(name, size) for name, size in sizes),
        action=source.action,
        history=history[0] if history else 1,
        horizon=horizon,
        condition=trained.condition,
        tasks=source.env.tasks,
        labels=source.labels,
        num_inference_steps=trained.cost(acting).first_calls,
        opset=OPSET,
        graphs=dict(sorted(graphs.items(), reverse=True)),
        provenance=_provenance(inputs),
        parity={},
        files={},
    )


def _provenance(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    versions = {name: installed_version(name) for name in ("onnx", "onnxruntime")}
    policy = inputs["baseline" if "baseline" in inputs else "diffusion"]
    return {
        "artifacts": {
            name: {"reference": inputs[name].reference, "digest": inputs[name].digest}
            for name in (*LINEAGE, "baseline")
            if name in inputs
        },
        "trained": policy.manifest.provenance,
        "exported": {**software(), "runtime": versions, "time": now()},
    }


def torch_noise(plan: EpisodePlan, replan: int, size: int) -> FloatArray:
    """Return the noise (latent,) that the trained policy starts its n-th re-plan from."""
    seed = derive_seed("latent", plan.task, plan.seed, replan)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    values: FloatArray = noise.numpy()
    return values


def act_with_noise(policy: ExportedPolicy, episode: Episode) -> tuple[FloatArray, FloatArray]:
    """Run an exported policy over the observations of an episode with the trained policy's noise.

    Returns:
        Actions (time, action) before clipping, and clipped to the action's limits.
    """
    plan, observations = episode
    policy.reset(plan.seed, plan.task, plan.label)
    actions, unclipped = [], []
    for step in range(min(len(rows) for rows in observations.values())):
        policy.observe({key: rows[step] for key, rows in observations.items()})
        if policy.due:
            noise = torch_noise(plan, policy.replans, policy.description.noise_size)
            policy.adopt(policy.replan(policy.request(noise)))
        actions.append(policy.step())
        unclipped.append(policy.unclipped)
    return np.stack(unclipped), np.stack(actions)


def measure_parity(
    directory: Path, trained: TrainedPolicy, data: SnippetStore, acting: Acting
) -> dict[str, Any]:
    """Compare an exported policy with the trained one on demonstrations and on random inputs.

    Returns:
        For both kinds of inputs the number of compared steps, the largest differences before and
        after clipping, in the unit of `LARGEST_DIFFERENCE`, the fraction of the trained policy's
        action values that the limits clip, and by how much at most, in the action's units; for
        both policies the median milliseconds of a control step and of a re-plan.
    """
    exported = ExportedPolicy(directory)
    policy, limits = trained.batch_policy(acting, 1), exported.description.action
    normalizer = Normalizer(data.spec.action.size)
    normalizer.standardize(data.moments(("action",), "train"))
    mean, scale = normalizer.mean.numpy(), normalizer.scale.numpy()
    one = np.ones(1, dtype=np.bool_)

    def compare(episodes: Sequence[Episode]) -> dict[str, Any]:
        steps, largest, changed, excess = 0, [0.0, 0.0], 0, 0.0
        for plan, observations in episodes:
            found = act_with_noise(exported, (plan, observations))
            policy.reset([plan])
            rows = [
                policy.act({key: rows[step : step + 1] for key, rows in observations.items()}, one)
                for step in range(len(found[0]))
            ]
            wanted = np.concatenate(rows)
            clipped = np.clip(wanted, limits.low, limits.high).astype(np.float32)
            for side, expected in enumerate((wanted, clipped)):
                unit = np.maximum(scale, np.abs(expected - mean))
                difference = float((np.abs(found[side] - expected) / unit).max())
                largest[side] = max(largest[side], difference)
            steps += len(wanted)
            beyond = np.abs(wanted - clipped)
            changed += int(np.count_nonzero(beyond))
            excess = max(excess, float(beyond.max()))
        return {
            "steps": steps,
            "before_clipping": largest[0],
            "after_clipping": largest[1],
            "clipped": changed / (steps * data.spec.action.size),
            "largest_clipping": excess,
        }

    recorded = _demonstrations(data, trained.observation_keys)
    device, batch = torch.device("cpu"), SingleRobotPolicies(exported, 1)
    timed = {
        "torch": time_policy(policy, *recorded[0], device).summary(),
        "exported": time_policy(batch, *recorded[0], device).summary(),
    }
    return {
        "demonstrations": compare(recorded),
        "random_inputs": compare(_random_inputs(data, trained.observation_keys)),
        "torch_threads": torch.get_num_threads(),
        "exported_threads": 1,
        **{
            f"{side}_{what}_ms": _rounded(timed[side][f"latency_{what}_ms"])
            for what in ("step", "replan")
            for side in timed
        },
    }


def _demonstrations(data: SnippetStore, keys: tuple[str, ...]) -> list[Episode]:
    """Return the longest demonstration and some others, at most `COMPARED_STEPS` of each."""
    table, spec = data.episodes, data.spec
    others = np.linspace(0, len(table.length) - 1, COMPARED_EPISODES - 1).round().astype(int)
    episodes: list[Episode] = []
    for number, index in enumerate(dict.fromkeys([int(table.length.argmax()), *others.tolist()])):
        start, length = int(table.start[index]), min(COMPARED_STEPS, int(table.length[index]))
        task = int(table.task[index])
        plan = EpisodePlan(
            number,
            EVALUATION_SEED_START + number,
            spec.env.tasks[task] if task >= 0 else "",
            spec.label_name(int(table.label[index])),
        )
        episodes.append((plan, {key: data.read(key, start, start + length) for key in keys}))
    return episodes


def _random_inputs(data: SnippetStore, keys: tuple[str, ...]) -> list[Episode]:
    """Return episodes of independent normal observations, wider than the demonstrations'."""
    rng, spec = generator("export-parity"), data.spec
    episodes: list[Episode] = []
    for number in range(COMPARED_EPISODES):
        observations = {}
        for key in keys:
            moments = data.moments((key,), "train")
            normal = rng.standard_normal((COMPARED_STEPS, len(moments.mean)))
            values = moments.mean + RANDOM_SCALE * moments.deviation * normal
            observations[key] = values.astype(np.float32)
        task, label = (
            names[int(rng.integers(len(names)))] if names else ""
            for names in (spec.env.tasks, spec.labels)
        )
        plan = EpisodePlan(number, EVALUATION_SEED_START + number, task, label)
        episodes.append((plan, observations))
    return episodes


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else float(f"{milliseconds:.3g}")
