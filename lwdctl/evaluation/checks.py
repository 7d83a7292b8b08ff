"""Checks before an evaluation: the environment fits the data, and this machine makes videos."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.records import UNKNOWN_UNITS, EnvSpec, SourceSpec
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.envs.gymnasium_adapter import GymnasiumAdapter
from lwdctl.envs.mujoco_rendering import HINT, VARIABLE, backends_to_try
from lwdctl.envs.table import Environment, is_own, make_simulator
from lwdctl.evaluation.environment import step_limit
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.video import FFMPEG_FAILED, Recording
from lwdctl.policies.policy import BatchPolicy, EpisodePlan

NAME_ENVIRONMENT = (
    "ingest them again with --env ADAPTER/NAME (--env package.module:Class/NAME for one of your"
    " own) and train again; or evaluate what is trained in Python: lwdctl.evaluate(POLICY, env=ENV)"
)
"""Hint where data name no environment."""
NAME_LABELS = (
    "the data have no labels: leave --label out; or ingest them again with --label-from KEY and"
    " train again"
)
"""Hint where data have no labels."""


def check_compatible(
    spec: SourceSpec,
    env: Environment,
    task: str,
    limits: tuple[int | None, float] | None = None,
) -> None:
    """Check that an environment has the observations and actions of the data.

    An evaluation so fails before its first condition, not at its last one.

    Args:
        spec: Describes the data.
        env: Environment to build.
        task: One of its tasks.
        limits: Of an evaluation, its steps per episode (None for the environment's own limit) and
            its largest perturbation, which are checked too; None checks neither.

    Raises:
        ConfigError: They differ; the message names the observation or the action property. Or the
            environment has no limit of its own, or cannot be perturbed.
    """
    simulator = make_simulator(env, task)
    try:
        check_described(spec, simulator, task)
        if limits is not None:
            step_limit(simulator, limits[0])
            if limits[1] and isinstance(simulator, GymnasiumAdapter):
                simulator.check_perturbed()
    finally:
        simulator.close()


def warn_of_ignored_seed(env: Environment, task: str) -> str:
    """Say where episodes of one seed begin differently; "" elsewhere.

    Two resets of an environment that is built for it tell. One of lwdctl's own needs no check, and
    one that others made is not reset.
    """
    own = isinstance(env, EnvSpec) and is_own(env.adapter)
    if own or isinstance(env, gymnasium.Env):
        return ""
    simulator = make_simulator(env, task)
    try:
        first, second = simulator.reset(0), simulator.reset(0)
    except Exception:  # noqa: BLE001 - what fails for good will fail the episodes
        return ""
    finally:
        simulator.close()
    if all(np.array_equal(first[key], second[key], equal_nan=True) for key in first):
        return ""
    return (
        "warning: two resets of the environment with the same seed began differently, so policies"
        " do not start from the same states, and paired tests do not hold: draw from self.np_random"
        " after super().reset(seed=seed), and keep no state of wrappers over a reset"
    )


def restores_initial_states(store: SnippetStore) -> bool:
    """Tell whether demonstrations hold initial states that their environment can restore."""
    found = (store.initial_state(index) for index in range(len(store.episodes.task)))
    state = next((item for item in found if item is not None), None)
    env = store.spec.env
    if state is None or is_own(env.adapter):
        return state is not None
    simulator = make_simulator(env, next(iter(env.tasks), ""))
    simulator.close()
    restores = getattr(type(simulator), "restore", None)
    return restores is not GymnasiumAdapter.restore or state.shape == (1,)  # that of a seed


def check_fresh_seeds(recorded: npt.NDArray[np.int64], seed: int, episodes: int) -> None:
    """Check that no episode starts where a demonstration did.

    Args:
        recorded: (demonstration,), seeds of the demonstrations, -1 where unknown.
        seed: First evaluation seed.
        episodes: Number of evaluation seeds.

    Raises:
        ConfigError: A demonstration was recorded from one of the evaluation seeds.
    """
    last = seed + episodes - 1
    if used := int(((recorded >= seed) & (recorded <= last)).sum()):
        raise ConfigError(
            f"{used} demonstrations were recorded from the evaluation seeds {seed} to {last}:"
            " policies would start from states that they were trained on",
            f"--seed {int(recorded.max()) + 1}",
        )


def warn_of_seeds(spec: SourceSpec, seed: int, episodes: int) -> str:
    """Say where evaluation seeds lie among those of the demonstrations; "" where none does.

    A description of data holds the first and the last of their seeds only.
    """
    first, last = spec.collection_seeds or (0, -1)
    if first >= seed + episodes or seed > last:
        return ""
    return (
        f"warning: demonstrations were recorded from seeds between {first} and {last}: policies may"
        f" start from states that they were trained on; seed={last + 1} avoids it"
    )


def check_described(spec: SourceSpec, described: Any, task: str) -> None:
    """Check the `observations` and `action` of a simulator, or of its class.

    Raises:
        ConfigError: As for `check_compatible`.
    """
    sizes = {item.name: item.size for item in described.observations}
    for item in spec.observations:
        if item.network and sizes.get(item.name) != item.size:
            raise ConfigError(
                f"the data has an observation '{item.name}' of {item.size} components, the"
                f" environment of task '{task}' gives {sizes.get(item.name, 'none')}",
                f"it gives: {', '.join(f'{name} ({size})' for name, size in sizes.items())};"
                f" ingest with --rename '{item.name}=NAME' to store it under such a name, or leave"
                " it out with --observation-keys",
            )
    data, action = spec.action, described.action
    # A plain gymnasium.Env says nothing of what its actions mean.
    differ = action.units != UNKNOWN_UNITS and data.semantics != action.semantics
    if data.size != action.size or differ:
        raise ConfigError(
            f"the data has {data.semantics} actions of {data.size} components, the environment"
            f" of task '{task}' takes {action.semantics} ones of {action.size}",
            "evaluate in the environment that the data was recorded in. If that is this one and"
            " it is your own, correct the `action` that its class declares, or ingest with"
            " --actions",
        )


def check_video(policy: BatchPolicy, env: Environment, task: str, *, timeout: float) -> None:
    """Record one step in a worker process, and select the OpenGL backend that can.

    The backend stays in `MUJOCO_GL`, which processes started later inherit. Run before an
    evaluation, it saves a long run from failing at its videos.

    Args:
        policy: A policy for one environment.
        env: Environment to build.
        task: One of its tasks.
        timeout: Seconds the step may take.

    Raises:
        SimulatorError: No backend gives a video.
    """
    before = os.environ.get(VARIABLE)
    reasons = []
    for backend in backends_to_try():
        if backend:
            os.environ[VARIABLE] = backend
        reason, hint = _video_failure(policy, env, task, timeout)
        if not reason:
            return
        _restore_variable(before)
        if hint != HINT:  # another backend would draw no more
            reasons = [reason]
            break
        reasons.append(f"with {VARIABLE}={backend}: {reason}" if backend else reason)
    raise SimulatorError(
        f"cannot record videos of task '{task}': {'; '.join(reasons)}",
        "; ".join(filter(None, [hint, "without --video nothing is drawn"])),
    )


def _video_failure(
    policy: BatchPolicy, env: Environment, task: str, timeout: float
) -> tuple[str, str]:
    """Return why there is no video and what to do about it, or two empty texts."""
    plan = EpisodePlan(index=0, seed=EVALUATION_SEED_START, task=task)
    with TemporaryDirectory() as folder:
        recording = Recording(Path(folder), "trial", frozenset([0]))
        (episode,) = rollout(
            policy,
            env,
            [plan],
            num_envs=1,
            workers=1,
            max_steps=1,
            timeout=timeout,
            recording=recording,
        ).episodes
        if recording.videos():
            return "", ""
        ((reason, hint),) = recording.causes().values() or [("no frame was drawn", "")]
        # Any other error without a hint is taken for that of an OpenGL backend.
        hint = hint or ("" if FFMPEG_FAILED in reason else HINT)
        return episode.error or reason, hint


def _restore_variable(value: str | None) -> None:
    os.environ.pop(VARIABLE, None)
    if value is not None:
        os.environ[VARIABLE] = value
