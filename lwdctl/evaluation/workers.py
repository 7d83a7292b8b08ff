"""Environments in worker processes, of which any may die or hang without harm to the rest."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from lwdctl.core.errors import LwdctlError
from lwdctl.evaluation.environment import (
    Description,
    Environments,
    Request,
    Response,
    RolloutSettings,
)
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.policies.policy import EpisodePlan

START_TIMEOUT = 180.0
"""Seconds a worker may take to import and build its simulators (numba compiles in some)."""

_DIED = "died"


class EnvironmentWorkers:
    """Environments distributed round-robin over spawned processes.

    Its methods are those of `Environments`. An episode whose process dies or hangs ends with an
    `EpisodeResult.error`.

    Args:
        settings: What every episode shares; must be picklable.
        workers: Number of processes.
        timeout: Seconds a worker may take for one step of its environments.
    """

    def __init__(self, settings: RolloutSettings, workers: int, timeout: float) -> None:
        self._settings, self._timeout = settings, timeout
        self._workers: list[_Worker | None] = [None] * workers
        self._worker_of: dict[int, int] = {}
        self._plans: dict[int, EpisodePlan] = {}
        self.description = Description()

    def start(self, plans: Mapping[int, EpisodePlan], spread: bool = False) -> dict[int, Response]:
        """Start one episode per environment, in new processes where old ones died.

        Args:
            plans: Environment index to episode.
            spread: Whether each environment gets a process of its own, as far as there are any.

        Raises:
            LwdctlError: The user can correct it (unknown task, missing package).
        """
        for order, index in enumerate(plans):
            self._worker_of[index] = (order if spread else index) % len(self._workers)
        self._plans.update(plans)
        return self._request("start", plans, START_TIMEOUT + self._timeout)

    def step(self, requests: Mapping[int, Request]) -> dict[int, Response]:
        """Apply one action per environment."""
        return self._request("step", requests, self._timeout)

    def end(self, indices: Sequence[int], policy_failure: str) -> dict[int, Response]:
        """End the episodes of these environments as failures of the policy."""
        return self._request("end", dict.fromkeys(indices, policy_failure), self._timeout)

    def close(self) -> None:
        """Stop every process, by force where it does not end by itself."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.hang_up()
        for worker in workers:
            worker.stop()
        self._workers = [None] * len(self._workers)

    def _request(
        self, command: str, content: Mapping[int, Any], timeout: float
    ) -> dict[int, Response]:
        """Send every worker its part, then collect: workers compute side by side."""
        parts: dict[int, dict[int, Any]] = {}
        for index, item in content.items():
            parts.setdefault(self._worker_of[index], {})[index] = item
        for number, part in parts.items():
            self._worker(number, may_spawn=command == "start").send((command, part))
        responses: dict[int, Response] = {}
        deadline = time.monotonic() + timeout
        for number, part in parts.items():
            worker = self._worker(number, may_spawn=False)
            answer, loss = worker.receive(deadline)
            if loss:
                lost = {index: EpisodeResult(self._plans[index], error=loss) for index in part}
                responses.update(lost)
                continue
            if isinstance(answer, LwdctlError):
                raise answer
            responses.update(answer[0])
            if answer[1] and answer[1].observations:
                self.description = answer[1]
        return {index: responses[index] for index in content}

    def _worker(self, number: int, *, may_spawn: bool) -> _Worker:
        worker = self._workers[number]
        if worker is not None and worker.lost and may_spawn:
            worker.stop()
            worker = None
        if worker is None:
            worker = self._workers[number] = _Worker(self._settings, number)
        return worker


class _Worker:
    """The parent's end of one process."""

    def __init__(self, settings: RolloutSettings, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(child, settings), name=f"lwdctl-simulator-{number}", daemon=True
        )
        self._process.start()
        child.close()
        self.lost = ""

    def send(self, message: tuple[str, Any]) -> None:
        """Send without waiting; a dead process is noticed here or on receipt."""
        if self.lost:
            return
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._give_up(_DIED)

    def receive(self, deadline: float) -> tuple[Any, str]:
        """Return the answer, and why there is none."""
        if self.lost:
            return None, self.lost
        try:
            if self._connection.poll(max(0.0, deadline - time.monotonic())):
                return self._connection.recv(), ""
            self._give_up("did not answer in time")
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self._give_up(_DIED)
        return None, self.lost

    def hang_up(self) -> None:
        """Close the connection, upon which a healthy process ends."""
        self._connection.close()

    def stop(self) -> None:
        """Wait a moment for the process to end, then kill it."""
        self._process.join(timeout=5.0)
        self._kill()
        self._process.close()

    def _give_up(self, reason: str) -> None:
        self._connection.close()
        self._kill()
        self.lost = f"the simulator process {reason}"
        if reason == _DIED:
            self.lost += f" (exit code {self._process.exitcode})"

    def _kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _serve(connection: Connection[Any, Any], settings: RolloutSettings) -> None:
    """Answer requests until the parent hangs up."""
    # The parent decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environments = Environments(settings)
    try:
        while True:
            command, content = connection.recv()
            try:
                responses = _answer(environments, command, content)
            except LwdctlError as error:
                connection.send(error)
            else:
                started = command == "start"
                connection.send((responses, environments.description if started else None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        environments.close()


def _answer(environments: Environments, command: str, content: Any) -> dict[int, Response]:
    if command == "start":
        return environments.start(content)
    if command == "step":
        return environments.step(content)
    return environments.end(list(content), next(iter(content.values())))
