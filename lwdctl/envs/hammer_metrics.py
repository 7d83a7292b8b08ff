"""What an Adroit hammer episode looked like, computed from observations alone.

The five numbers are those with which behaviors are compared: how high the hammer was held, how
far the nail was from where it shall be, and how hard it was hit. An observation shows the hammer's
position and the force on the nail; the distance follows from how far the nail has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.simulator_facts import HAMMER_OBSERVATION_SIZE
from lwdctl.envs.simulator import Metric

# Components of an observation: the nail's way into the board, the height of the hammer's body
# (meters), and the force on the nail's head (newtons, cut off at 1).
NAIL_WAY, OBJECT_HEIGHT, NAIL_IMPACT = 26, 38, 45
# Way at which the nail's head is at its goal, meters: by the model, head and goal stand 0.101 and
# 0.010 from the board's middle.
WHOLE_WAY = 0.091
HIGH_IMPACT, LIFTED = 0.8, 0.04

METRICS = (
    Metric("mean_object_height", "object_height", "mean"),
    Metric("mean_target_goal_distance", "target_goal_distance", "mean", failed=WHOLE_WAY),
    Metric("max_nail_impact", "nail_impact", "max"),
    Metric("share_nail_impact_above_0.8", "nail_impact_above_0.8", "mean"),
    Metric("share_object_height_above_0.04", "object_height_above_0.04", "mean"),
)


def hammer_numbers(observation: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the numbers that `METRICS` reduce, by source, for observations (..., obs).

    Raises:
        ValueError: Observations of another size.
    """
    if observation.shape[-1] != HAMMER_OBSERVATION_SIZE:
        raise ValueError(
            f"a hammer observation has {HAMMER_OBSERVATION_SIZE} components,"
            f" not {observation.shape[-1]}"
        )
    # In the precision of stored observations, so that files and rollouts agree on thresholds.
    seen = np.asarray(observation, dtype=np.float32).astype(np.float64)
    height, impact = seen[..., OBJECT_HEIGHT], seen[..., NAIL_IMPACT]
    return {
        "object_height": height,
        "target_goal_distance": np.abs(WHOLE_WAY - seen[..., NAIL_WAY]),
        "nail_impact": impact,
        "nail_impact_above_0.8": (impact > HIGH_IMPACT).astype(np.float64),
        "object_height_above_0.04": (height > LIFTED).astype(np.float64),
    }


def hammer_metrics(observations: npt.NDArray[Any]) -> Mapping[str, float]:
    """Return the five metrics of one episode, by name.

    Args:
        observations: (time, obs), at least one row.

    Raises:
        ValueError: Observations of another size, or none.
    """
    if len(observations) == 0:
        raise ValueError("an episode has at least one observation")
    numbers = hammer_numbers(observations)
    return {
        item.name: float(
            numbers[item.source].max() if item.reduce == "max" else numbers[item.source].mean()
        )
        for item in METRICS
    }
