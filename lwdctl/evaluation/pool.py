"""Simulators in worker processes, of which any may die or hang without harm to the rest."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np

from lwdctl.core.errors import LwdctlError
from lwdctl.core.records import ObservationSpec
from lwdctl.evaluation.host import EpisodeHost, HostSettings, Move, Reply, Tally
from lwdctl.policies.policy import EpisodePlan

START_TIMEOUT = 180.0
"""Seconds a worker may take to import and build its simulators (numba compiles in some)."""

_NOTHING = np.zeros(0, dtype=np.float32)
_DIED = "died"


class Pool(Protocol):
    """Where slots live. A slot whose simulator is lost answers with `Reply.error`."""

    def start(self, plans: Mapping[int, EpisodePlan], spread: bool = False) -> dict[int, Reply]:
        """Start one episode per slot; `spread` gives each its own worker where there are any."""

    def step(self, moves: Mapping[int, Move]) -> dict[int, Reply]:
        """Apply one action per slot."""

    def tallies(self, slots: Sequence[int]) -> dict[int, Tally]:
        """Return what the episodes, which end here, have come to, but for a dead worker's."""

    def observations(self) -> tuple[ObservationSpec, ...]:
        """Return the observation keys, known once an episode has started."""

    def close(self) -> None:
        """Close every simulator; no process stays behind."""


def open_pool(settings: HostSettings, workers: int, timeout: float) -> Pool:
    """Open simulators in `workers` spawned processes, or in this one when it is 0.

    Args:
        settings: What every episode shares.
        workers: Number of processes.
        timeout: Seconds a worker may take for one step of its slots.
    """
    return WorkerPool(settings, workers, timeout) if workers else LocalPool(settings)


class LocalPool:
    """Every slot in this process; a simulator that hangs hangs with it."""

    def __init__(self, settings: HostSettings) -> None:
        self._host = EpisodeHost(settings)

    def start(self, plans: Mapping[int, EpisodePlan], spread: bool = False) -> dict[int, Reply]:
        """Start one episode per slot."""
        del spread
        return self._host.start(plans)

    def step(self, moves: Mapping[int, Move]) -> dict[int, Reply]:
        """Apply one action per slot."""
        return self._host.step(moves)

    def tallies(self, slots: Sequence[int]) -> dict[int, Tally]:
        """Return what the episodes have come to."""
        return self._host.tallies(list(slots))

    def observations(self) -> tuple[ObservationSpec, ...]:
        """Return the observation keys."""
        return self._host.observations()

    def close(self) -> None:
        """Close every simulator."""
        self._host.close()


class WorkerPool:
    """Slots spread round-robin over spawned processes."""

    def __init__(self, settings: HostSettings, workers: int, timeout: float) -> None:
        self._settings, self._timeout = settings, timeout
        self._workers: list[_Worker | None] = [None] * workers
        self._owner: dict[int, int] = {}
        self._observations: tuple[ObservationSpec, ...] = ()

    def start(self, plans: Mapping[int, EpisodePlan], spread: bool = False) -> dict[int, Reply]:
        """Start one episode per slot, on new workers where old ones died."""
        count = len(self._workers)
        for order, slot in enumerate(plans):
            self._owner[slot] = (order if spread else slot) % count
        replies, seen = self._ask("start", plans, START_TIMEOUT + self._timeout)
        self._observations = next((item for item in seen if item), self._observations)
        return replies

    def step(self, moves: Mapping[int, Move]) -> dict[int, Reply]:
        """Apply one action per slot."""
        return self._ask("step", moves, self._timeout)[0]

    def tallies(self, slots: Sequence[int]) -> dict[int, Tally]:
        """Return what the episodes have come to; slots of a dead worker are left out."""
        replies, _ = self._ask("tallies", dict.fromkeys(slots), self._timeout)
        return {slot: reply.tally for slot, reply in replies.items() if reply.tally is not None}

    def observations(self) -> tuple[ObservationSpec, ...]:
        """Return the observation keys, known once an episode has started."""
        return self._observations

    def close(self) -> None:
        """Stop every worker, by force where it does not go by itself."""
        for worker in self._workers:
            if worker is not None:
                worker.hang_up()
        for worker in self._workers:
            if worker is not None:
                worker.stop()
        self._workers = [None] * len(self._workers)

    def _ask(
        self, command: str, content: Mapping[int, Any], timeout: float
    ) -> tuple[dict[int, Reply], list[tuple[ObservationSpec, ...]]]:
        """Send every worker its part, then collect: workers compute side by side."""
        parts: dict[int, dict[int, Any]] = {}
        for slot, item in content.items():
            parts.setdefault(self._owner[slot], {})[slot] = item
        for index, part in parts.items():
            self._worker(index, may_spawn=command == "start").send((command, part))
        replies: dict[int, Reply] = {}
        seen: list[tuple[ObservationSpec, ...]] = []
        deadline = time.monotonic() + timeout
        for index, part in parts.items():
            worker = self._worker(index, may_spawn=False)
            answer, loss = worker.receive(deadline)
            if loss:
                replies.update(dict.fromkeys(part, Reply(_NOTHING, error=loss)))
                continue
            if isinstance(answer, LwdctlError):
                raise answer
            replies.update(answer[0])
            seen.append(answer[1])
        return {slot: replies[slot] for slot in content}, seen

    def _worker(self, index: int, *, may_spawn: bool) -> _Worker:
        worker = self._workers[index]
        if worker is not None and worker.lost and may_spawn:
            worker.stop()
            worker = None
        if worker is None:
            worker = self._workers[index] = _Worker(self._settings, index)
        return worker


class _Worker:
    """The parent's end of one process."""

    def __init__(self, settings: HostSettings, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(child, settings), name=f"lwdctl-simulator-{index}", daemon=True
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


def _serve(connection: Connection[Any, Any], settings: HostSettings) -> None:
    """Answer requests until the parent hangs up."""
    # The parent decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host = EpisodeHost(settings)
    commands: dict[str, Callable[[Any], dict[int, Reply]]] = {
        "start": host.start,
        "step": host.step,
        "tallies": lambda slots: {
            slot: Reply(_NOTHING, tally) for slot, tally in host.tallies(list(slots)).items()
        },
    }
    try:
        while True:
            command, content = connection.recv()
            try:
                replies = commands[command](content)
            except LwdctlError as error:
                connection.send(error)
            else:
                connection.send((replies, host.observations() if command == "start" else ()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        host.close()
