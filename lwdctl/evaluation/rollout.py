"""The rollout engine: many episodes at once, which the policy acts for as a batch.

Episodes run in batches of `num_envs`. The environment of an episode is its index modulo
`num_envs`, and an environment whose episode has finished idles until the batch ends. With worker
processes, a policy that may act for parts of a batch acts for one half of the environments while
the simulators of the other half step. The result of an episode depends on its plan alone: not on
the number of workers, nor on how long other episodes take.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.envs.table import Environment, allowed
from lwdctl.evaluation.environment import (
    Environments,
    EnvironmentWorkers,
    Request,
    Response,
    Responses,
    RolloutSettings,
)
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.journal import EpisodeJournal
from lwdctl.evaluation.video import Recording
from lwdctl.policies.policy import BatchPolicy, EpisodePlan, acts_in_parts

PARTS = ("simulator", "denoiser", "decoding", "policy", "total")


@dataclass(frozen=True)
class RolloutResult:
    """What came of a rollout.

    Attributes:
        episodes: All episodes, in the order of their plans.
        seconds: Wall time by part; that of the simulator is the time spent waiting for it.
        score: Name of the metric that is the environment's score; "" if no simulator started.
        less_is_better: Whether a lower score is a better one.
    """

    episodes: tuple[EpisodeResult, ...]
    seconds: Mapping[str, float]
    score: str = ""
    less_is_better: bool = False


def rollout(  # noqa: PLR0913 - the settings of a rollout, by keyword only
    policy: BatchPolicy,
    env: Environment,
    plans: Sequence[EpisodePlan],
    *,
    num_envs: int,
    workers: int = 0,
    max_steps: int | None = None,
    perturbation: float = 0.0,
    perturbation_probability: float = 0.1,
    timeout: float = 60.0,
    progress: Progress | None = None,
    recording: Recording | None = None,
    journal: EpisodeJournal | None = None,
    name: str = "",
) -> RolloutResult:
    """Run every planned episode with `policy`.

    An episode whose simulator dies, raises or hangs runs once more from its seed, apart from
    others; when that fails too, the episode has an error. A non-finite action and unstable physics
    are failures of the policy.

    Args:
        policy: Holds state for `num_envs` environments.
        env: Environment to build: an `EnvSpec`, or a factory that returns a `Simulator` or a
            `gymnasium.Env` (picklable for worker processes). A `gymnasium.Env` itself runs in this
            process, as the only environment.
        plans: Episodes to run.
        num_envs: Environments stepped as one batch.
        workers: Processes that hold the simulators; 0 holds them in this process.
        max_steps: Steps per episode, or None for the simulator's limit.
        perturbation: Magnitude of perturbations in the environment's unit.
        perturbation_probability: Probability of a perturbation before each step.
        timeout: Seconds a worker may take for one step of its environments.
        progress: Where to report.
        recording: Which episodes to make videos of, or None. The results are the same with and
            without; the simulator's fraction of the wall time is larger.
        journal: Where finished episodes are kept, or None. Those that it holds do not run again;
            the results are the same.
        name: Name of the policy for messages, or "".

    Raises:
        ConfigError: An unknown environment or task, or an environment that cannot run so.
        MissingExtraError: The simulator is not installed.
    """
    if isinstance(env, EnvSpec):
        env = allowed(env)  # worker processes do not know what the user trusts
    _check_environment(env, num_envs, workers)
    settings = RolloutSettings(env, max_steps, perturbation, perturbation_probability, recording)
    environments: Environments | EnvironmentWorkers = (
        EnvironmentWorkers(settings, num_envs, workers, timeout)
        if workers
        else Environments(settings)
    )
    finished = journal.finished(plans) if journal else {}
    bars = progress or SilentProgress()
    try:
        with bars.task("rollout", len(plans), "episode", start=len(finished)) as bar:
            # A batch takes minutes in some simulators: its steps show that it moves.
            engine = Engine(
                policy,
                environments,
                num_envs,
                lambda step: bar.advance(0, solved=_solved(finished), step=step),
                journal,
                name,
            )
            for whole in _batches(plans, num_envs):
                batch = [plan for plan in whole if plan.index not in finished]
                if not batch:
                    continue
                results = engine.run(batch)
                lost = [item.plan for item in results if item.error]
                results += _run_again(engine, lost, workers)
                finished.update({item.plan.index: item for item in results})
                bar.advance(len(batch), solved=_solved(finished))
    finally:
        environments.close()
        if recording is not None:
            recording.sweep()
    return RolloutResult(
        tuple(finished[plan.index] for plan in plans),
        dict(engine.seconds),
        environments.description.score or (journal.score if journal else ""),
        environments.description.less_is_better,
    )


def _check_environment(env: Environment, num_envs: int, workers: int) -> None:
    if isinstance(env, gymnasium.Env) and (num_envs > 1 or workers):
        raise ConfigError(
            f"{env} is one environment in this process, it cannot run as {num_envs} environments"
            f" in {workers} workers",
            "pass what makes it: its class, or a factory such as"
            " functools.partial(gymnasium.make, ENV_ID); or num_envs=1 and workers=0",
        )
    if not workers or isinstance(env, EnvSpec):
        return
    main = sys.modules["__main__"]
    try:
        ForkingPickler.dumps(env)
        reason = ""
    except Exception as error:  # noqa: BLE001 - whatever prevents it, it cannot be sent to a process
        reason = str(error)
    if getattr(env, "__module__", "") == "__main__" and not hasattr(main, "__file__"):
        reason = "it is defined in an interactive session"
    if reason:
        raise ConfigError(
            f"worker processes cannot be given this environment factory: {reason}",
            "define the factory in a module that can be imported, or pass workers=0",
        )


def _solved(finished: Mapping[int, EpisodeResult]) -> int:
    return sum(item.success for item in finished.values())


def _run_again(engine: Engine, lost: Sequence[EpisodePlan], workers: int) -> list[EpisodeResult]:
    """Run lost episodes once more, each in a worker of its own.

    The episodes that share a worker with the one that kills it are lost with it, which must not
    happen to them twice.
    """
    size = max(1, workers)
    groups = [lost[start : start + size] for start in range(0, len(lost), size)]
    return [result for group in groups for result in engine.run(group, attempts=2)]


def _batches(plans: Sequence[EpisodePlan], num_envs: int) -> Iterator[list[EpisodePlan]]:
    """Group plans so that no two of a batch need the same environment."""
    batch: dict[int, EpisodePlan] = {}
    for plan in plans:
        if plan.index % num_envs in batch:
            yield list(batch.values())
            batch = {}
        batch[plan.index % num_envs] = plan
    if batch:
        yield list(batch.values())


class Engine:
    """Runs batches of episodes; adds up wall time by part.

    Args:
        policy: Holds state for `num_envs` environments.
        environments: Where the episodes run.
        num_envs: Number of environments.
        report: Called after every step with the number of steps so far.
        journal: Where finished episodes are kept, or None.
        name: Name of the policy for messages, or "".
    """

    def __init__(
        self,
        policy: BatchPolicy,
        environments: Environments | EnvironmentWorkers,
        num_envs: int,
        report: Callable[[int], None] = lambda _: None,
        journal: EpisodeJournal | None = None,
        name: str = "",
    ) -> None:
        self._name = f"the policy '{name}'" if name else "the policy"
        self._policy, self._environments = policy, environments
        self._num_envs, self._report, self._journal = num_envs, report, journal
        self._rows = np.zeros((num_envs, 0), dtype=np.float32)
        self._parts = environments.parts(num_envs)
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def run(self, plans: Sequence[EpisodePlan], attempts: int = 1) -> list[EpisodeResult]:
        """Run one episode in each of some environments to its end."""
        batch = _Batch({plan.index % self._num_envs: plan for plan in plans})
        batch.take(self._environments.start(batch.plans, spread=attempts > 1))
        started = time.perf_counter()
        if batch.running:
            self._policy.reset([batch.plans.get(index) for index in range(self._num_envs)])
            batch.acting += time.perf_counter() - started
        awaited: dict[int, Responses] = {}
        while batch.running:
            acted = False
            for numbers in self._groups(batch):
                for number in numbers:
                    if number in awaited:
                        self._keep(batch, batch.take(awaited.pop(number)()), attempts)
                parts = {number: batch.running_in(self._parts[number]) for number in numbers}
                running = [index for part in parts.values() for index in part]
                if not running:
                    continue
                before = time.perf_counter()
                alone = len(numbers) == len(self._parts)
                actions = self._act(batch, running, None if alone else 1)
                batch.acting += time.perf_counter() - before
                for number, part in parts.items():
                    if part:
                        awaited[number] = self._step(part, actions)
                acted = True
            if acted:
                batch.steps += 1
                self._report(batch.steps)
        seconds, num_replans = self._spent(batch)
        for name, value in seconds.items():
            self.seconds[name] += value
        results = batch.results(batch.plans, num_replans, seconds, attempts)
        if self._journal:  # once more, with their fractions of the wall time
            self._journal.write(results, self._environments.description.score)
        return results

    def _keep(self, batch: _Batch, ended: Iterable[int], attempts: int) -> None:
        """Write episodes that have ended to the journal: their batch may take long."""
        ended = list(ended)
        if ended and self._journal is not None:
            seconds, num_replans = self._spent(batch)
            results = batch.results(ended, num_replans, seconds, attempts)
            self._journal.write(results, self._environments.description.score)

    def _groups(self, batch: _Batch) -> Sequence[Sequence[int]]:
        """Return the numbers of all parts, grouped by the calls of the policy."""
        running = np.zeros(self._num_envs, dtype=np.bool_)
        running[list(batch.running)] = True
        numbers = range(len(self._parts))
        return [[n] for n in numbers] if acts_in_parts(self._policy, running) else [numbers]

    def _act(self, batch: _Batch, running: Sequence[int], threads: int | None) -> FloatArray:
        """Return the policy's actions (env, action), computed with this number of CPU threads.

        Beside simulators one thread is fastest: it need not wait for others to get a core.
        """
        before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            return self._actions(batch, running)
        finally:
            torch.set_num_threads(before)

    def _actions(self, batch: _Batch, running: Sequence[int]) -> FloatArray:
        keys = self._environments.description.observations
        width = sum(item.size for item in keys)
        if self._rows.shape[1] != width:
            self._rows = np.zeros((self._num_envs, width), dtype=np.float32)
        active = np.zeros(self._num_envs, dtype=np.bool_)
        active[running] = True
        for index in running:
            self._rows[index] = batch.running[index]
        # A copy of each key, because a policy may keep what it is given.
        observations, start = {}, 0
        for item in keys:
            observations[item.name] = self._rows[:, start : start + item.size].copy()
            start += item.size
        actions = np.asarray(self._policy.act(observations, active), dtype=np.float32)
        size = self._environments.description.action_size
        if size and actions.shape != (self._num_envs, size):
            raise ConfigError(
                f"{self._name} returned actions of {actions.shape[-1]} components, the environment"
                f" takes {size}",
                "return from `act` what the environment takes; a trained policy runs where actions"
                " are those of its data",
            )
        return actions

    def _step(self, running: Sequence[int], actions: FloatArray) -> Responses:
        made = self._policy.cost().num_plans
        finite = set(np.flatnonzero(np.isfinite(actions).all(axis=1)).tolist())
        return self._environments.step(
            {
                index: Request(
                    actions[index],
                    int(made[index]) if made.size else 0,
                    "" if index in finite else "an action is not finite",
                )
                for index in running
            }
        )

    def _spent(self, batch: _Batch) -> tuple[dict[str, float], npt.NDArray[np.int64]]:
        """Return a batch's wall time so far by part, and the re-plans of every environment."""
        total = time.perf_counter() - batch.begun
        num_replans: npt.NDArray[np.int64] = np.zeros(self._num_envs, dtype=np.int64)
        spent: Mapping[str, float] = {}
        if batch.acting:
            cost = self._policy.cost()
            num_replans, spent = cost.num_replans, cost.seconds
        denoiser, decoding = spent.get("denoiser", 0.0), spent.get("decoding", 0.0)
        rest = max(0.0, batch.acting - denoiser - decoding)
        parts = (max(0.0, total - batch.acting), denoiser, decoding, rest, total)
        return dict(zip(PARTS, parts, strict=True)), num_replans


