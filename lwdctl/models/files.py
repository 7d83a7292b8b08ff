"""Model files: a specification as JSON beside two sets of weights as safetensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lwdctl.artifacts.files import write_durably
from lwdctl.core.errors import ArtifactError, ConfigError, first_line, is_out_of_memory
from lwdctl.core.plain_text import listed
from lwdctl.core.records import SourceSpec
from lwdctl.core.untrusted import check_regular, read_json, typed
from lwdctl.models.skeleton import skeleton

SPEC = "model.json"
WEIGHTS = "weights.safetensors"
EMA_WEIGHTS = "ema.safetensors"
CUSTOM: Final = "custom"
"""Architecture of a network that the caller brought; loading it needs the module again."""


M = TypeVar("M", bound=nn.Module)

Size = Annotated[int, Meta(ge=1, le=10**8)]
"""Components or steps, at least one."""
Count = Annotated[int, Meta(ge=0, le=10**8)]
"""Components or steps, none included."""
Layers = Annotated[tuple[Size, ...], Meta(max_length=1000)]
"""Widths of layers."""

_BESIDE = ("method", "source", "executed")
_AGAIN = "copy the model again from where it was made, or train it again"
_TYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL",
}  # fmt: skip
"""Types as safetensors names them."""


class Spec:
    """JSON both ways for the frozen dataclasses that models are rebuilt from."""

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = SPEC) -> Self:
        """Rebuild from what `to_mapping` returned, after a trip through JSON.

        Raises:
            ArtifactError: A value is missing, unknown, of another type, or does not fit the others.
        """
        spec = typed(cls, values, where, hint=_AGAIN)
        try:
            spec.check()
        except ValueError as error:
            raise ArtifactError(f"{where}: {error}", _AGAIN) from error
        return spec

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the specification of the model in a directory.

        Raises:
            ArtifactError: It cannot be read, or is none of such a model.
        """
        return cls.from_mapping(load_spec(directory), str(directory / SPEC))

    def check(self) -> None:
        """Check that the sizes fit each other.

        Raises:
            ValueError: They do not.
        """


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
    observation_size: Size
    action_size: Size
    reference_start: Count | None

    def check(self) -> None:
        """Check that what actions are relative to lies in the observation."""
        if (self.reference_start or 0) + self.action_size > self.observation_size and (
            self.reference_start is not None
        ):
            raise ValueError("reference_start: the action reaches past the observation")

    def check_source(self, source: SourceSpec, where: str) -> None:
        """Check that the data which a model was trained on has its observations and actions.

        Raises:
            ArtifactError: It has others.
        """
        sizes = {item.name: item.size for item in source.observations}
        if not {*self.observation_keys} <= {*sizes}:
            raise ArtifactError(
                f"{where}: observation_keys: the data has no"
                f" {listed({*self.observation_keys} - {*sizes})}",
                _AGAIN,
            )
        found = (sum(sizes[key] for key in self.observation_keys), source.action.size)
        if found != (self.observation_size, self.action_size):
            raise ArtifactError(
                f"{where}: observations and actions have {found[0]} and {found[1]} components in"
                f" the data, {self.observation_size} and {self.action_size} in the model",
                _AGAIN,
            )

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


