"""The rollout engine: many episodes at once, every step one batch for the policy.

Episodes run in waves of `width` slots; an episode's slot is its index modulo `width`, and a
slot that has finished idles until the wave ends. What an episode does therefore depends on
its plan alone: not on the number of workers, nor on how long its neighbors take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.core.registry import Registry
from lwdctl.envs.table import SIMULATORS
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.host import HostSettings, Move, Reply, Tally
from lwdctl.evaluation.pool import Pool, open_pool
from lwdctl.evaluation.video import Recording
from lwdctl.policies.policy import BatchPolicy, EpisodePlan

PARTS = ("simulator", "denoiser", "decoding", "policy", "total")


@dataclass(frozen=True)
class RolloutResult:
    """All episodes in the order of their plans, and wall seconds by part."""

    episodes: tuple[EpisodeResult, ...]
    seconds: Mapping[str, float]


def rollout(  # noqa: PLR0913 - the protocol's knobs, by keyword only
    policy: BatchPolicy,
    env: EnvSpec,
    plans: Sequence[EpisodePlan],
    *,
    width: int,
    workers: int,
    max_steps: int | None = None,
    perturbation: float = 0.0,
    perturbation_probability: float = 0.1,
    timeout: float = 60.0,
    progress: Progress | None = None,
    simulators: Registry = SIMULATORS,
    recording: Recording | None = None,
) -> RolloutResult:
    """Run every planned episode with `policy`.

    An episode whose simulator dies, raises or hangs is run once more from its seed, apart
    from others; when that fails too it is an error. A non-finite action and unstable physics
    are failures of the policy.

    Args:
        policy: Holds state for `width` slots.
        env: Environment to build.
        plans: What to run.
        width: Slots stepped as one batch.
        workers: Processes that hold the simulators; 0 holds them in this one.
        max_steps: Steps per episode, or None for the simulator's limit.
        perturbation: Magnitude of disturbances in the adapter's unit.
        perturbation_probability: Chance of a disturbance before each step.
        timeout: Seconds a worker may take for one step of its slots.
        progress: Where to report.
        simulators: Table to build simulators from.
        recording: Which episodes to make videos of, or None. Results are the same with and
            without; the simulator's share of the wall time is larger.

    Raises:
        ConfigError: An unknown environment or task.
        MissingExtraError: The simulator is not installed.
    """
    settings = HostSettings(
        env, simulators, max_steps, perturbation, perturbation_probability, recording
    )
    pool = open_pool(settings, workers, timeout)
    done: dict[int, EpisodeResult] = {}
    try:
        with (progress or SilentProgress()).task("rollout", len(plans), "episode") as bar:
            # A wave takes minutes in some simulators: its steps show that it moves.
            engine = _Engine(
                policy, pool, width, lambda step: bar.advance(0, solved=_solved(done), step=step)
            )
            for wave in _waves(plans, width):
                results = engine.run(wave)
                results += _again(engine, [item.plan for item in results if item.error], workers)
                done.update({item.plan.index: item for item in results})
                bar.advance(len(wave), solved=_solved(done))
    finally:
        pool.close()
        if recording is not None:
            recording.sweep()
    return RolloutResult(tuple(done[plan.index] for plan in plans), dict(engine.seconds))


def _solved(done: Mapping[int, EpisodeResult]) -> int:
    return sum(item.success for item in done.values())


def _again(engine: _Engine, lost: Sequence[EpisodePlan], workers: int) -> list[EpisodeResult]:
    """Run lost episodes once more, each on a worker of its own.

    Whoever shares a worker with the episode that kills it is lost with it, and must not be so
    twice.
    """
    size = max(1, workers)
    groups = [lost[start : start + size] for start in range(0, len(lost), size)]
    return [result for group in groups for result in engine.run(group, attempts=2)]


def _waves(plans: Sequence[EpisodePlan], width: int) -> Iterator[list[EpisodePlan]]:
    """Group plans so that no two of a wave share a slot."""
    wave: dict[int, EpisodePlan] = {}
    for plan in plans:
        if plan.index % width in wave:
            yield list(wave.values())
            wave = {}
        wave[plan.index % width] = plan
    if wave:
        yield list(wave.values())


class _Engine:
    """Runs waves; adds up wall time by part."""

    def __init__(
        self, policy: BatchPolicy, pool: Pool, width: int, tell: Callable[[int], None]
    ) -> None:
        self._policy, self._pool, self._width, self._tell = policy, pool, width, tell
        self._keys: list[tuple[str, int, int]] = []
        self._rows = np.zeros((width, 0), dtype=np.float32)
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def run(self, plans: Sequence[EpisodePlan], attempts: int = 1) -> list[EpisodeResult]:
        """Run one episode in each of some slots to its end."""
        wave = _Wave({plan.index % self._width: plan for plan in plans})
        begun = time.perf_counter()
        acting, simulating, steps = 0.0, 0.0, 0
        clock = begun
        wave.take(self._pool.start(wave.plans, spread=attempts > 1))
        simulating += time.perf_counter() - clock
        self._learn_keys()
        if wave.running:
            clock = time.perf_counter()
            self._policy.reset([wave.plans.get(slot) for slot in range(self._width)])
            acting += time.perf_counter() - clock
        while wave.running:
            clock = time.perf_counter()
            actions = self._act(wave)
            middle = time.perf_counter()
            self._advance(wave, actions)
            acting += middle - clock
            simulating += time.perf_counter() - middle
            steps += 1
            self._tell(steps)
        total = time.perf_counter() - begun
        return self._results(wave, simulating, acting, total, attempts)

    def _learn_keys(self) -> None:
        if self._keys or not self._pool.observations():
            return
        start = 0
        for item in self._pool.observations():
            self._keys.append((item.name, start, start + item.size))
            start += item.size
        self._rows = np.zeros((self._width, start), dtype=np.float32)

    def _act(self, wave: _Wave) -> FloatArray:
        active = np.zeros(self._width, dtype=np.bool_)
        for slot, observation in wave.running.items():
            self._rows[slot] = observation
            active[slot] = True
        # A copy each, because a policy may keep what it is given.
        observations = {name: self._rows[:, low:high].copy() for name, low, high in self._keys}
        return np.asarray(self._policy.act(observations, active), dtype=np.float32)

    def _advance(self, wave: _Wave, actions: FloatArray) -> None:
        failed = [slot for slot in wave.running if not np.isfinite(actions[slot]).all()]
        if failed:
            tallies = self._pool.tallies(failed)
            for slot in failed:
                wave.fail(slot, tallies.get(slot, Tally()), "an action is not finite")
        if wave.running:
            made = self._policy.cost().num_plans
            wave.take(
                self._pool.step(
                    {
                        slot: Move(actions[slot], int(made[slot]) if made.size else 0)
                        for slot in wave.running
                    }
                )
            )

    def _results(
        self, wave: _Wave, simulating: float, acting: float, total: float, attempts: int
    ) -> list[EpisodeResult]:
        queries: npt.NDArray[np.int64] = np.zeros(self._width, dtype=np.int64)
        spent: Mapping[str, float] = {}
        if acting:
            cost = self._policy.cost()
            queries, spent = cost.num_replans, cost.seconds
        denoiser, decoding = spent.get("denoiser", 0.0), spent.get("decoding", 0.0)
        rest = max(0.0, acting - denoiser - decoding)
        seconds = dict(zip(PARTS, (simulating, denoiser, decoding, rest, total), strict=True))
        for part, value in seconds.items():
            self.seconds[part] += value
        return wave.results(queries, seconds, attempts)


class _Wave:
    """The slots of one wave: who runs, who ended and how."""

    def __init__(self, plans: Mapping[int, EpisodePlan]) -> None:
        self.plans = plans
        self.running: dict[int, FloatArray] = {}
        self._ended: dict[int, Reply] = {}

    def take(self, replies: Mapping[int, Reply]) -> None:
        """Note the simulators' answers."""
        for slot, reply in replies.items():
            if reply.error or reply.policy_failure or reply.tally is not None:
                self.running.pop(slot, None)
                self._ended[slot] = reply
            else:
                self.running[slot] = reply.observation

    def fail(self, slot: int, tally: Tally, reason: str) -> None:
        """End a slot's episode as a failure of the policy."""
        observation = self.running.pop(slot)
        self._ended[slot] = Reply(observation, tally, policy_failure=reason)

    def results(
        self, queries: npt.NDArray[np.int64], seconds: Mapping[str, float], attempts: int
    ) -> list[EpisodeResult]:
        """Make the results; wall time is shared out by steps."""
        tallies = {slot: self._ended[slot].tally or Tally() for slot in self.plans}
        steps = sum(tally.steps for tally in tallies.values())
        results = []
        for slot, plan in self.plans.items():
            reply, tally = self._ended[slot], tallies[slot]
            share = tally.steps / steps if steps else 1 / len(self.plans)
            failed = bool(reply.policy_failure)
            results.append(
                EpisodeResult(
                    plan=plan,
                    steps=tally.steps,
                    success=tally.success and not failed,
                    final_success=tally.final_success and not failed,
                    return_=tally.return_,
                    metrics=tally.failed if failed else tally.metrics,
                    num_replans=int(queries[slot]),
                    seconds={part: share * value for part, value in seconds.items()},
                    error=reply.error,
                    policy_failure=reply.policy_failure,
                    attempts=attempts,
                )
            )
        return results
