"""Checkpoints to resume from, and snapshots of the EMA weights, as safetensors files.

Each file is written completely or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lwdctl.artifacts.files import sync
from lwdctl.artifacts.run_in_progress import CHECKPOINTS
from lwdctl.core.errors import ArtifactError
from lwdctl.models.files import load_tensors, unique_tensors

KEPT = 2
SNAPSHOTS = "snapshots"
_ENDING = ".safetensors"


def save(directory: Path, update: int, tensors: Mapping[str, Tensor], values: Any) -> Path:
    """Write a checkpoint of tensors and JSON-ready values; remove all but the newest ones."""
    folder = directory / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    path = folder / f"update-{update:09d}.safetensors"
    unfinished = path.with_suffix(".tmp")
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(contiguous, unfinished, metadata={"values": json.dumps(values)})
    sync(unfinished)
    unfinished.rename(path)
    sync(folder)
    for old in sorted(folder.glob("update-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def newest(directory: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = sorted((directory / CHECKPOINTS).glob("update-*.safetensors"))
    return found[-1] if found else None


def load(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read a checkpoint back.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["values"])
    except Exception as error:
        raise ArtifactError(
            f"checkpoint {path} cannot be read: {error}", "delete it and resume from the one before"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten the optimizer's state into named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; learning rates are set at every training step."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def write_snapshot(directory: Path, update: int, ema_model: nn.Module) -> None:
    """Write the EMA weights to `snapshots/<update>.safetensors` in a run's directory."""
    folder, aside = directory / SNAPSHOTS, directory / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    aside.mkdir(exist_ok=True)
    unfinished = aside / "snapshot.tmp"  # checkpoints are never published
    save_file(unique_tensors(ema_model), unfinished)
    unfinished.rename(folder / f"{update}{_ENDING}")


def snapshot_updates(directory: Path) -> list[int]:
    """Return the training steps that have a snapshot, in order."""
    return sorted(int(path.stem) for path in (directory / SNAPSHOTS).glob(f"*{_ENDING}"))


def load_snapshot(module: nn.Module, directory: Path, update: int) -> None:
    """Load the EMA weights of a training step, every name matched.

    Raises:
        ArtifactError: They do not fit the model.
    """
    path = directory / SNAPSHOTS / f"{update}{_ENDING}"
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "train the model again") from error
    load_tensors(module, tensors)


def remove_later_snapshots(directory: Path, update: int) -> None:
    """Remove the snapshots after a training step that training resumes from."""
    for later in snapshot_updates(directory):
        if later > update:
            (directory / SNAPSHOTS / f"{later}{_ENDING}").unlink()