class TrainingOnly(nn.Module):
    """A part of a model that is trained beside it and not saved with it."""

    def plan(self, updates: int) -> None:
        """Note how many training steps there will be; a time limit may change that on the way."""


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state as `unique_tensors` does, without the parts for training only."""
    parts = [name for name, part in module.named_modules() if isinstance(part, TrainingOnly)]
    beside = tuple(f"{name}." for name in parts)
    found = unique_tensors(module).items()
    return {name: value for name, value in found if not name.startswith(beside)}


def save_model(
    directory: Path, spec: Mapping[str, Any], model: nn.Module, ema_model: nn.Module
) -> None:
    """Write the specification and both sets of weights: the last ones and the EMA weights."""
    write_durably(directory / SPEC, f"{json.dumps(spec, indent=2, sort_keys=True)}\n".encode())
    for name, module in ((WEIGHTS, model), (EMA_WEIGHTS, ema_model)):
        write_tensors(saved_tensors(module), directory / name)


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
    """Read the specification as it stands in `model.json`.

    Raises:
        ArtifactError: It cannot be read, or is no JSON object.
    """
    values = read_json(directory / SPEC, hint=_AGAIN, allow_nan=True)  # limits may be infinite
    if not isinstance(values, dict):
        raise ArtifactError(f"{directory / SPEC} does not describe a model", _AGAIN)
    return values


S = TypeVar("S", bound=PolicySpec)


def saved_method(directory: Path) -> str:
    """Return the method of the policy that is saved in a directory, "" where there is only a model.

    Raises:
        ArtifactError: `model.json` cannot be read or names no method.
    """
    method = load_spec(directory).get("method", "")
    return typed(str, method, f"{directory / SPEC}: method", hint=_AGAIN)


@dataclass(frozen=True)
class SavedPolicy:
    """What `model.json` says of a policy beside the specification of its networks.

    Attributes:
        source: The data that it was trained on.
        executed: Steps that it was trained to execute per re-plan, None where it does not re-plan.
    """

    method: str
    source: SourceSpec
    executed: Size | None = None

    @classmethod
    def load(cls, directory: Path, kind: type[S]) -> tuple[SavedPolicy, S]:
        """Read it, and the specification of the networks.

        Raises:
            ArtifactError: It cannot be read, or does not describe such a policy.
        """
        where, values = str(directory / SPEC), load_spec(directory)
        parts = {name: values.pop(name) for name in _BESIDE if name in values}
        saved = typed(cls, parts, where, hint=_AGAIN)
        # Marked as read from a file: what it names is not imported.
        saved = replace(saved, source=SourceSpec.from_mapping(parts["source"], f"{where}: source"))
        spec = kind.from_mapping(values, where)
        spec.check_source(saved.source, where)
        return saved, spec


def load_model(build: Callable[[], M], directory: Path, *, checked_first: bool = True) -> M:
    """Build a model and load its EMA weights, for inference.

    Args:
        build: Returns the model.
        directory: Where `save_model` wrote it.
        checked_first: Compare sizes with the file's before memory is taken; not possible where
            a plug-in builds the network.

    Raises:
        ArtifactError: The weights are missing or damaged, or are not those of such a model.
    """
    if checked_first:
        check_header(build, directory / EMA_WEIGHTS)
    model = build()
    load_weights(model, directory)
    return model.eval()


def load_weights(model: nn.Module, directory: Path, *, ema: bool = True) -> None:
    """Load the EMA weights (or the last ones) into `model`, every name matched.

    Raises:
        ArtifactError: They are missing, damaged, not finite, or do not fit the model.
    """
    path = directory / (EMA_WEIGHTS if ema else WEIGHTS)
    tensors = read_tensors(path)
    load_tensors(model, tensors, f"{path}: ")
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ArtifactError(f"{path}: {name} holds NaN or infinite numbers", _AGAIN)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ArtifactError: It cannot be read or is none.
    """
    check_regular(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise ArtifactError(f"{path} cannot be read: {first_line(error)}", _AGAIN) from error


def check_header(build: Callable[[], nn.Module], path: Path) -> None:
    """Compare the tensors that a file declares with those of a model that is not yet built.

    Raises:
        ArtifactError: The file cannot be read, or names, shapes or types differ.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {first_line(error)}", _AGAIN) from error
    try:
        model = skeleton(build)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path.parent / SPEC} describes a model that fits into no memory", _AGAIN
        ) from error
    unique = _unique_names(model)
    expected = {
        name: (_TYPES.get(value.dtype, str(value.dtype)), list(value.shape))
        for name, value in model.state_dict().items()
        if name in unique
    }
    _check_names(expected, found, f"{path}: ")
    for name, (kind, shape) in expected.items():
        if found[name] != (kind, shape):
            raise ArtifactError(
                f"{path}: {name} is {found[name][0]} {found[name][1]}, but {SPEC} describes"
                f" {kind} {shape}",
                _AGAIN,
            )


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
        ConfigError: It cannot be called with such inputs, or returns something else.
    """
    given = ", ".join(str(tuple(value.shape)) for value in inputs)
    hint = f"it was given inputs of the shapes {given}"
    try:
        found = module.eval()(*(value.to(device) for value in inputs))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"the {noun} cannot be called: {first_line(error)}", hint) from error
    outputs = found if isinstance(found, tuple) else (found,)
    shapes = [tuple(getattr(value, "shape", ())) for value in outputs]
    if shapes != list(expected):
        raise ConfigError(
            f"the {noun} returned tensors of the shapes {shapes} instead of {list(expected)}", hint
        )


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state without second names of shared parameters.

    hypnettorch registers each parameter twice; safetensors refuses shared memory.
    """
    names = _unique_names(module)
    return {key: value.contiguous() for key, value in module.state_dict().items() if key in names}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], where: str = "") -> None:
    """Undo `unique_tensors`.

    Raises:
        ArtifactError: Names, shapes or types are not exactly those of the module.
    """
    names, state = _unique_names(module), module.state_dict()
    _check_names(names, tensors, where)
    for name in names:
        one, other = state[name], tensors[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ArtifactError(
                f"{where}the weights do not fit the model: {name} is {other.dtype}"
                f" {list(other.shape)}, not {one.dtype} {list(one.shape)}"
            )
    module.load_state_dict(tensors, strict=False)


def _check_names(expected: Iterable[str], found: Iterable[str], where: str) -> None:
    odd = sorted({*expected} ^ {*found})
    if odd:
        raise ArtifactError(f"{where}the weights do not fit the model: {listed(odd, 3)}")


def _unique_names(module: nn.Module) -> set[str]:
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    once = {name for name, _ in module.named_parameters()}
    return set(module.state_dict()) - (every - once)
