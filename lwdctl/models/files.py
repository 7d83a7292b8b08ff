"""Model files: a specification as JSON beside two sets of weights as safetensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lwdctl.artifacts.files import write_durably
from lwdctl.core.errors import ArtifactError, ConfigError

SPEC = "model.json"
WEIGHTS = "weights.safetensors"
EMA_WEIGHTS = "ema.safetensors"
CUSTOM = "custom"
"""Architecture of a network that the caller brought; loading it needs the module again."""


class Spec:
    """JSON both ways for the frozen dataclasses that models are rebuilt from."""

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from what `to_mapping` returned, after a trip through JSON."""
        types = get_type_hints(cls)
        return cls(**{name: _restored(types.get(name), value) for name, value in values.items()})


def _restored(field_type: Any, value: Any) -> Any:
    if isinstance(field_type, type) and issubclass(field_type, Spec):
        return field_type.from_mapping(value)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class PolicySpec(Spec):
    """What all models that output actions are rebuilt from.

    Attributes:
        observation_keys: Observation keys, in the order of their components.
        observation_size: Components of the concatenated observation.
        action_size: Components of the action.
        reference_start: First observation component that actions are relative to; None where they
            are absolute.
    """

    observation_keys: tuple[str, ...]
    observation_size: int
    action_size: int
    reference_start: int | None

    def shared(self) -> dict[str, Any]:
        """Return the fields of this class, to build a specification of another model from."""
        return {item.name: getattr(self, item.name) for item in fields(PolicySpec)}

    @property
    def action_target(self) -> str:
        """`"absolute"`, or `"relative"` to the observation."""
        return "absolute" if self.reference_start is None else "relative"

    def reference(self, observations: Tensor) -> Tensor:
        """Return what actions are relative to.

        Args:
            observations: (..., obs), environment units.

        Returns:
            (..., action), or a zero scalar where actions are absolute.
        """
        if self.reference_start is None:
            return observations.new_zeros(())
        return observations[..., self.reference_start : self.reference_start + self.action_size]


def save_model(
    directory: Path, spec: Mapping[str, Any], model: nn.Module, ema_model: nn.Module
) -> None:
    """Write the specification and both sets of weights: the last ones and the EMA weights."""
    write_durably(directory / SPEC, f"{json.dumps(spec, indent=2, sort_keys=True)}\n".encode())
    for name, module in ((WEIGHTS, model), (EMA_WEIGHTS, ema_model)):
        write_tensors(unique_tensors(module), directory / name)


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: The file cannot be written; the error has the system's number and the path.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def load_spec(directory: Path) -> dict[str, Any]:
    """Read the specification."""
    values: dict[str, Any] = json.loads((directory / SPEC).read_text())
    return values


def load_weights(model: nn.Module, directory: Path, *, ema: bool = True) -> None:
    """Load the EMA weights (or the last ones) into `model`, every name matched."""
    load_tensors(model, load_file(directory / (EMA_WEIGHTS if ema else WEIGHTS)))


def check_custom(architecture: str, module: nn.Module | None, noun: str) -> None:
    """Check that a module is given where the specification names none, and only there.

    Raises:
        ConfigError: A custom network without its module, or a module for a built-in one.
    """
    if architecture == CUSTOM and module is None:
        raise ConfigError(
            f"the {noun} of this model is a module of your own, and it was not given",
            f"load it with {noun}=..., the same nn.Module that it was trained with",
        )
    if architecture != CUSTOM and module is not None:
        raise ConfigError(
            f"this model was trained with the built-in {noun} '{architecture}'",
            f"load it without {noun}=",
        )


@torch.no_grad()
def check_outputs(
    noun: str,
    module: nn.Module,
    inputs: Sequence[Tensor],
    expected: Sequence[tuple[int, ...]],
    device: torch.device,
) -> None:
    """Check the shapes that a network of the caller's returns; it is put into evaluation mode.

    Raises:
        ConfigError: It returns something else.
    """
    found = module.eval()(*(value.to(device) for value in inputs))
    outputs = found if isinstance(found, tuple) else (found,)
    shapes = [tuple(getattr(value, "shape", ())) for value in outputs]
    if shapes != list(expected):
        given = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ConfigError(
            f"the {noun} returned tensors of the shapes {shapes} instead of {list(expected)}",
            f"it was given inputs of the shapes {given}",
        )


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state without second names of shared parameters.

    hypnettorch registers each parameter twice; safetensors refuses shared memory.
    """
    names = _unique_names(module)
    return {key: value.contiguous() for key, value in module.state_dict().items() if key in names}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Undo `unique_tensors`.

    Raises:
        ArtifactError: The names are not exactly those of the module.
    """
    expected = _unique_names(module)
    if expected != set(tensors):
        odd = sorted(expected ^ set(tensors))[:3]
        raise ArtifactError(f"the weights do not fit the model: {', '.join(odd)}")
    module.load_state_dict(tensors, strict=False)


def _unique_names(module: nn.Module) -> set[str]:
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    once = {name for name, _ in module.named_parameters()}
    return set(module.state_dict()) - (every - once)
