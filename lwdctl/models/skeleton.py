"""The tensors of a model without their memory: names, shapes and types before any is allocated.

A specification may come from someone else, and a setting may be too large for the machine. Building
the model on torch's meta device first costs neither memory nor time, whatever the sizes are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lwdctl.core.errors import ConfigError

M = TypeVar("M", bound=nn.Module)

TRAINING_COPIES = 5
"""Copies of the weights in training: themselves, gradients, two moments of Adam, EMA weights."""

_ALLOCATE = (torch.empty, torch.zeros, torch.ones)
_FILL = frozenset({"normal_", "uniform_", "constant_", "fill_", "zero_", "trunc_normal_"})


class _WithoutMemory(TorchFunctionMode):
    """Puts new weights on the meta device, and leaves them without initial values.

    Filling tensors of the meta device with random numbers would import torch's compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func in _ALLOCATE:
            kwargs = {**kwargs, "device": "meta"}
        elif getattr(func, "__name__", "") in _FILL:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def skeleton(build: Callable[[], M]) -> M:
    """Return what `build` returns, with tensors that have shapes and no memory.

    Raises:
        RuntimeError: The sizes are beyond what any tensor can have.
    """
    with _WithoutMemory():
        return build()


def weight_bytes(model: nn.Module) -> int:
    """Return the size of a model's weights."""
    return sum(value.nbytes for value in model.state_dict().values())


def check_training_memory(build: Callable[[], nn.Module]) -> None:
    """Check that this machine can hold a model and what training adds to it.

    Raises:
        ConfigError: It cannot; the message says how much would be needed.
    """
    try:
        needed = TRAINING_COPIES * weight_bytes(skeleton(build))
    except RuntimeError as error:  # no memory, or a size of more than 63 bits
        raise ConfigError(
            "a model of these sizes fits into no memory", "choose smaller sizes"
        ) from error
    there = memory_bytes()
    if needed > there:
        raise ConfigError(
            f"training a model of these sizes needs {needed / 1e9:,.0f} GB of memory for its"
            f" weights, their gradients and the optimizer; this machine has {there / 1e9:,.0f} GB",
            "choose smaller sizes (width, layers, latent size, snippet length)",
        )


def check_batch_memory(size: int, row_bytes: int) -> None:
    """Check that this machine can hold the inputs of a batch.

    Args:
        size: Rows of the batch.
        row_bytes: Bytes that a row of it takes.

    Raises:
        ConfigError: It cannot; the message says how much would be needed.
    """
    needed, there = size * row_bytes, memory_bytes()
    if needed > there:
        raise ConfigError(
            f"a batch of {size:,} snippets of {row_bytes / 1e6:,.3g} MB needs {needed / 1e9:,.0f}"
            f" GB of memory; this machine has {there / 1e9:,.0f} GB",
            "choose a smaller batch size or shorter snippets",
        )


def memory_bytes() -> int:
    """Return the memory of this machine, of its main processor or of its largest GPU."""
    found = [psutil.virtual_memory().total]
    if torch.cuda.is_available():
        found += [
            torch.cuda.get_device_properties(index).total_memory
            for index in range(torch.cuda.device_count())
        ]
    return int(max(found))
