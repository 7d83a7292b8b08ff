"""The other processes of a training: whether they still run and answer, and how they ended.

Every process counts up a number in the store at which the processes have met, in a thread of its
own, and looks at the numbers of the others.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lwdctl.artifacts.manifest import command_line
from lwdctl.core.errors import (
    EXIT_BUG,
    EXIT_USER,
    WRITE_ERRNOS,
    ConfigError,
    LwdctlError,
    first_line,
    is_out_of_memory,
)
from lwdctl.core.launch import Launch

TIMEOUT = "LWDCTL_RANK_TIMEOUT"
"""Environment variable: seconds without a sign of life after which a process counts as gone."""
DEFAULT_TIMEOUT = 60.0
ARRIVAL_SECONDS = 300.0
"""Seconds in which all processes must have started."""
STALLED_SECONDS = 1800.0
"""Seconds that the processes wait for one that runs but does not get to the same place."""
EXIT_OF_SIGNALS = 128
_BEATS = 20
"""Signs of life within the time-out."""
_EXPLAIN_SECONDS = 10.0
"""Seconds in which to find out why a connection broke."""
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Peer:
    """A process of the training, as it introduces itself.

    Attributes:
        rank: Its number.
        host: Name of its machine.
        pid: Its process id there.
        place: Tells apart machines and containers: process ids are compared within one alone.
        software: Versions that have to agree.
    """

    rank: int
    host: str
    pid: int
    place: str
    software: str

    @classmethod
    def myself(cls, rank: int, software: str) -> Peer:
        """Return this process."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        return cls(rank, socket.gethostname(), os.getpid(), place, software)

    def __str__(self) -> str:
        """Name it for people."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def has_ended(self) -> bool:
        """Tell whether the process, of this machine, runs no more."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return True
        return state.rpartition(")")[2].split()[:1] in (["Z"], ["X"])


