"""The training loop shared by every learned model, and its log."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lwdctl.configs import TrainingConfig
from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import derive_seed
from lwdctl.models.files import load_tensors, save_model, unique_tensors
from lwdctl.training import checkpoint

PACE_FRACTION = 0.05
"""Fraction of a time limit after which the number of training steps is decided."""
FINAL_FACTOR = 0.01
"""Fraction of the peak learning rate that is left at the end of the cosine."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)

M = TypeVar("M", bound=nn.Module)


class Objective(Protocol):
    """What the training loop minimizes."""

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one training step and its named terms (scalars)."""

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return held-out numbers of the EMA model; {} when nothing is held out."""


@dataclass(frozen=True)
class LoopSettings:
    """How to train.

    Attributes:
        updates: Training steps.
        learning_rate: Peak learning rate of Adam.
        warmup: Training steps of linear warm-up.
        weight_decay: Decoupled weight decay of weights; biases, norms and positions have none.
        clip_norm: Largest gradient norm, 0 for no clipping.
        ema_decay: Largest decay of the EMA weights.
        seed: Seed of all randomness; training step n draws from (seed, n) alone.
        batch_size: Snippets per training step, for the samples/s display.
        time_limit: Minutes of training, None for no limit.
        betas: Decay rates of Adam's moments.
        ema_power: Exponent of the EMA's warm-up; see `exponential_moving_average`.
        checkpoint_seconds: Seconds between checkpoints.
        log_every: Training steps between rows of the log.
        validate_every: Training steps between validations.
        snapshots: How often the EMA weights are saved, evenly spaced to the end.
    """

    updates: int
    learning_rate: float
    warmup: int
    clip_norm: float
    ema_decay: float
    seed: int
    batch_size: int
    time_limit: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    ema_power: float = 0.0
    checkpoint_seconds: float = 60.0
    log_every: int = 50
    validate_every: int = 500
    snapshots: int = 0

    @classmethod
    def of(cls, config: TrainingConfig) -> LoopSettings:
        """Return the settings that a stage's configuration has."""
        names = {item.name for item in fields(cls)} & vars(config).keys()
        return cls(**{name: getattr(config, name) for name in names})

    def planned(self, done: int, seconds: float) -> int:
        """Estimate how many training steps fit into the time limit, from the pace so far.

        A twentieth of the limit is reserved for what follows training.
        """
        if not self.time_limit or not done:
            return self.updates
        fit = int(0.95 * self.time_limit * 60.0 * done / max(seconds, 1e-9))
        return min(self.updates, max(done + 1, fit))


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA when there is one.

    Raises:
        ConfigError: The name is unknown, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"no device is called '{name}'", "known: auto, cpu, cuda, cuda:N"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device on this machine", "use --device cpu")
    return device


def with_initial_weights(build: Callable[[], M], seed: int) -> M:
    """Build a model with the initial weights that a training seed fixes."""
    torch.manual_seed(derive_seed("initial-weights", seed))
    return build()


