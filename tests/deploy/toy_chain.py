"""Untrained models of any architecture, published as the stages publish trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.files import save_model
from lwdctl.models.vae import PolicyVae, VaeSpec

LATENT = 16
SOURCE = SourceSpec(
    observations=(
        ObservationSpec("thing", 3),
        ObservationSpec("hand", 2),
        ObservationSpec("camera", 4, network=False),
    ),
    action=ActionSpec(2, "absolute", "meters", (-2000.0, -2000.0), (2000.0, 2000.0), 20.0, "hand"),
    env=EnvSpec("", ("push", "pull"), {}, 20),
    labels=("slow", "fast"),
    source_format="made",
)


@dataclass(frozen=True)
class ToyChain:
    """What a chain is made of."""

    denoiser: str = "mlp"
    prediction: str = "sample"
    time_input: bool = True
    relative: bool = True
    history: int = 2
    condition: tuple[str, ...] = ("state", "task", "label")


TOY = ToyChain()


def episodes():
    rng = np.random.default_rng(0)
    for number in range(4):
        length = 20 + number
        seen = {item.name: rng.normal(size=(length, item.size)) for item in SOURCE.observations}
        yield Episode(
            source=f"demo_{number}",
            observations={name: rows.astype(np.float32) for name, rows in seen.items()},
            actions=rng.normal(size=(length, 2)).astype(np.float32),
            task=SOURCE.env.tasks[number % 2],
            label=SOURCE.labels[number // 2],
        )


def models(toy: ToyChain):
    torch.manual_seed(7)
    hand = 3 if toy.relative else None
    keys = ("thing", "hand")
    vae = PolicyVae(VaeSpec(keys, 5, 2, hand, 8, LATENT, (12,), (16, 16), toy.time_input))
    state = 5 * toy.history if "state" in toy.condition else 0
    task, label = 2 * ("task" in toy.condition), 2 * ("label" in toy.condition)
    network = DenoiserSpec(
        toy.denoiser, LATENT, state + task + label, (4, 4), "xs", 32, 2, 0.0, "xs",
        observation_tokens=toy.history if state else 1, shared_condition=task + label,
    )  # fmt: skip
    diffusion = LatentDiffusion(
        DiffusionSpec(
            network,
            toy.prediction,
            50,
            toy.condition,
            state,
            task,
            label,
            history=toy.history if state else 1,
        )
    )
    with torch.no_grad():  # nothing that is zero or one at the start may stay so
        for module in (vae, diffusion):
            for value in module.parameters():
                value.add_(torch.randn_like(value), alpha=0.05)
        for normalizer in (vae.observation, vae.action, diffusion.latent, diffusion.state):
            normalizer.mean += torch.randn_like(normalizer.mean)
            normalizer.scale += torch.rand_like(normalizer.scale)
    if toy.prediction == "epsilon":
        _tame(diffusion, state)
    return vae.eval(), diffusion.eval()


def _tame(diffusion: LatentDiffusion, state: int) -> None:
    """Train a little: errors of predicted noise grow twentyfold at the noisiest step."""
    optimizer = torch.optim.Adam(diffusion.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(64, dtype=torch.long)
    for _ in range(150):
        latent = diffusion.latent.restore(torch.randn(64, LATENT, generator=generator))
        seen = diffusion.state.restore(torch.randn(64, state, generator=generator))
        loss = diffusion.loss(latent, diffusion.condition(seen, none, none), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def publish_chain(root: Path, toy: ToyChain):
    """Return the artifacts by kind."""
    workspace = Workspace(root)
    made = {}
    with workspace.begin("snippets", "toy", config={}) as draft:
        writer = SnippetWriter(draft.path / SNIPPETS_PAYLOAD, SOURCE)
        for episode in episodes():
            writer.append(episode)
        made["snippets"] = draft.publish(writer.close())
    vae, diffusion = models(toy)
    parent = "snippets"
    for kind, model in (("vae", vae), ("latents", None), ("diffusion", diffusion)):
        with workspace.begin(kind, "toy", config={}, inputs=[made[parent]]) as draft:
            if model is not None:
                save_model(draft.path, model.spec.to_mapping(), model, model)
            made[kind] = draft.publish({})
        parent = kind
    return made