class LostProcessError(LwdctlError):
    """Another process of the training has gone, or has failed."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Peers:
    """Who the processes of a training are, and whether they still answer.

    Args:
        launch: This process among them.
        store: Where they meet: a store of torch.distributed.
        software: Versions that have to agree.

    Attributes:
        entered: Number of common steps that this process has come to.
        problem: Why the training cannot go on, or None.
    """

    def __init__(self, launch: Launch, store: Any, software: str) -> None:
        self.entered = 0
        self.problem: LostProcessError | None = None
        self._launch, self._store = launch, store
        self._timeout = _timeout()
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._beats = 0
        self._myself = Peer.myself(launch.rank, software)
        self._others: list[Peer] = []
        self._seen: dict[int, tuple[str, float]] = {}

    def meet(self) -> None:
        """Wait until all processes are there, and begin to watch them.

        Raises:
            ConfigError: Some do not arrive, or run other software.
        """
        rank, size = self._launch.rank, self._launch.size
        self._store.set(f"beat/{rank}", "0 0")
        self._store.set(f"end/{rank}", "")
        told = self.gather("peer", json.dumps(asdict(self._myself)), ARRIVAL_SECONDS)
        found = [Peer(**json.loads(text)) for text in told]
        for peer in found:
            if peer.software != self._myself.software:
                raise ConfigError(
                    f"{peer} runs {peer.software}, but {self._myself} {self._myself.software}",
                    "install the same versions on all nodes",
                )
        self._others = [found[number] for number in range(size) if number != rank]
        threading.Thread(target=self._watch, daemon=True).start()

    def gather(self, name: str, text: str, seconds: float = STALLED_SECONDS) -> list[str]:
        """Return what every process says under a name, by rank; each name serves once.

        Raises:
            LostProcessError: Another process has gone.
            ConfigError: Some did not say anything in time.
        """
        keys = [f"{name}/{number}" for number in range(self._launch.size)]
        self._store.set(keys[self._launch.rank], text)
        begun = time.monotonic()
        while not self._store.check(keys):
            self.check()
            if time.monotonic() - begun > seconds:
                late = [n for n, key in enumerate(keys) if not self._store.check([key])]
                raise ConfigError(
                    f"rank {', '.join(map(str, late))} of the training did not arrive within"
                    f" {seconds:.0f} s at {self._where()}",
                    "start the same command on every node, with the same number of processes",
                )
            time.sleep(_LOOK_SECONDS)
        return [value.decode() for value in self._store.multi_get(keys)]

    def wait(self, done: Callable[[float], bool]) -> None:
        """Wait for something that all processes do together.

        Args:
            done: Waits for the number of seconds it is given at most, and tells whether it is done.

        Raises:
            LostProcessError: Another process has gone, or does not get there.
        """
        self.entered += 1
        begun = time.monotonic()
        while not done(1.0):
            self.check()
            if time.monotonic() - begun > STALLED_SECONDS:
                behind = [str(peer) for peer in self._others if self._steps_of(peer) < self.entered]
                late = ", ".join(behind) or "the network: all processes have come to this step"
                raise self._lost(f"waited {STALLED_SECONDS:.0f} s for {late}")

    def check(self) -> None:
        """Raise an error if another process has gone or failed.

        Raises:
            LostProcessError: It has.
        """
        if self.problem is not None:
            raise self.problem

    def explain(self, error: BaseException) -> LostProcessError:
        """Return which process has gone, after a connection broke or a signal arrived."""
        deadline = time.monotonic() + min(self._timeout, _EXPLAIN_SECONDS)
        while self.problem is None and time.monotonic() < deadline:
            self._look()
            time.sleep(_LOOK_SECONDS)
        if self.problem is not None:
            return self.problem
        late = 3 * self._timeout / _BEATS
        now = time.monotonic()
        gone = [str(peer) for peer in self._others if now - self._seen[peer.rank][1] > late]
        who = ", ".join(gone) or "another process"
        return self._lost(f"the connection to {who} broke: {first_line(error)}")

    def noticed(self) -> LostProcessError | None:
        """Return which process has gone, as far as can be told at once."""
        self._look()
        return self.problem

    def end(self, error: BaseException, *, will_say: bool) -> bool:
        """Tell the others why this process ends.

        Args:
            error: What ends it.
            will_say: Whether it reports that itself, unless another one has.

        Returns:
            Whether no other process has reported the same.
        """
        self._ended.set()
        reason = self._reason(error)
        try:
            self._store.set(f"end/{self._launch.rank}", json.dumps(reason))
            first = not will_say or self._store.add(f"said/{reason['message']}", 1) == 1
        except Exception:  # noqa: BLE001 - the store is gone, too
            return True
        return first

    def others_have_ended(self) -> bool:
        """Tell whether every other process has said why it ends, or runs no more."""
        try:
            said = self._store.multi_get([f"end/{peer.rank}" for peer in self._others])
        except Exception:  # noqa: BLE001 - whoever kept the store has ended
            return True
        return all(
            text or self._is_dead(peer) for text, peer in zip(said, self._others, strict=True)
        )

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._timeout / _BEATS) and self.problem is None:
            self._look()

    def _look(self) -> None:
        with self._lock:
            if self.problem is not None or self._ended.is_set():
                return
            try:
                self._beats += 1
                self._store.set(f"beat/{self._launch.rank}", f"{self._beats} {self.entered}")
                keys = [f"{name}/{peer.rank}" for name in ("beat", "end") for peer in self._others]
                texts = [value.decode() for value in self._store.multi_get(keys)]
            except Exception:  # noqa: BLE001 - whatever torch raises, the store does not answer
                self.problem = self._dead() or self._lost(
                    f"the node at which the processes meet, {self._where()}, does not answer"
                )
                return
            half = len(texts) // 2
            for peer, beat, end in zip(self._others, texts[:half], texts[half:], strict=True):
                self.problem = self.problem or self._judge(peer, beat, end)

    def _judge(self, peer: Peer, beat: str, end: str) -> LostProcessError | None:
        now = time.monotonic()
        if end:
            return LostProcessError(**json.loads(end))
        if self._is_dead(peer):
            return self._lost(f"{peer} of the training has ended")
        last, since = self._seen.get(peer.rank, ("", now))
        if beat != last:
            since = now
        self._seen[peer.rank] = beat, since
        if now - since > self._timeout:
            return self._lost(f"{peer} of the training has not answered for {self._timeout:.0f} s")
        return None

    def _dead(self) -> LostProcessError | None:
        for peer in self._others:
            if self._is_dead(peer):
                return self._lost(f"{peer} of the training has ended")
        return None

    def _is_dead(self, peer: Peer) -> bool:
        return peer.place == self._myself.place and peer.has_ended()

    def _steps_of(self, peer: Peer) -> int:
        """Return how many common steps a process has come to."""
        return int(self._seen.get(peer.rank, ("0 0", 0.0))[0].split()[1])

    def _lost(self, message: str) -> LostProcessError:
        return LostProcessError(message, how_to_resume(self._launch), 1)

    def _reason(self, error: BaseException) -> dict[str, Any]:
        """Return what the others are told of the error that ends this process."""
        message, hint = f"{self._myself} failed: {type(error).__name__}: {first_line(error)}", ""
        if isinstance(error, LwdctlError):
            message, hint = error.message, error.hint
        elif signal_of(error):
            message = f"{self._myself} was ended by a signal"
            hint = how_to_resume(self._launch)
        return {"message": message, "hint": hint, "exit_code": _exit_code(error)}

    def _where(self) -> str:
        return f"{self._launch.address}:{self._launch.port}"


def how_to_resume(launch: Launch) -> str:
    """Return the hint that says how a training goes on after a process was lost."""
    begin = "resume from the last checkpoint, if one was written, with"
    command = command_line()
    if not command.startswith("lwdctl "):
        return f"{begin} the same call"
    again = command if " --resume" in command else f"{command} --resume"
    return f"{begin} any number of processes: {launch.command(again)}"


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds < 1e6:
        raise ConfigError(
            f"{TIMEOUT}={text} is no number of seconds, at least 1", f"unset {TIMEOUT}"
        )
    return seconds


def signal_of(error: BaseException) -> int:
    """Return the number of the signal whose exception this is, or 0."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    return getattr(error, "number", 0) if not isinstance(error, Exception) else 0


def _exit_code(error: BaseException) -> int:
    if isinstance(error, LwdctlError):
        return error.exit_code
    if signal_of(error):
        return EXIT_OF_SIGNALS + signal_of(error)
    refused = isinstance(error, OSError) and error.errno in WRITE_ERRNOS
    return EXIT_USER if refused or is_out_of_memory(error) else EXIT_BUG
