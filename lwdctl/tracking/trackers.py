"""The table of trackers."""

from __future__ import annotations

import importlib.util

from lwdctl.core.errors import MissingExtraError, install_extra
from lwdctl.core.registry import Registry, Row

TRACKERS = Registry(
    "tracker",
    {
        "wandb": Row(
            "lwdctl.tracking.wandb_tracker:WandbTracker", "Weights & Biases", extra="wandb"
        ),
        "trackio": Row(
            "lwdctl.tracking.trackio_tracker:TrackioTracker", "Trackio", extra="trackio"
        ),
        "tensorboard": Row("lwdctl.tracking.tensorboard_tracker:TensorBoardTracker", "TensorBoard"),
    },
)
"""The rows are named as the packages that they import."""


def check_installed(name: str) -> None:
    """Check that a tracker's package is installed, without importing it.

    Raises:
        ConfigError: No tracker has that name.
        MissingExtraError: The package is not installed.
    """
    TRACKERS.check(name)
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # a module that somebody made
        return
    # A folder of that name without code is none: wandb itself leaves one where it runs.
    if found is None or found.origin is None:
        extra = TRACKERS.rows[name].extra
        raise MissingExtraError(
            f"the tracker '{name}' needs the package '{name}', which is not installed",
            install_extra(extra) if extra else f"pip install {name}",
        )
