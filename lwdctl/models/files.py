"""Model files: a JSON specification beside safetensors weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lwdctl.core.errors import ArtifactError

SPEC = "model.json"
WEIGHTS = "weights.safetensors"
AVERAGED = "ema.safetensors"


def save_model(
    directory: Path, spec: Mapping[str, Any], model: nn.Module, averaged: nn.Module
) -> None:
    """Write the specification and both weight sets (last and averaged)."""
    (directory / SPEC).write_text(json.dumps(spec, indent=2, sort_keys=True) + "\n")
    for name, module in ((WEIGHTS, model), (AVERAGED, averaged)):
        save_file(unique_tensors(module), directory / name)


def load_spec(directory: Path) -> dict[str, Any]:
    """Read the specification."""
    values: dict[str, Any] = json.loads((directory / SPEC).read_text())
    return values


def load_weights(model: nn.Module, directory: Path, averaged: bool = True) -> None:
    """Load the averaged weights (or the last ones) into `model`, every key matched."""
    load_tensors(model, load_file(directory / (AVERAGED if averaged else WEIGHTS)))


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state without second names of shared parameters.

    hypnettorch registers each parameter twice; safetensors refuses shared memory.
    """
    kept = _unique_names(module)
    return {key: value.contiguous() for key, value in module.state_dict().items() if key in kept}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Undo `unique_tensors`.

    Raises:
        ArtifactError: The names are not exactly those of the module.
    """
    wanted = _unique_names(module)
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))[:3]
        raise ArtifactError(f"the weights do not fit the model: {', '.join(odd)}")
    module.load_state_dict(tensors, strict=False)


def _unique_names(module: nn.Module) -> set[str]:
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    once = {name for name, _ in module.named_parameters()}
    return set(module.state_dict()) - (every - once)
