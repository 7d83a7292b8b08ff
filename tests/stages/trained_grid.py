"""A workspace with toy models for every policy, horizon and training seed of a grid, on PushT."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import EnvSpec, Episode, SourceSpec
from lwdctl.core.simulator_facts import PUSHT_ACTION, PUSHT_OBSERVATIONS, PUSHT_TASK
from lwdctl.envs.pusht import PushTSimulator
from lwdctl.pipeline.run_stage import resolve_inputs
from lwdctl.stages import STAGES
from lwdctl.stages.stage import StageContext

ENV = EnvSpec("pusht", (PUSHT_TASK,), {}, 30)
TINY = {"updates": 4, "batch_size": 4, "device": "cpu"}
GRID = {
    "policy": ["lwd", "dp", "mlp", "random"],
    "latent": ["sampled"],
    "horizon": [8, 16],
    "perturbation": [0.0, 25.0],
    "episodes": 2,
    "max_steps": 20,
    "num_envs": 2,
    "workers": 0,
    "device": "cpu",
}


Interrupted = Callable[..., AbstractContextManager[None]]
"""A context in which an evaluation is interrupted before a condition with these attributes."""


def do(command: str, workspace: Workspace, values: dict[str, Any], **given: Any) -> Artifact:
    stage = STAGES[command]
    config = from_mapping(stage.config, values)
    named = given.pop("named", {})
    inputs = resolve_inputs(stage, config, workspace, named)
    return stage.execute(config, inputs, StageContext(workspace, SilentProgress(), **given))


def write_snippets(workspace: Workspace) -> None:
    simulator = PushTSimulator(ENV, PUSHT_TASK)
    spec = SourceSpec(PUSHT_OBSERVATIONS, PUSHT_ACTION, ENV, ("slow", "fast"), "made")
    rng = np.random.default_rng(0)
    with workspace.begin("snippets", "made", config={}) as draft:
        writer = SnippetWriter(draft.path / SNIPPETS_PAYLOAD, spec)
        for seed in range(6):
            rows = [simulator.reset(seed)]
            actions = rng.uniform(100, 400, size=(30, 2)).astype(np.float32)
            rows += [simulator.step(action).observation for action in actions]
            seen = {
                item.name: np.stack([row[item.name] for row in rows]) for item in PUSHT_OBSERVATIONS
            }
            writer.append(
                Episode(
                    source=f"demo_{seed}",
                    observations={name: values[:-1] for name, values in seen.items()},
                    actions=actions,
                    rewards=np.full(30, seed, dtype=np.float32),
                    final_observation={name: values[-1] for name, values in seen.items()},
                    initial_state=simulator.initial_state(),
                    task=PUSHT_TASK,
                    label=("slow", "fast")[seed % 2],
                    split="validation" if seed == 5 else "train",
                )
            )
        draft.publish(writer.close())


def train_lwd(workspace: Workspace, length: int | str, seed: int, **diffusion: Any) -> None:
    name = f"l{length}s{seed}"
    vae = {**TINY, "snippet_length": length, "policy_width": 8, "decoder": "xs", "seed": seed}
    do("train-vae", workspace, vae, name=name)
    do("encode", workspace, {"device": "cpu"}, name=name, named={"vae": name})
    settings = {**TINY, "width": 16, "seed": seed, **diffusion}
    do("train-diffusion", workspace, settings, name=name, named={"latents": name})


def everything(artifact: Artifact) -> list[dict[str, Any]]:
    return [cell for cell in artifact.manifest.summary["results"] if cell["task"] == "all"]
