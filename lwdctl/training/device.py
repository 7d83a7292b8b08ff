"""Which device a run uses."""

from __future__ import annotations

import torch

from lwdctl.core.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA when there is one.

    Raises:
        ConfigError: The name is unknown, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"no device is called '{name}'", "known: auto, cpu, cuda, cuda:N"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device on this machine", "use --device cpu")
    return device
