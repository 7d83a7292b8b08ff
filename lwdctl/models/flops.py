"""FLOPs of networks, counted by torch; one multiply-add counts as two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from lwdctl.models.diffusion import LatentDiffusion


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts as torch's `FlopCounterMode` does, which imports two compilers.

    They are `torch._dynamo` and, where it is installed, triton; a test compares the counts.

    Attributes:
        total: FLOPs so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the next method as it is: `torch.compile` never sees it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, in its parts where it has some, and count it."""
        del types
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        self.total += _flops(func.overloadpacket, args, result)
        return result


def _flops(operation: Any, args: tuple[Any, ...], result: Any) -> int:
    """Return the FLOPs of one operation: of products and convolutions, 0 of any other."""
    aten = torch.ops.aten
    if operation in (aten.mm, aten.bmm):
        return 2 * int(result.numel()) * int(args[0].shape[-1])
    if operation in (aten.addmm, aten.baddbmm):
        return 2 * int(result.numel()) * int(args[1].shape[-1])
    if operation == aten.convolution:
        inputs, weight, transposed = args[0], args[1], args[6]
        places = inputs if transposed else result
        return 2 * int(places.numel()) * int(weight[0].numel())
    return 0


def count_flops(run: Callable[[], object]) -> int:
    """Count the FLOPs of what `run` computes.

    Torch cannot count fused attention, so attention runs in its plain form here.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = _Counter()
    try:
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.total


def denoiser_flops(model: LatentDiffusion) -> int:
    """Count the FLOPs of one denoiser call for one latent."""
    size, device = model.spec.denoiser, model.latent.mean.device
    latent = torch.zeros(1, size.latent_size, device=device)
    condition = torch.zeros(1, size.condition_size, device=device)
    timestep = torch.zeros(1, dtype=torch.long, device=device)
    return count_flops(lambda: model.denoiser(latent, timestep, condition))


def matmul_flops(network: nn.Module) -> int:
    """Return the FLOPs of a plain MLP on one input: two per weight."""
    return sum(2 * p.numel() for p in network.parameters() if p.dim() > 1)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())
