"""Checkpoints as single safetensors files, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lwdctl.artifacts.durable import sync
from lwdctl.artifacts.partials import CHECKPOINTS
from lwdctl.core.errors import ArtifactError

KEPT = 2


def save(directory: Path, update: int, tensors: Mapping[str, Tensor], values: Any) -> Path:
    """Write a checkpoint and drop all but the newest ones.

    Args:
        directory: The run's directory; the file goes under `checkpoints/`.
        update: Updates done.
        tensors: Everything that is a tensor, by name.
        values: Everything else, JSON-ready.
    """
    folder = directory / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    path = folder / f"update-{update:09d}.safetensors"
    unfinished = path.with_suffix(".tmp")
    whole = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(whole, unfinished, metadata={"values": json.dumps(values)})
    sync(unfinished)
    unfinished.rename(path)
    sync(folder)
    for old in sorted(folder.glob("update-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def newest(directory: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None."""
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
    """Undo `optimizer_tensors`; learning rates are set anew at every update."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
