"""Runs scripted experts, one seed per episode, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import EnvSpec, Episode, FloatArray
from lwdctl.core.seeding import generator
from lwdctl.envs.experts import EXPERTS, ExpertSet
from lwdctl.envs.simulator import Observation, Simulator, Step
from lwdctl.envs.table import make_simulator

EPISODE_TIMEOUT = 600.0


@dataclass(frozen=True)
class Recording:
    """An episode, and what only the simulator's file format has a place for.

    Attributes:
        episode: The demonstration.
        states: (time, state), float64, the simulator's state at each action, or None.
    """

    episode: Episode
    states: npt.NDArray[np.float64] | None


class ExpertRunner:
    """Yields expert episodes in the order of their seeds, whatever the number of workers.

    Args:
        env: The environment; `max_steps` says when an episode ends.
        noise: Standard deviation of the Gaussian noise on actions.
        workers: Spawned processes; 0 runs in this one.
    """

    def __init__(self, env: EnvSpec, noise: float, workers: int) -> None:
        self._env, self._noise, self._workers = env, noise, workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> ExpertRunner:
        """Start the workers."""
        if self._workers:
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=multiprocessing.get_context("spawn")
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())  # noqa: SLF001 - no public kill
        if kind is not None:
            for process in processes:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def episodes(
        self, task: str, seeds: Sequence[int], expected: int, operator: str = ""
    ) -> Iterator[Recording]:
        """Yield one episode per seed, in order, until the caller stops asking.

        Args:
            task: Task name.
            seeds: Seeds in the order wanted.
            expected: How many the caller will probably take; no more than this and one per
                worker are begun ahead.
            operator: Which of the task's experts, where there are several.

        Raises:
            SimulatorError: A worker died or did not answer.
        """
        if self._pool is None:
            for seed in seeds:
                yield expert_episode(self._env, task, seed, self._noise, operator)
            return
        waiting: deque[Future[Recording]] = deque()
        begun = 0
        for taken, seed in enumerate(seeds):
            ahead = min(max(expected - taken, self._workers), 2 * self._workers)
            try:
                while len(waiting) < ahead and begun < len(seeds):
                    waiting.append(self._begin(self._pool, task, seeds[begun], operator))
                    begun += 1
                recording = waiting.popleft().result(timeout=EPISODE_TIMEOUT)
            except (BrokenProcessPool, TimeoutError) as error:
                raise SimulatorError(
                    f"a process that collected '{task}' near seed {seed} died or hung",
                    "run it again",
                ) from error
            yield recording

    def _begin(
        self, pool: ProcessPoolExecutor, task: str, seed: int, operator: str
    ) -> Future[Recording]:
        return pool.submit(expert_episode, self._env, task, seed, self._noise, operator)


def expert_episode(
    env: EnvSpec, task: str, seed: int, noise: float, operator: str = ""
) -> Recording:
    """Run a task's scripted expert for one episode.

    The recorded action is the executed one, noise and clipping included, so replaying it
    from the initial state repeats the episode.
    """
    experts: ExpertSet = EXPERTS.load(env.adapter)
    simulator = _simulator(env.adapter, task, env.max_steps)
    expert = experts.expert(task, operator, seed)
    rng = generator("expert noise", task, seed)
    observation = simulator.reset(seed)
    steps: list[_Taken] = []
    for _ in range(simulator.max_steps):
        action = expert.act(observation)
        if noise > 0:
            action = np.clip(action + noise * rng.normal(size=action.shape), -1.0, 1.0)
        action = action.astype(np.float32)
        state = experts.state(simulator)
        steps.append(_Taken(observation, state, action, simulator.step(action)))
        observation = steps[-1].step.observation
        if expert.finished(steps[-1].step.success):
            break
    return _recording(
        steps,
        source=f"{task} seed {seed}",
        initial_state=simulator.initial_state(),
        model=experts.scene(simulator),
        task=task,
        label=operator,
        seed=seed,
    )


@dataclass(frozen=True)
class _Taken:
    """One step: what was seen, what was done, what came of it."""

    observation: Observation
    state: npt.NDArray[np.float64] | None
    action: FloatArray
    step: Step


def _recording(steps: Sequence[_Taken], **about: Any) -> Recording:
    episode = Episode(
        observations={
            key: np.stack([taken.observation[key] for taken in steps])
            for key in steps[0].observation
        },
        actions=np.stack([taken.action for taken in steps]),
        rewards=np.array([taken.step.reward for taken in steps], dtype=np.float32),
        final_observation=dict(steps[-1].step.observation),
        success=any(taken.step.success for taken in steps),
        **about,
    )
    states = [taken.state for taken in steps if taken.state is not None]
    return Recording(episode, np.stack(states) if states else None)


@lru_cache(maxsize=1)
def _simulator(adapter: str, task: str, max_steps: int) -> Simulator:
    """Build the task once per process: what was run before leaves no trace in an episode."""
    experts: ExpertSet = EXPERTS.load(adapter)
    return make_simulator(experts.environment((task,), max_steps), task)
