"""Runs scripted experts, one seed per episode, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import EnvSpec, Episode, FloatArray
from lwdctl.core.seeding import generator

if TYPE_CHECKING:
    from lwdctl.envs.metaworld import MetaworldSimulator

EPISODE_TIMEOUT = 600.0


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

    def episodes(self, task: str, seeds: Sequence[int], expected: int) -> Iterator[Episode]:
        """Yield one episode per seed, in order, until the caller stops asking.

        Args:
            task: Task name.
            seeds: Seeds in the order wanted.
            expected: How many the caller will probably take; no more than this and one per
                worker are begun ahead.

        Raises:
            SimulatorError: A worker died or did not answer.
        """
        if self._pool is None:
            for seed in seeds:
                yield expert_episode(self._env, task, seed, self._noise)
            return
        waiting: deque[Future[Episode]] = deque()
        begun = 0
        for taken, seed in enumerate(seeds):
            ahead = min(max(expected - taken, self._workers), 2 * self._workers)
            try:
                while len(waiting) < ahead and begun < len(seeds):
                    waiting.append(self._begin(self._pool, task, seeds[begun]))
                    begun += 1
                episode = waiting.popleft().result(timeout=EPISODE_TIMEOUT)
            except (BrokenProcessPool, TimeoutError) as error:
                raise SimulatorError(
                    f"a process that collected '{task}' near seed {seed} died or hung",
                    "run it again",
                ) from error
            yield episode

    def _begin(self, pool: ProcessPoolExecutor, task: str, seed: int) -> Future[Episode]:
        return pool.submit(expert_episode, self._env, task, seed, self._noise)


def expert_episode(env: EnvSpec, task: str, seed: int, noise: float) -> Episode:
    """Run the scripted expert of a Metaworld task for one whole episode.

    The recorded action is the executed one, noise and clipping included, so replaying it
    from the initial state repeats the episode.
    """
    from lwdctl.envs.metaworld_expert import MetaworldExpert

    simulator, expert = _simulator(task, env.max_steps), MetaworldExpert(task)
    rng = generator("expert noise", task, seed)
    observation = simulator.reset(seed)
    states: list[FloatArray] = []
    actions: list[FloatArray] = []
    rewards: list[float] = []
    success = False
    for _ in range(simulator.max_steps):
        action = expert.act(observation)
        if noise > 0:
            action = np.clip(action + noise * rng.normal(size=action.shape), -1.0, 1.0)
        action = action.astype(np.float32)
        step = simulator.step(action)
        states.append(observation["observation"])
        actions.append(action)
        rewards.append(step.reward)
        success |= step.success
        observation = step.observation
    return Episode(
        source=f"{task} seed {seed}",
        observations={"observation": np.stack(states)},
        actions=np.stack(actions),
        rewards=np.array(rewards, dtype=np.float32),
        final_observation=dict(observation),
        initial_state=simulator.initial_state(),
        task=task,
        success=success,
        seed=seed,
    )


@lru_cache(maxsize=1)
def _simulator(task: str, max_steps: int) -> MetaworldSimulator:
    """Build the task once per process: what was run before leaves no trace in an episode."""
    from lwdctl.envs.metaworld import MetaworldSimulator

    return MetaworldSimulator(EnvSpec("metaworld", (task,), {}, max_steps), task)
