"""The training loop shared by every learned model, and its log."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.core.plain_text import visible
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import derive_seed
from lwdctl.core.untrusted import read_bytes, typed
from lwdctl.models.files import save_model
from lwdctl.models.skeleton import check_training_memory
from lwdctl.tracking.history import METRICS, MOST_LOG_BYTES, complete_rows
from lwdctl.tracking.tensorboard_tracker import FOLDER, EventFile
from lwdctl.training import checkpoint
from lwdctl.training.distributed import join, own_device
from lwdctl.training.threads import calibrate, freed_memory_kept
from lwdctl.training.update import (
    LoopSettings,
    Objective,
    Update,
    learning_rate_factor,
    matrix_precision,
)

PACE_FRACTION = 0.05
"""Fraction of a time limit after which the number of training steps is decided."""
WORTH_MEASURING = 30.0
"""Expected seconds of training from which the fastest number of threads is measured; a shorter one
takes one thread."""
FEW_STEPS = 10
"""Fewer training steps than these take one thread: even a single trial would cost as much."""
TOO_SHORT = "the training is too short to measure which number is fastest"
RISEN = 1.2
"""How many times its lowest value a held-out loss may end at before a training says so."""
GROWING = ("held_out_kl", "held_out_rollout", "held_out_drift")
"""Losses that grow though nothing overfits: the KL term while the reconstruction gets better, the
errors of rollouts while their model learns to move."""
LAUNCHER_SECONDS = 5.0
"""Seconds in which the copies of a signal arrive that a launcher passes on."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

