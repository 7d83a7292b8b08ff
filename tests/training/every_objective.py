"""Trainings of every objective at toy size, which one process or several run.

    python every_objective.py FOLDER UPDATES KIND...
    python every_objective.py cli CHECKPOINT_SECONDS ARGUMENT...

The second form is the command line of lwdctl, with other times between checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from launching import free_port
from made import random_walks

sys.path.pop(0)

import torch.distributed as dist

from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import BaselineConfig, DiffusionConfig, EncodeConfig, VaeConfig
from lwdctl.core.launch import Launch
from lwdctl.core.progress import SilentProgress
from lwdctl.methods import BASELINES
from lwdctl.training.diffusion import train_diffusion
from lwdctl.training.distributed import Processes
from lwdctl.training.encode import encode
from lwdctl.training.loop import TrainingLoop
from lwdctl.training.objectives import SnippetObjective
from lwdctl.training.peers import Peers
from lwdctl.training.update import LoopSettings
from lwdctl.training.vae import train_vae

KINDS = (
    "vae",
    "vae-counted",
    "vae-dynamics",
    "diffusion",
    "dp",
    "dp-counted",
    "dp-transformer",
    "ldp",
    "mlp",
)
# Batches that two processes cannot divide evenly, padding, noise and dropout wherever there is any.
VAE = VaeConfig(
    snippet_length=8, latent_size=8, policy_width=8, decoder="xs", batch_size=7, device="cpu",
    loss_steps=4, observation_noise=0.1, min_valid_fraction=0.25, threads=1, warmup=5,
)  # fmt: skip
DIFFUSION = DiffusionConfig(
    width=16, blocks=2, batch_size=9, device="cpu", dropout=0.1, state_noise=0.1, threads=1,
    warmup=5, condition_dropout=0.2,
)  # fmt: skip
BASELINE = BaselineConfig(
    snippet_length=8, batch_size=7, device="cpu", unet_size="xs", transformer_size="xs", warmup=5,
    latent_size=8, policy_width=8, observation_noise=0.1, threads=1,
)  # fmt: skip


def walks():
    return random_walks(episodes=8, steps=12, state=4, tasks=("reach", "push"))


def train(kind: str, folder: Path, updates: int):
    """Train in a folder; its `metrics.jsonl` has a row for every training step."""
    data, quiet = walks(), SilentProgress()
    folder.mkdir(parents=True, exist_ok=True)
    method, _, variant = kind.partition("-")
    counted = "counted" if variant == "counted" else BASELINE.padding
    ahead = 3 if variant == "dynamics" else 0
    vae = replace(VAE, updates=updates, padding=counted, dynamics_steps=ahead)
    if method == "vae":
        return train_vae(data, vae, directory=folder, progress=quiet)
    if kind == "diffusion":
        (folder / "vae").mkdir(exist_ok=True)
        encoder = train_vae(
            data, replace(vae, updates=3), directory=folder / "vae", progress=quiet
        ).model
        latents = encode(encoder, data, EncodeConfig(device="cpu"), None, quiet)
        config = replace(DIFFUSION, updates=updates)
        return train_diffusion(latents, data, encoder, config, directory=folder, progress=quiet)
    config = replace(
        BASELINE,
        method=method,
        updates=updates,
        vae_updates=updates if method == "ldp" else None,
        denoiser="transformer" if variant == "transformer" else None,
        padding=counted,
        condition_dropout=0.0 if method == "mlp" else 0.2,
    )
    return BASELINES.load(method).train(data, config, folder, quiet)


def rows(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return the logged losses of all models below a folder."""
    found = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            del line["seconds"], line["samples_per_second"]
        found[str(path.relative_to(folder))] = lines
    return found


def write_workspace(root: Path) -> Workspace:
    """Publish the walks as snippets."""
    workspace, data = Workspace(root), walks()
    with workspace.begin("snippets", "walks", config={}, inputs=[], resume=False) as output:
        writer = SnippetWriter(output.path / SNIPPETS_PAYLOAD, data.spec)
        for index in range(len(data.episodes)):
            writer.append(data.episode(index))
        writer.close()
        output.publish({})
    return workspace


@contextmanager
def group_of_one(backend: str):
    """Yield the processes of a training that has one; their collectives run all the same."""
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, 1, is_master=True, wait_for_workers=False)
    launch = Launch(0, 1, "127.0.0.1", port, 0, 1)
    peers = Peers(launch, dist.PrefixStore("peers", store), "")
    peers.meet()
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=0, world_size=1)
    try:
        yield Processes(launch, peers)
    finally:
        peers.stop()
        dist.destroy_process_group()


def log_every_step() -> None:
    TrainingLoop._is_due = lambda self, every: True


def break_third_loss() -> None:
    loss, calls = SnippetObjective.loss, []

    def broken(self, *given):
        calls.append(1)
        value, terms = loss(self, *given)
        return (value * float("nan") if len(calls) == 3 else value), terms

    SnippetObjective.loss = broken


def main(arguments: list[str]) -> int:
    if arguments[0] != "cli":
        log_every_step()
        for kind in arguments[2:]:
            summary = train(kind, Path(arguments[0]) / kind, int(arguments[1])).summary
            assert summary["processes"] > 1
        assert "torch._dynamo" not in sys.modules  # takes as long to import as torch
        return 0
    from lwdctl.cli.main import main as command_line

    if os.environ.get("DIVERGES") == os.environ.get("RANK", "0"):
        break_third_loss()
    of = LoopSettings.of
    seconds = float(arguments[1])
    LoopSettings.of = lambda config: replace(of(config), checkpoint_seconds=seconds, log_every=1)
    return command_line(arguments[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
