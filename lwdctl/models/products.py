"""Matrix products of a CPU by oneDNN, where torch's own choice leaves half of it unused.

torch multiplies single-precision matrices with MKL, which does not use AVX-512 on processors of
AMD. oneDNN does, and comes with torch. Inside `fast_products` large products go
through it, forward and backward: the same sums in another order. To turn that off, set
`torch.backends.mkldnn.enabled = False`, or `ATEN_CPU_CAPABILITY=avx2` in the environment; either
turns off all other use of oneDNN, or of AVX-512, as well.
"""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

SMALLEST_SIDE = 32
"""Smallest side of the products that oneDNN is given; smaller ones gain nothing."""
SMALLEST_PRODUCT = 2**20
"""Smallest number of their multiply-adds: the detour through Python takes as long as 2**18."""

_CPU_INFO = Path("/proc/cpuinfo")
_lock, _users = Lock(), 0
_kept: list[torch.library.Library] = []
"""What holds the kernels, for good."""


@contextmanager
def fast_products() -> Iterator[None]:
    """Let oneDNN compute the large matrix products of a CPU inside the context, if it is faster.

    It holds for all threads of the process. Contexts may overlap.
    """
    if not (onednn_is_faster() and torch.backends.mkldnn.enabled and _registered()):
        yield
        return
    _count(1)
    try:
        yield
    finally:
        _count(-1)


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Whether torch can use AVX-512 here, MKL does not, and oneDNN can be called."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    if _CPU_INFO.exists():
        return _CPU_INFO.read_text(errors="replace")
    return platform.processor()


def _count(change: int) -> None:
    global _users  # noqa: PLW0603 - one number for the process
    with _lock:
        _users += change


def _registered() -> bool:
    """Replace torch's kernels for good, and return whether torch lets them be replaced.

    Removing them again while another thread multiplies would crash the process: torch does not
    lock them. Outside of all contexts they add about 2 microseconds to a product.
    """
    with _lock:
        return _register()


@lru_cache(maxsize=1)
def _register() -> bool:
    _kept.append(torch.library.Library("aten", "IMPL"))  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that a kernel is replaced
        try:
            _kept[-1].impl("mm", _mm, "CPU")  # type: ignore[no-untyped-call]
            _kept[-1].impl("addmm", _addmm, "CPU")  # type: ignore[no-untyped-call]
        except RuntimeError:  # some versions refuse where somebody else has replaced one
            return False
    return True


def _mm(left: Tensor, right: Tensor) -> Tensor:
    if _is_large(left, right):
        return _product(left, right, None)
    return torch.mm(left, right, out=left.new_empty(0))  # another kernel, which is torch's own


def _addmm(
    bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    plain = beta == 1 and alpha == 1 and bias.shape == right.shape[1:] and bias.is_contiguous()
    if plain and bias.dtype == torch.float32 and _is_large(left, right):
        return _product(left, right, bias)
    return torch.addmm(bias, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _is_large(left: Tensor, right: Tensor) -> bool:
    if not (_users and left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]):
        return False
    sides = *left.shape, right.shape[1]
    return (
        min(sides) >= SMALLEST_SIDE
        and math.prod(sides) >= SMALLEST_PRODUCT
        and left.dtype == right.dtype == torch.float32
        and all(factor.is_contiguous() or factor.t().is_contiguous() for factor in (left, right))
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - as torch.compile does
        left, right.t(), bias, "none", [], ""
    )
    return product