M = TypeVar("M", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA when there is one.

    Of several processes on a node each takes the CUDA device of its own.

    Raises:
        ConfigError: The name is unknown, or the device is not there.
    """
    if name == "auto":
        return own_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"no device is called '{name}'", "known: auto, cpu, cuda, cuda:N"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device on this machine", "use --device cpu")
    return own_device(device)


def with_initial_weights(build: Callable[[], M], seed: int) -> M:
    """Build a model with the initial weights that a training seed fixes.

    Raises:
        ConfigError: This machine has not enough memory to train it.
    """
    check_training_memory(build)
    torch.manual_seed(derive_seed("initial-weights", seed))
    return build()


@dataclass
class LoopState:
    """Progress of a run: everything beside tensors that a checkpoint holds."""

    update: int = 0
    seconds: float = 0.0
    planned: int = 0
    limited: bool = False
    threads: int = 0
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained(Generic[M]):
    """A trained model.

    Attributes:
        spec: What the model is rebuilt from, JSON-ready.
        model: The model with its EMA weights, in evaluation mode.
        last: The model with its last weights.
        summary: Training steps, seconds, last losses and sizes.
    """

    spec: Mapping[str, Any]
    model: M
    last: M
    summary: Mapping[str, Any]

    def save(self, directory: Path) -> None:
        """Write `model.json`, `ema.safetensors` and `weights.safetensors`."""
        directory.mkdir(parents=True, exist_ok=True)
        save_model(directory, self.spec, self.last, self.model)

    def __repr__(self) -> str:
        """Name the model and its numbers."""
        numbers = ", ".join(f"{name}={value}" for name, value in self.summary.items())
        return f"Trained({type(self.model).__name__}: {numbers})"


class TrainingLoop(Generic[M]):
    """Trains one model in a directory, resuming from its newest checkpoint if it has one.

    Where a launcher started several processes, they train one model together; that of rank 0 alone
    reads and writes the directory.

    Args:
        model: What to train, on its device.
        objective: What to minimize.
        settings: How to train.
        directory: Gets checkpoints, `metrics.jsonl`, `log.txt` and TensorBoard logs.
        progress: Where to report.
    """

    def __init__(
        self,
        model: M,
        objective: Objective,
        settings: LoopSettings,
        directory: Path,
        progress: Progress,
    ) -> None:
        self.objective, self.settings = objective, settings
        self.directory, self.progress = directory, progress
        self.processes = join()
        self._notes: list[str] = []
        if self.processes is not None:
            self._notes.append(self.processes.describe(settings.batch_size))
            self.processes.check_model(model)
            self.processes.check_device(next(model.parameters()).device)
            progress.message(self._notes[0])
        self._leads = self.processes is None or self.processes.leads
        self.update = Update(model, objective, settings, progress.message, self.processes)
        self.state = LoopState(planned=settings.updates)
        limit = settings.time_limit
        self._limit = math.inf if limit is None else limit * 60.0
        self._saved = time.monotonic()
        self._load()

    @property
    def model(self) -> M:
        """The model with its last weights."""
        return self.update.model

    @property
    def ema_model(self) -> M:
        """The model with the EMA weights."""
        return self.update.average

    def run(self, title: str) -> dict[str, float]:
        """Train to the end of the budget.

        Returns:
            Training steps, seconds, samples per second and the last losses; the same in all
            processes.

        Raises:
            LwdctlError: The loss, its gradient or a weight became NaN or infinite.
            KeyboardInterrupt: The user asked to stop; a checkpoint has been written.
        """
        device = self.update.device
        memory = freed_memory_kept() if device.type == "cpu" else nullcontext()
        with memory, matrix_precision(device, self.settings.precision), self._threads():
            self._train(title)
            # A time limit may end before the last one planned.
            if self.settings.snapshots and self._leads:
                checkpoint.write_snapshot(self.directory, self.state.update, self.ema_model)
            self.save()
            numbers = {
                "updates": self.state.update,
                "training_seconds": round(self.state.seconds, 1),
                "samples_per_second": round(self._pace(), 1),
                "threads": self.state.threads,
                **self.state.losses,
            }
            held_out = self._validate() if self._leads else {}
            for line in _risen(held_out, self.directory / METRICS):
                self.progress.message(line)
            numbers |= held_out
            if self.processes is None:
                return numbers
            numbers["processes"] = self.processes.size
            shared: dict[str, float] = self.processes.from_first(numbers)
            return shared

    def _train(self, title: str) -> None:
        self._check_warmup()
        self.model.train()
        copies = 0.0 if self.processes is None else LAUNCHER_SECONDS
        with (
            delayed_signals(copies) as stop,
            self._metric_log() as log,
            self.progress.task(
                title, self.state.planned, "update", start=self.state.update
            ) as task,
        ):
            started = time.monotonic() - self.state.seconds
            shown = self.state.update
            while self.state.update < self.state.planned and self.state.seconds < self._limit:
                self._step()
                self._write_snapshot()
                logs = self._is_due(self.settings.log_every)
                if not logs and self.update.runs_ahead:
                    continue  # the device is not waited for
                if logs:
                    self._check_divergence()  # waits for the device
                due = self._agree(stop, time.monotonic() - started)
                if logs:
                    self._log(log)
                losses = {name: f"{value:.4g}" for name, value in self.state.losses.items()}
                samples = f"{self._pace():.0f}"
                task.advance(self.state.update - shown, **losses, **{"samples/s": samples})
                shown = self.state.update
                self._plan()
                if stop.signal is not None or due:
                    self._check_divergence()
                    self.save()
                if stop.signal is not None:
                    break
            self._check_divergence()  # a time limit may end between two looks at the loss
        if stop.signal is not None:  # the previous handler returned, but the model is not finished
            raise KeyboardInterrupt

    def trained(self, spec: Mapping[str, Any], summary: Mapping[str, Any]) -> Trained[M]:
        """Return the model as it is now, with its JSON-ready specification and numbers."""
        return Trained(spec, self.ema_model.eval(), self.model.eval(), summary)

    def save(self) -> None:
        """Write a checkpoint of the current state.

        Raises:
            LwdctlError: A weight is NaN or infinite; nothing is written.
        """
        self._raise_if_diverged(self.update.broken_weights())
        if self._leads:
            tensors = self.update.save()
            checkpoint.save(self.directory, self.state.update, tensors, vars(self.state))
        if self.processes is not None:  # whoever ends now leaves a complete file behind
            self.processes.barrier()
        self._saved = time.monotonic()

    def _load(self) -> None:
        loaded = None
        if self._leads:
            loaded = checkpoint.load_newest(self.directory, self.progress.message)
        if loaded is not None:
            tensors, values = loaded
            # Checked: the checkpoint may be one of another version of lwdctl.
            where = f"{self.directory}: checkpoint"
            self.state = typed(LoopState, values, where, hint=checkpoint.AFRESH)
            self.update.load(tensors)
        if self._leads:
            checkpoint.remove_later_snapshots(self.directory, self.state.update)
        if self.processes is not None:
            self.state = LoopState(**self.processes.from_first(vars(self.state)))
            tensors = self.processes.tensors_from_first(self.update.save())
            if not self._leads:
                self.update.load(tensors)

    def _agree(self, stop: StopRequest, seconds: float) -> bool:
        """Note the time; return whether a checkpoint is due, as all processes do.

        A signal to one process stops all of them at this training step.
        """
        due = time.monotonic() - self._saved > self.settings.checkpoint_seconds
        self.state.seconds = seconds
        if self.processes is not None:
            found, numbers = self.processes.agree(largest=stop.signal or 0, first=[due, seconds])
            stop.signal = found or None
            due, self.state.seconds = bool(numbers[0]), numbers[1]
        return due

    def _step(self) -> None:
        self.update.step(self.state.update, self.state.planned)
        self.state.update += 1

    def _is_due(self, every: int) -> bool:
        return self.state.update % every == 0 or self.state.update == self.state.planned

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Run torch with the threads of this training, which a checkpoint keeps.

        Other numbers of threads add up in another order, so that a resumed run would differ.
        """
        before = torch.get_num_threads()
        if not self.state.threads:
            threads = 1
            if self._leads:
                with self.update.alone():
                    threads, why = self._choose_threads()
                self._notes.append(f"CPU threads: {threads} ({why})")
            if self.processes is not None:
                threads = self.processes.from_first(threads)
            self.state.threads = threads
        try:
            torch.set_num_threads(self.state.threads)
            yield
        finally:
            torch.set_num_threads(before)

    def _choose_threads(self) -> tuple[int, str]:
        """Return how many threads of torch to use, and why."""
        device = self.update.device
        if self.settings.threads is not None:
            return self.settings.threads, "as set"
        if device.type != "cpu":
            return torch.get_num_threads(), f"torch's number, as training runs on {device}"
        left = self.state.planned - self.state.update
        if left < FEW_STEPS:
            return 1, TOO_SHORT
        with self.update.undone():
            self.update.load_block(self.state.update, self.state.planned)
            self.update.rehearse()
            started = time.monotonic()
            self.update.rehearse()
            expected = (time.monotonic() - started) * left
            if min(expected, self._limit) < WORTH_MEASURING:
                return 1, TOO_SHORT
            found = calibrate(self.update.rehearse)
        why = found.describe()
        self.progress.message(f"CPU threads: {found.threads} ({why})")
        return found.threads, why

    def _write_snapshot(self) -> None:
        count, done, planned = self.settings.snapshots, self.state.update, self.state.planned
        if not self._leads:
            return
        if done * count // planned > (done - 1) * count // planned:
            checkpoint.write_snapshot(self.directory, done, self.ema_model)

    def _metric_log(self) -> AbstractContextManager[MetricLog | None]:
        if not self._leads:
            return nullcontext()
        return MetricLog(self.directory, self.state.update, self._notes)

    def _log(self, log: MetricLog | None) -> None:
        self.state.losses = {name: float(term) for name, term in self.update.terms.items()}
        if log is None:
            return
        settings = self.settings
        factor = learning_rate_factor(self.state.update - 1, self.state.planned, settings.warmup)
        extra = {
            "learning_rate": settings.learning_rate * factor,
            "samples_per_second": self._pace(),
        }
        if self.state.update % settings.validate_every == 0:
            extra |= self._validate()
        row = {**self.state.losses, **extra, "seconds": self.state.seconds}
        log.write(self.state.update, row, self.state.planned)

    def _check_divergence(self) -> None:
        """Raise before diverged weights reach a checkpoint or the log."""
        if self.processes is not None:
            self.processes.wait_for_device(self.update.device)
        self._raise_if_diverged(self.update.not_finite())

    def _raise_if_diverged(self, what: str) -> None:
        if what:
            raise LwdctlError(
                f"training diverged at or before update {self.state.update}: {what}",
                "start again with a lower --learning-rate",
            )

    def _validate(self) -> dict[str, float]:
        with torch.no_grad():
            return dict(self.objective.validate(self.ema_model.eval()))

    def _plan(self) -> None:
        if not self.state.limited and self.state.seconds > PACE_FRACTION * self._limit:
            # Decided once and stored in checkpoints: a resumed run follows the same schedule.
            self.state.planned = self.settings.planned(self.state.update, self.state.seconds)
            self.state.limited = True
            self.progress.message(f"{self.state.planned} training steps fit into the time limit")
            self._check_warmup()

    def _check_warmup(self) -> None:
        """Say where training ends before its learning rate has warmed up."""
        warmup, planned = self.settings.warmup, self.state.planned
        if planned < warmup:
            self.progress.message(
                f"note: {planned} training steps are fewer than the {warmup} of the warm-up: the"
                f" learning rate reaches {planned / warmup:.0%} of {self.settings.learning_rate:g};"
                " give more --updates or a smaller --warmup"
            )

    def _pace(self) -> float:
        return self.state.update * self.settings.batch_size / max(self.state.seconds, 1e-9)


@dataclass
class StopRequest:
    """A signal that waits to be handled, or None."""

    signal: int | None = None


@contextmanager
def delayed_signals(copies: float = 0.0) -> Iterator[StopRequest]:
    """Delay SIGINT, SIGTERM and SIGHUP until a checkpoint is written.

    Inside the context a signal is only recorded; on leaving, it is raised again for the handler
    that was there before. A second signal is handled at once. A signal that the process ignores
    (SIGINT in a background job of a script) stays ignored.

    Args:
        copies: Seconds in which further signals are copies of the first: a cluster sends one to
            every process, and a launcher that gets it sends it to its processes again.
    """
    request, before = StopRequest(), dict[int, Any]()
    arrived: float | None = None

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    def record(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        del frame
        if arrived is None:
            arrived, request.signal = time.monotonic(), number
            if not copies:
                restore()
        elif time.monotonic() - arrived > copies:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        handled = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        before |= {number: signal.signal(number, record) for number in handled}
    try:
        yield request
    finally:
        restore()
    if request.signal is not None:
        signal.raise_signal(request.signal)


class MetricLog:
    """Appends numbers per training step; a resumed run drops rows after its checkpoint.

    The text log keeps them, because it records interruptions too.

    Args:
        directory: The run's directory.
        done: Training steps that the run has already made.
        notes: Lines for the text log.
    """

    def __init__(self, directory: Path, done: int = 0, notes: Sequence[str] = ()) -> None:
        path = directory / METRICS
        path.write_bytes(b"".join(_rows_until(path, done)))
        self._file = path.open("a")
        self._text = (directory / "log.txt").open("a", encoding="utf-8")
        if done or self._text.tell():  # an earlier process has written into the log
            self._write_line(f"resuming from update {done}")
        for note in notes:
            self._write_line(note)
        self._events = EventFile(directory / FOLDER, first_step=done + 1)

    def write(self, update: int, values: Mapping[str, float], planned: int) -> None:
        """Write a row after `update` of `planned` training steps; values hold `seconds`."""
        self._write_line(_text_row(update, values, planned))
        self._file.write(json.dumps({"update": update, **values}) + "\n")
        self._file.flush()
        self._events.scalars(values, update)

    def __enter__(self) -> MetricLog:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close all logs; the text log records an error that ended training."""
        _, error, _ = exception
        if error is not None:
            self._write_line(f"ended by {type(error).__name__}: {error}".rstrip(": "))
        self._file.close()
        self._text.close()
        self._events.close()

    def _write_line(self, line: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        self._text.write(f"{now} UTC  {visible(line)}\n")
        self._text.flush()


def _text_row(update: int, values: Mapping[str, float], planned: int) -> str:
    """Format a row for people: `update 50/8000 (1 %), 0:02:10 left: kl 1.5, seconds 0.8`."""
    left = timedelta(seconds=round((planned - update) * values["seconds"] / max(update, 1)))
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    percent = 100 * update / max(planned, 1)
    return f"update {update}/{planned} ({percent:.0f} %), {left} left: {numbers}"


def _rows_until(path: Path, done: int) -> list[bytes]:
    """Return the rows of a log up to a training step; a killed process may have left half a row."""
    return [line for line, row in _rows(path) if (row.get("update") or 0) <= done]


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, float | None]]]:
    content = read_bytes(path, most=MOST_LOG_BYTES) if path.exists() else b""
    return complete_rows(content, str(path))


def _risen(held_out: Mapping[str, float], log: Path) -> Iterator[str]:
    """Say which losses on held-out snippets ended well above their lowest value in the log."""
    rows = [row for _, row in _rows(log)] if held_out else []
    for name, last in held_out.items():
        values = [(row.get(name), row.get("update") or 0) for row in rows]
        seen = [(value, update) for value, update in values if value is not None]
        lowest, update = min(seen, default=(last, 0))
        if 0 < RISEN * lowest < last and name not in GROWING:
            yield (
                f"note: {name} was {lowest:.3g} after {update:.0f} training steps and is {last:.3g}"
                " now: the model overfits. More demonstrations help, or a VAE's larger --beta-kl;"
                " lwdctl analyze convergence shows whether policies suffer"
            )
