"""Videos of an evaluation: which episodes, where they go, and whether this machine can."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lwdctl.core.records import SourceSpec
from lwdctl.evaluation.trial import try_video
from lwdctl.evaluation.video import Recording, first_episodes
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.random import RandomPolicy

FOLDER = "videos"


def check_video(spec: SourceSpec, task: str, timeout: float) -> None:
    """Record one step of random actions, before anything that takes long.

    Raises:
        SimulatorError: This machine gives no video.
    """
    try_video(RandomPolicy(spec.action, 1), spec.env, task, timeout=timeout)


def recording_of(
    arm: str, plans: Sequence[EpisodePlan], count: int, every: int, folder: Path
) -> Recording | None:
    """Return what to record of one arm, or None for a `count` of 0.

    Args:
        arm: Its name (`"lwd-sampled"`), which is also its folder's.
        plans: Its episodes.
        count: How many to record, in turn over the tasks.
        every: Steps from frame to frame, 0 for real time.
        folder: The evaluation's folder.
    """
    if not count:
        return None

    title = arm.replace("-", " ")
    return Recording(folder / FOLDER / arm, title, first_episodes(plans, count), every)


def list_videos(arms: Iterable[str], folder: Path) -> dict[str, list[str]]:
    """Return arm to its videos, as paths in the artifact; stills stand beside them."""
    return {
        arm: [
            path.relative_to(folder).as_posix()
            for path in sorted((folder / FOLDER / arm).glob("*.mp4"))
        ]
        for arm in arms
    }
