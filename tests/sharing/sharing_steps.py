"""What the tests of sharing do: push, pull, and act with what came."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import lwdctl
from lwdctl.core.progress import SilentProgress

sys.path.insert(0, str(Path(__file__).parents[1] / "artifacts"))
import foreign

sys.path.pop(0)

QUIET = SilentProgress()
KINDS = ("snippets", "vae", "latents", "diffusion")


def push(workspace, source="diffusion/toy", repository="me/toy", **options):
    options = {"license": "mit", **options}
    return lwdctl.push(source, repository, workspace=workspace, progress=QUIET, **options)


def pull(workspace, source="me/toy", **options):
    return lwdctl.pull(source, workspace=workspace, progress=QUIET, **options)


def actions(workspace, source):
    """Return what a policy does in an episode of its own observations."""
    policy = lwdctl.load_policy(source, workspace=workspace, device="cpu", horizon=3)
    torch.manual_seed(0)
    policy.reset(seed=5, task="pull", label="fast")
    rng = np.random.default_rng(1)
    sizes = {"thing": 3, "hand": 2}
    return np.stack([
        policy.act({key: rng.normal(size=size).astype("f4") for key, size in sizes.items()})
        for _ in range(7)
    ])  # fmt: skip


def drop_logs(workspace):
    """Publish the chain's models anew with the logs that a training leaves beside them."""
    for kind in ("vae", "diffusion"):
        path = workspace.resolve(kind).path
        (path / "tensorboard").mkdir()
        (path / "metrics.jsonl").write_text('{"update": 1, "loss": 0.5}\n')
        (path / "log.txt").write_text("a line\n")
        (path / "tensorboard" / "events.out.tfevents.1").write_bytes(bytes(8))
    foreign.sign_all(workspace.root)
