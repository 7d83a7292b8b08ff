"""A video of one step, made before an evaluation, so that it cannot fail for that after it."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.core.registry import Registry
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.envs.mujoco_rendering import HINT, backends_to_try
from lwdctl.envs.table import SIMULATORS
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.video import Recording
from lwdctl.policies.policy import BatchPolicy, EpisodePlan

VARIABLE = "MUJOCO_GL"


def try_video(
    policy: BatchPolicy,
    env: EnvSpec,
    task: str,
    *,
    timeout: float,
    simulators: Registry = SIMULATORS,
) -> None:
    """Record one step in a process of its own, and settle on the OpenGL backend that did it.

    The backend stays in `MUJOCO_GL`, which processes started later inherit.

    Args:
        policy: What acts, with one slot.
        env: Environment to build.
        task: Which of its tasks.
        timeout: Seconds the step may take.
        simulators: Table to build the simulator from.

    Raises:
        SimulatorError: No backend gives a video.
    """
    before = os.environ.get(VARIABLE)
    reasons = []
    for backend in backends_to_try():
        if backend:
            os.environ[VARIABLE] = backend
        reason = _why_not(policy, env, task, timeout, simulators)
        if not reason:
            return
        reasons.append(f"with {VARIABLE}={backend}: {reason}" if backend else reason)
        _put_back(before)
    raise SimulatorError(
        f"cannot record videos of '{env.adapter}': {'; '.join(reasons)}",
        f"{HINT}; without --video nothing is drawn",
    )


def _why_not(
    policy: BatchPolicy, env: EnvSpec, task: str, timeout: float, simulators: Registry
) -> str:
    plan = EpisodePlan(index=0, seed=EVALUATION_SEED_START, task=task)
    with TemporaryDirectory() as folder:
        recording = Recording(Path(folder), "trial", frozenset([0]))
        (episode,) = rollout(
            policy,
            env,
            [plan],
            width=1,
            workers=1,
            max_steps=1,
            timeout=timeout,
            simulators=simulators,
            recording=recording,
        ).episodes
        if recording.videos():
            return ""
        return episode.error or "".join(recording.failures().values()) or "there is no frame"


def _put_back(value: str | None) -> None:
    os.environ.pop(VARIABLE, None)
    if value is not None:
        os.environ[VARIABLE] = value
