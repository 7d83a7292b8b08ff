"""D4RL's normalized score: 0 is a random policy, 100 the reference expert."""

from __future__ import annotations

from lwdctl.envs.simulator import Metric

SCORE = "normalized_score"

# Mean returns of a random policy and of the expert, from `d4rl/infos.py` of Fu et al., D4RL:
# datasets for deep data-driven reinforcement learning (2020); the same for its v0, v1 and v2.
REFERENCE_RETURNS = {
    "ant": (-325.6, 3879.7),
    "halfcheetah": (-280.178953, 12135.0),
    "hammer": (-274.856578, 12794.134825156867),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
}


def normalized_score(task: str) -> Metric:
    """Return the metric 100 (return - random) / (expert - random) over steps' `"reward"`.

    Args:
        task: A key of `REFERENCE_RETURNS`.
    """
    random, expert = REFERENCE_RETURNS[task]
    scale = 100.0 / (expert - random)
    return Metric(SCORE, "reward", "sum", scale=scale, offset=-scale * random)
