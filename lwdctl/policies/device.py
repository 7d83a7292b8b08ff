"""The way to the device and back, at a control step: no wait on the way there, one on the way back.

Whatever else asks the device for a value (`.item()`, `bool(tensor)`, a boolean mask as an index)
makes the host wait for all of its work; decisions are therefore taken on the host, from NumPy.
"""

from __future__ import annotations

import time
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.core.records import FloatArray


def upload(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return values on the device, without waiting for it; on a CPU they share their memory."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        # Pinned memory is not used again before it has been copied.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def download(values: Tensor) -> FloatArray:
    """Return values on the host, after the device has finished its work."""
    array: FloatArray = values.cpu().numpy()
    return array


def now(device: torch.device) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Measures the parts of a piece of work without waiting for the device in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Begin the next part."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Return the seconds between the marks; the device has finished what was marked."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type != "cuda":
            return [end - begun for begun, end in pairs]
        self._marks[-1].synchronize()
        return [begun.elapsed_time(end) / 1e3 for begun, end in pairs]