class _Batch:
    """The episodes of one batch by environment index: which run, and how the others ended.

    Attributes:
        begun: When it began.
        acting: Seconds that the policy has taken.
        steps: Steps so far.
    """

    def __init__(self, plans: Mapping[int, EpisodePlan]) -> None:
        self.plans = plans
        self.begun, self.acting, self.steps = time.perf_counter(), 0.0, 0
        self.running: dict[int, FloatArray] = {}
        self._ended: dict[int, EpisodeResult] = {}

    def take(self, responses: Mapping[int, Response]) -> dict[int, EpisodeResult]:
        """Store the environments' responses; return the episodes that they end."""
        ended = {}
        for index, response in responses.items():
            if isinstance(response, EpisodeResult):
                self.running.pop(index, None)
                ended[index] = response
            else:
                self.running[index] = response
        self._ended.update(ended)
        return ended

    def running_in(self, part: Sequence[int]) -> list[int]:
        """Return which environments of a part have not ended."""
        return [index for index in part if index in self.running]

    def results(
        self,
        wanted: Iterable[int],
        num_replans: npt.NDArray[np.int64],
        seconds: Mapping[str, float],
        attempts: int,
    ) -> list[EpisodeResult]:
        """Return the results of ended episodes; each has its part of the wall time by its steps."""
        steps = sum(item.steps for item in self._ended.values()) + self.steps * len(self.running)
        results = []
        for index in wanted:
            ended = self._ended[index]
            fraction = ended.steps / steps if steps else 1 / len(self.plans)
            results.append(
                replace(
                    ended,
                    plan=self.plans[index],
                    num_replans=int(num_replans[index]),
                    seconds={part: fraction * value for part, value in seconds.items()},
                    attempts=attempts,
                )
            )
        return results