@dataclass
class LoopState:
    """Progress of a run: everything beside tensors that a checkpoint holds."""

    update: int = 0
    seconds: float = 0.0
    planned: int = 0
    limited: bool = False
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
        self.model, self.objective, self.settings = model, objective, settings
        self.directory, self.progress = directory, progress
        self.average = exponential_moving_average(model, settings.ema_decay, settings.ema_power)
        self.optimizer = torch.optim.AdamW(
            _groups(model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
        self.state = LoopState(planned=settings.updates)
        self._generator = torch.Generator()
        self._loss = torch.zeros(())
        limit = settings.time_limit
        self._limit = math.inf if limit is None else limit * 60.0
        self._saved = time.monotonic()
        self._load()

    @property
    def ema_model(self) -> M:
        """The model with the EMA weights."""
        module: M = self.average.module  # type: ignore[assignment]
        return module

    def run(self, title: str) -> dict[str, float]:
        """Train to the end of the budget.

        Returns:
            Training steps, seconds, samples per second and the last losses.

        Raises:
            LwdctlError: The loss became NaN or infinite.
            KeyboardInterrupt: The user asked to stop; a checkpoint has been written.
        """
        self.model.train()
        with (
            delayed_signals() as stop,
            MetricLog(self.directory, self.state.update) as log,
            self.progress.task(
                title, self.state.planned, "update", start=self.state.update
            ) as task,
        ):
            started = time.monotonic() - self.state.seconds
            while self.state.update < self.state.planned and self.state.seconds < self._limit:
                self.state.losses = self._step(self.state.losses, log)
                self.state.seconds = time.monotonic() - started
                shown = {name: f"{value:.4g}" for name, value in self.state.losses.items()}
                task.advance(1, **shown, **{"samples/s": f"{self._pace():.0f}"})
                self._plan()
                self._write_snapshot()
                waited = time.monotonic() - self._saved
                if stop.signal is not None or waited > self.settings.checkpoint_seconds:
                    self._check_divergence()
                    self.save()
                if stop.signal is not None:
                    break
            self._check_divergence()  # a time limit may end between two looks at the loss
        if stop.signal is not None:  # the previous handler returned, but the model is not finished
            raise KeyboardInterrupt
        if self.settings.snapshots:  # a time limit may end before the last one planned
            checkpoint.write_snapshot(self.directory, self.state.update, self.ema_model)
        self.save()
        return {
            "updates": self.state.update,
            "training_seconds": round(self.state.seconds, 1),
            "samples_per_second": round(self._pace(), 1),
            **self.state.losses,
            **self._validate(),
        }

    def trained(self, spec: Mapping[str, Any], summary: Mapping[str, Any]) -> Trained[M]:
        """Return the model as it is now, with its JSON-ready specification and numbers."""
        return Trained(spec, self.ema_model.eval(), self.model.eval(), summary)

    def save(self) -> None:
        """Write a checkpoint of the current state."""
        tensors = {f"model.{k}": v for k, v in unique_tensors(self.model).items()}
        tensors |= {f"average.{k}": v for k, v in unique_tensors(self.average).items()}
        optimizer = checkpoint.optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        checkpoint.save(self.directory, self.state.update, tensors, vars(self.state))
        self._saved = time.monotonic()

    def _load(self) -> None:
        path = checkpoint.newest(self.directory)
        if path is None:
            return
        self.progress.message(f"resuming from {path.name}")
        tensors, values = checkpoint.load(path)
        self.state = LoopState(**values)
        load_tensors(self.model, _under("model.", tensors))
        load_tensors(self.average, _under("average.", tensors))
        checkpoint.load_optimizer(self.optimizer, _under("optimizer.", tensors))
        checkpoint.remove_later_snapshots(self.directory, self.state.update)

    def _write_snapshot(self) -> None:
        count, done, planned = self.settings.snapshots, self.state.update, self.state.planned
        if done * count // planned > (done - 1) * count // planned:
            checkpoint.write_snapshot(self.directory, done, self.ema_model)

    def _step(self, last: dict[str, float], log: MetricLog) -> dict[str, float]:
        number, settings = self.state.update, self.settings
        factor = learning_rate_factor(number, self.state.planned, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self._generator.manual_seed(derive_seed("update", settings.seed, number))
        torch.manual_seed(derive_seed("dropout", settings.seed, number))
        loss, terms = self.objective.loss(self.model, number, self._generator)
        self._loss = loss.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm, foreach=True)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.state.update += 1
        if self.state.update % settings.log_every and self.state.update != self.state.planned:
            return last
        return self._log(terms, factor, log)

    def _log(self, terms: Mapping[str, Tensor], factor: float, log: MetricLog) -> dict[str, float]:
        values = {name: float(term) for name, term in terms.items()}
        self._check_divergence()
        extra = {
            "learning_rate": self.settings.learning_rate * factor,
            "samples_per_second": self._pace(),
        }
        if self.state.update % self.settings.validate_every == 0:
            extra |= self._validate()
        row = {**values, **extra, "seconds": self.state.seconds}
        log.write(self.state.update, row, self.state.planned)
        return values

    def _check_divergence(self) -> None:
        """Raise before diverged weights reach a checkpoint or the log."""
        if not bool(torch.isfinite(self._loss)):
            raise LwdctlError(
                f"training diverged at or before update {self.state.update}: the loss is"
                f" {float(self._loss)}",
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

    def _pace(self) -> float:
        return self.state.update * self.settings.batch_size / max(self.state.seconds, 1e-9)


def learning_rate_factor(update: int, total: int, warmup: int) -> float:
    """Return the learning rate at a training step, as a fraction of its peak.

    Linear warm-up, then a half cosine from 1 to `FINAL_FACTOR` at the last step.
    """
    if update < warmup:
        return (update + 1) / warmup
    through = min(1.0, (update - warmup) / max(1, total - warmup))
    return FINAL_FACTOR + (1.0 - FINAL_FACTOR) * 0.5 * (1.0 + math.cos(math.pi * through))


def exponential_moving_average(model: nn.Module, decay: float, power: float = 0.0) -> AveragedModel:
    """Return a copy of `model` whose weights are an exponential moving average of the model's.

    The decay warms up, so that early weights are soon forgotten and a run that ends early still
    has a useful average: as (1 + n) / (10 + n), or as 1 - n ** -power, which is the schedule of
    Diffusion Policy (at its step 1 + n, with inv_gamma 1). Buffers are copied as they are.

    Args:
        model: The model in training.
        decay: Largest decay, in [0, 1).
        power: Exponent of the warm-up; 0 selects the first schedule.
    """

    def follow(average: Any, current: Any, count: Tensor | int) -> None:
        steps = float(count)
        warm = 1.0 - steps**-power if power else (1.0 + steps) / (10.0 + steps)
        weight = 1.0 - min(decay, warm)
        torch._foreach_lerp_(list(average), list(current), weight)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=False)


@dataclass
class StopRequest:
    """A signal that waits to be handled, or None."""

    signal: int | None = None


@contextmanager
def delayed_signals() -> Iterator[StopRequest]:
    """Delay SIGINT and SIGTERM until a checkpoint is written.

    Inside the context a signal is only recorded; on leaving, it is raised again for the handler
    that was there before. A second signal is handled at once. A signal that the process ignores
    (SIGINT in a background job of a script) stays ignored.
    """
    request, before = StopRequest(), dict[int, Any]()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    def record(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal = number
        restore()

    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        handled = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        before |= {number: signal.signal(number, record) for number in handled}
    try:
        yield request
    finally:
        restore()
    if request.signal is not None:
        signal.raise_signal(request.signal)


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Separate what decays (matrices and kernels) from what does not."""
    named = list(model.named_parameters())
    if not decay:
        return [{"params": [p for _, p in named], "weight_decay": 0.0}]
    chosen = [p.dim() > 1 and name.endswith("weight") for name, p in named]
    return [
        {"params": [p for (_, p), is_weight in zip(named, chosen, strict=True) if is_weight == on],
         "weight_decay": decay if on else 0.0}
        for on in (True, False)
    ]  # fmt: skip


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class MetricLog:
    """Appends numbers per training step; a resumed run drops rows after its checkpoint.

    The text log keeps them, because it records interruptions too.

    Args:
        directory: The run's directory.
        done: Training steps that the run has already made.
    """

    def __init__(self, directory: Path, done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = directory / "metrics.jsonl"
        rows = [line for line in _complete_lines(path) if json.loads(line)["update"] <= done]
        path.write_text("".join(rows))
        self._file = path.open("a")
        self._text = (directory / "log.txt").open("a", encoding="utf-8")
        if done:
            self._write_line(f"resuming from update {done}")
        self._events = SummaryWriter(directory / "tensorboard", purge_step=done + 1)

    def write(self, update: int, values: Mapping[str, float], planned: int) -> None:
        """Write a row after `update` of `planned` training steps; values hold `seconds`."""
        self._write_line(_text_row(update, values, planned))
        self._file.write(json.dumps({"update": update, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, update)

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
        self._text.write(f"{now} UTC  {line}\n")
        self._text.flush()


def _text_row(update: int, values: Mapping[str, float], planned: int) -> str:
    """Format a row for people: `update 50/8000 (1 %), 0:02:10 left: kl 1.5, seconds 0.8`."""
    left = timedelta(seconds=round((planned - update) * values["seconds"] / max(update, 1)))
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    percent = 100 * update / max(planned, 1)
    return f"update {update}/{planned} ({percent:.0f} %), {left} left: {numbers}"


def _complete_lines(path: Path) -> list[str]:
    """Return the complete lines of a log; a killed process may have left half a line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]
