"""Checkpoints to resume from, and snapshots of the EMA weights, as safetensors files.

Each file is written completely or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lwdctl.artifacts.files import sync
from lwdctl.artifacts.run_in_progress import CHECKPOINTS, RESUME
from lwdctl.core.errors import ArtifactError, first_line
from lwdctl.core.untrusted import check_regular, parse_json
from lwdctl.models.files import load_tensors, read_tensors, saved_tensors, write_tensors

KEPT = 2
SNAPSHOTS = "snapshots"
AFRESH = f"begin again without {RESUME}; a recipe, after: lwdctl gc --resumable --delete"
"""What to do where a checkpoint cannot be used."""
_ENDING = ".safetensors"


def save(directory: Path, update: int, tensors: Mapping[str, Tensor], values: Any) -> Path:
    """Write a checkpoint of tensors and JSON-ready values; remove all but the newest ones."""
    path = directory / CHECKPOINTS / f"update-{update:09d}{_ENDING}"
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(values)
    _write(directory, contiguous, path, {"values": text, "sha256": _digest(contiguous, text)})
    for old in _found(directory)[:-KEPT]:
        old.unlink()
    return path


def _write(
    directory: Path,
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file of a run as a whole and force it to the disk; an error leaves nothing behind."""
    aside = directory / CHECKPOINTS / f".{path.name}.new"  # checkpoints are never published
    for folder in (aside.parent, path.parent):
        folder.mkdir(exist_ok=True)
    try:
        write_tensors(tensors, aside, metadata)
        sync(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def load_newest(
    directory: Path, log: Callable[[str], None]
) -> tuple[dict[str, Tensor], Any] | None:
    """Read the newest checkpoint that is intact; damaged ones are renamed and passed over.

    Args:
        directory: The run's directory.
        log: Called with what was passed over and what is resumed from.

    Returns:
        Tensors and values; None where the run has no checkpoint.

    Raises:
        ArtifactError: Every checkpoint is damaged.
    """
    damaged = ""
    for path in reversed(_found(directory)):
        try:
            loaded = load(path)
        except ArtifactError as error:
            damaged = error.message
            log(f"passed over: {damaged}")
            path.rename(path.with_name(f".{path.name}.damaged"))
        else:
            log(f"resuming from {path.name}")
            return loaded
    if damaged:
        raise ArtifactError(f"{damaged}; there is no other", AFRESH)
    return None


def load(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read a checkpoint back and compare its digest.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        text = metadata["values"]
        if metadata["sha256"] != _digest(tensors, text):
            raise ValueError("its digest differs")
        return tensors, parse_json(text.encode(), str(path), allow_nan=True)
    except Exception as error:
        raise ArtifactError(
            f"checkpoint {path} cannot be read: {first_line(error)}", AFRESH
        ) from error


def _found(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted((directory / CHECKPOINTS).glob(f"update-*{_ENDING}"))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of tensors, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    _write(directory, saved_tensors(ema_model), directory / SNAPSHOTS / f"{update}{_ENDING}")


def snapshot_updates(directory: Path) -> list[int]:
    """Return the training steps that have a snapshot, in order."""
    return sorted(int(path.stem) for path in (directory / SNAPSHOTS).glob(f"*{_ENDING}"))


def load_snapshot(module: nn.Module, directory: Path, update: int) -> None:
    """Load the EMA weights of a training step, every name matched.

    Raises:
        ArtifactError: They do not fit the model.
    """
    path = directory / SNAPSHOTS / f"{update}{_ENDING}"
    load_tensors(module, read_tensors(path), f"{path}: ")


def remove_later_snapshots(directory: Path, update: int) -> None:
    """Remove the snapshots after a training step that training resumes from."""
    for later in snapshot_updates(directory):
        if later > update:
            (directory / SNAPSHOTS / f"{later}{_ENDING}").unlink()
