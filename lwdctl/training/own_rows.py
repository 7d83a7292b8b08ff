"""Random draws of a process that trains on some rows of a batch, as if it had all of them."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lwdctl.core.errors import LwdctlError

_BY_SIZE = {"normal", "rand", "randn", "randint"}
_IN_PLACE = {"bernoulli_", "exponential_", "normal_", "random_", "uniform_"}
_LIKE = {"rand_like", "randint_like", "randn_like"}


class OwnRows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes each draw that has a value for every row for the whole batch, and takes its own rows.

    All processes seed their generators alike, so the draws are those of one process that has all
    rows. It sees the operations of torch below autograd and autocast: draws with a generator and
    without one, and those of dropout, also inside of attention. What is drawn counts as one value
    per row where its first axis is as long as the process has rows.

    On CUDA the masks of dropout are other ones than those of a single process, which draws them
    inside of its kernels.

    Args:
        rows: The rows of this process.
        size: Rows of the whole batch.
    """

    def __init__(self, rows: slice, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows, self._own, self._size = rows, rows.stop - rows.start, size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        place = next((index for index, item in enumerate(args) if isinstance(item, list)), None)
        if name in _BY_SIZE and place is not None:  # torch.normal may have tensors instead
            shape = args[place]
            if shape[:1] != [self._own]:
                return func(*args, **kwargs)
            whole = func(*args[:place], [self._size, *shape[1:]], *args[place + 1 :], **kwargs)
            return whole[self._rows]
        if _draws_nothing(name, args, kwargs) or _first_axis(args) != self._own:
            return func(*args, **kwargs)
        return self._draw(func, name, args, kwargs)

    def _draw(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        own = args[0]
        if name in _IN_PLACE:
            whole = self._whole(own)
            func(whole, *args[1:], **kwargs)
            return own.copy_(whole[self._rows])
        if name in _LIKE:
            return func(self._whole(own), *args[1:], **kwargs)[self._rows]
        if name == "native_dropout":
            _, mask = func(self._whole(own), *args[1:], **kwargs)
            mask = mask[self._rows]
            return own * mask * (1.0 / (1.0 - args[1])), mask
        raise LwdctlError(
            f"the model draws random numbers with torch's {name}, which a training in several"
            " processes cannot divide among them",
            "train in one process, without torchrun",
        )

    def _whole(self, own: Tensor) -> Tensor:
        """Return a tensor for the whole batch that lies in memory in the order that this one does.

        The values are drawn in that order.
        """
        shape = (self._size, *own.shape[1:])
        strides = own.stride()
        outer = sorted(range(own.dim()), key=lambda axis: -strides[axis])
        whole = own.new_empty([shape[axis] for axis in outer])
        return whole.permute([outer.index(axis) for axis in range(own.dim())])


# torch wraps the method for its compiler, which the first call would import.
OwnRows.__torch_dispatch__ = unwrap(OwnRows.__torch_dispatch__)  # type: ignore[method-assign]


def _first_axis(args: Any) -> int | None:
    """Return the length of what is drawn: of the first tensor, or a number (`torch.randperm`)."""
    shapes = [item.shape for item in args if isinstance(item, Tensor)]
    if not shapes:
        return next((item for item in args if isinstance(item, int)), None)
    return shapes[0][0] if shapes[0] else None


def _draws_nothing(name: str, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation that can drop values out is called without dropout."""
    if name.startswith("_scaled_dot_product") or name == "_flash_attention_forward":
        given = [item for item in args if isinstance(item, float)]
        dropout: float = kwargs.get("dropout_p", given[0] if given else 0.0)
        return dropout == 0.0
    return name == "native_dropout" and not (args[2] and args[1])
