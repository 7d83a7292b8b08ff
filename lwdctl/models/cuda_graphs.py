"""CUDA graphs: functions of tensors, recorded once and replayed without Python."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lwdctl.configs import CudaGraphs
from lwdctl.core.errors import first_line

MOST_GRAPHS = 8
WARM_UP = 3
"""Eager runs before the capture: libraries choose their kernels and take their memory in them."""

T = TypeVar("T")


class CudaGraphCache:
    """CUDA graphs of functions that a module computes, the least recently used one forgotten.

    Where capture fails, a warning says why, and functions run eagerly from then on. Copies of this
    object, and of a module that holds it, begin without graphs.

    Attributes:
        mode: `"auto"` captures a function when it is called with a key a second time, `"off"`
            never does.
    """

    def __init__(self, mode: CudaGraphs = "auto") -> None:
        self.mode = mode
        self._graphs: OrderedDict[Hashable, CapturedFunction | None] = OrderedDict()
        self._state: Hashable = None

    def __reduce__(self) -> tuple[type, tuple[CudaGraphs]]:
        return CudaGraphCache, (self.mode,)

    def run(
        self,
        module: nn.Module,
        key: Hashable,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
    ) -> Tensor:
        """Return `function(*inputs)`, computed by a graph where there is one.

        Args:
            module: Its weights are what the function computes with. New values in the same memory
                are seen by a graph; graphs of other memory are dropped.
            key: Tells functions apart, beside the shapes of the inputs.
            function: Computes on the device alone.
            inputs: On a CUDA device.
        """
        if self.mode == "off" or torch.cuda.is_current_stream_capturing():
            return function(*inputs)
        state = _state(module)
        if state != self._state:
            self._graphs.clear()
            self._state = state
        key = (key, *((value.shape, value.dtype) for value in inputs))
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return function(*inputs)
        self._graphs.move_to_end(key)
        captured = self._graphs[key]
        if captured is None:
            try:
                captured = self._graphs[key] = CapturedFunction(function, inputs)
            except RuntimeError as error:
                torch.cuda.synchronize(inputs[0].device)
                self.mode = "off"
                warnings.warn(
                    f"sampling is not captured as a CUDA graph: {first_line(error)}", stacklevel=3
                )
                return function(*inputs)
        return captured(inputs)


class CapturedFunction:
    """A function of tensors as one CUDA graph.

    Args:
        function: Computes on the device alone.
        inputs: On a CUDA device; later inputs have the same shapes.

    Raises:
        RuntimeError: The function needs the host.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self._inputs = [value.clone() for value in inputs]
        self._run = partial(function, *self._inputs)  # keeps alive what the graph reads
        self._graph, self._output = capture(self._run, self._run, inputs[0].device)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the function of other inputs."""
        for static, value in zip(self._inputs, inputs, strict=True):
            static.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._output.clone()


def capture(
    run: Callable[[], T],
    warm_up: Callable[[], object],
    device: torch.device,
    *generators: torch.Generator,
) -> tuple[torch.cuda.CUDAGraph, T]:
    """Capture what a function computes as a CUDA graph.

    Args:
        run: Computes on the device alone.
        warm_up: Does the same eagerly; it is called `WARM_UP` times.
        device: The CUDA device.
        generators: What `run` draws from, beside the device's default generator.

    Returns:
        The graph, and what `run` returned: tensors that every replay fills.

    Raises:
        RuntimeError: The function needs the host.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.device(device):
        # Torch's own stream for captures may belong to another device, where nothing is captured.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                warm_up()
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may go on allocating memory.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = run()
    return graph, result


def _state(module: nn.Module) -> tuple[Any, ...]:
    """Where the weights lie, and what else a graph fixes."""
    tensors = [*module.parameters(), *module.buffers()]
    return (
        module.training,
        torch.is_autocast_enabled("cuda"),
        torch.backends.cuda.matmul.allow_tf32,
        *(tensor.data_ptr() for tensor in tensors),
        *(id(part) for part in module.children()),
    )
