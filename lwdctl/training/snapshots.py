"""Averaged weights kept on the way, so that a model can be looked at as it was in training."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from lwdctl.artifacts.partials import CHECKPOINTS
from lwdctl.core.errors import ArtifactError
from lwdctl.models.files import load_tensors, unique_tensors

FOLDER = "snapshots"
_ENDING = ".safetensors"


def write(directory: Path, update: int, averaged: nn.Module) -> None:
    """Write `snapshots/<update>.safetensors` below a run's directory, whole or not at all."""
    folder, aside = directory / FOLDER, directory / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    aside.mkdir(exist_ok=True)
    unfinished = aside / "snapshot.tmp"  # what lies here is never published
    save_file(unique_tensors(averaged), unfinished)
    unfinished.rename(folder / f"{update}{_ENDING}")


def updates_kept(directory: Path) -> list[int]:
    """Return the updates whose weights were kept, in order; none is an empty list."""
    return sorted(int(path.stem) for path in (directory / FOLDER).glob(f"*{_ENDING}"))


def load(module: nn.Module, directory: Path, update: int) -> None:
    """Load the averaged weights of an update, every name matched.

    Raises:
        ArtifactError: They do not fit the model.
    """
    path = directory / FOLDER / f"{update}{_ENDING}"
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "train the model again") from error
    load_tensors(module, tensors)


def forget_later(directory: Path, update: int) -> None:
    """Remove what lies after an update: training goes on from there, perhaps differently."""
    for later in updates_kept(directory):
        if later > update:
            (directory / FOLDER / f"{later}{_ENDING}").unlink()
