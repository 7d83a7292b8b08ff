"""The training loop shared by every learned model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import derive_seed
from lwdctl.models.files import load_tensors, unique_tensors
from lwdctl.training import checkpoint, snapshots
from lwdctl.training.average import averaged
from lwdctl.training.interrupt import StopRequest
from lwdctl.training.metrics import MetricLog
from lwdctl.training.schedule import Budget, rate_share

PACE_SHARE = 0.05
"""Share of a time limit after which the number of updates is decided."""


class Objective(Protocol):
    """What a loop minimizes."""

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one update and its named terms (scalars)."""

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return held-out numbers of the averaged model; {} when nothing is held out."""


@dataclass(frozen=True)
class LoopSettings:
    """How to train.

    Attributes:
        budget: Updates and time.
        learning_rate: Peak rate of Adam.
        warmup: Updates of linear warm-up.
        weight_decay: Decoupled weight decay of weights; biases, norms and positions have none.
        clip_norm: Largest gradient norm, 0 for no clipping.
        ema_decay: Largest decay of the averaged weights.
        seed: Seed of all randomness; update n draws from (seed, n) alone.
        batch_size: Snippets per update, for the samples/s display.
        betas: Decay rates of Adam's moments.
        ema_power: Exponent of the average's warm-up; see `average.averaged`.
        checkpoint_seconds: Seconds between checkpoints.
        log_every: Updates between rows of the log.
        validate_every: Updates between validations.
        snapshots: Times that the averaged weights are kept, evenly spaced to the end.
    """

    budget: Budget
    learning_rate: float
    warmup: int
    weight_decay: float
    clip_norm: float
    ema_decay: float
    seed: int
    batch_size: int
    betas: tuple[float, float] = (0.9, 0.999)
    ema_power: float = 0.0
    checkpoint_seconds: float = 60.0
    log_every: int = 50
    validate_every: int = 500
    snapshots: int = 0


@dataclass
class LoopState:
    """Where a run stands; everything beside tensors that a checkpoint holds."""

    update: int = 0
    seconds: float = 0.0
    planned: int = 0
    limited: bool = False


class TrainingLoop:
    """Train one model in a directory, going on from its newest checkpoint if it has one."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: LoopSettings,
        directory: Path,
        progress: Progress,
    ) -> None:
        self.model, self.objective, self.settings = model, objective, settings
        self.directory, self.progress = directory, progress
        self.average: AveragedModel = averaged(model, settings.ema_decay, settings.ema_power)
        self.optimizer = torch.optim.AdamW(
            _groups(model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
        self.state = LoopState(planned=settings.budget.updates)
        self._generator = torch.Generator()
        self._loss = torch.zeros(())
        self._saved = time.monotonic()
        self._load()

    @property
    def ema_model(self) -> nn.Module:
        """The model that carries the averaged weights."""
        module: nn.Module = self.average.module
        return module

    def run(self, title: str) -> dict[str, float]:
        """Train to the end of the budget.

        Returns:
            Final numbers: updates, seconds, samples per second and the last losses.

        Raises:
            LwdctlError: The loss became NaN or infinite.
            KeyboardInterrupt: The user asked to stop; a checkpoint has been written.
        """
        last: dict[str, float] = {}
        self.model.train()
        total = self.state.planned
        with (
            StopRequest() as stop,
            MetricLog(self.directory, self.state.update) as log,
            self.progress.task(title, total, "update", start=self.state.update) as task,
        ):
            started = time.monotonic() - self.state.seconds
            while self.state.update < self.state.planned and not self._out_of_time():
                last = self._step(last, log)
                self.state.seconds = time.monotonic() - started
                task.advance(1, **_shown(last, self._pace()))
                self._plan()
                self._keep()
                if stop.asked is not None or self._due():
                    self._refuse_divergence()
                    self.save()
                if stop.asked is not None:
                    break
            self._refuse_divergence()  # a time limit may end between two looks at the loss
        if stop.asked is not None:  # the handler before us returned: still not a finished model
            raise KeyboardInterrupt
        if self.settings.snapshots:  # a time limit may end before the last one planned
            snapshots.write(self.directory, self.state.update, self.ema_model)
        self.save()
        return {
            "updates": self.state.update,
            "training_seconds": round(self.state.seconds, 1),
            "samples_per_second": round(self._pace(), 1),
            **last,
            **self._validate(),
        }

    def save(self) -> None:
        """Write a checkpoint of the present state."""
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
        self.progress.message(f"going on from {path.name}")
        tensors, values = checkpoint.load(path)
        self.state = LoopState(**values)
        load_tensors(self.model, _under("model.", tensors))
        load_tensors(self.average, _under("average.", tensors))
        checkpoint.load_optimizer(self.optimizer, _under("optimizer.", tensors))
        snapshots.forget_later(self.directory, self.state.update)

    def _keep(self) -> None:
        count, done, planned = self.settings.snapshots, self.state.update, self.state.planned
        if done * count // planned > (done - 1) * count // planned:
            snapshots.write(self.directory, done, self.ema_model)

    def _step(self, last: dict[str, float], log: MetricLog) -> dict[str, float]:
        number, settings = self.state.update, self.settings
        share = rate_share(number, self.state.planned, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
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
        return self._log(terms, share, log)

    def _log(self, terms: Mapping[str, Tensor], share: float, log: MetricLog) -> dict[str, float]:
        values = {name: float(term) for name, term in terms.items()}
        self._refuse_divergence()
        extra = {
            "learning_rate": self.settings.learning_rate * share,
            "samples_per_second": self._pace(),
        }
        if self.state.update % self.settings.validate_every == 0:
            extra |= self._validate()
        row = {**values, **extra, "seconds": self.state.seconds}
        log.write(self.state.update, row, self.state.planned)
        return values

    def _refuse_divergence(self) -> None:
        """Raise before broken weights reach a checkpoint or the log."""
        if not bool(torch.isfinite(self._loss)):
            raise LwdctlError(
                f"training diverged at or before update {self.state.update}: the loss is"
                f" {float(self._loss)}",
                "start again with a lower --learning-rate",
            )

    def _validate(self) -> dict[str, float]:
        module = self.ema_model
        module.eval()
        with torch.no_grad():
            return dict(self.objective.validate(module))

    def _plan(self) -> None:
        limit = self.settings.budget.time_limit * 60.0
        if limit and not self.state.limited and self.state.seconds > PACE_SHARE * limit:
            self.state.planned = self.settings.budget.planned(self.state.update, self.state.seconds)
            self.state.limited = True
            self.progress.message(f"time limit: {self.state.planned} updates fit")

    def _out_of_time(self) -> bool:
        limit = self.settings.budget.time_limit * 60.0
        return bool(limit) and self.state.seconds >= limit

    def _due(self) -> bool:
        return time.monotonic() - self._saved > self.settings.checkpoint_seconds

    def _pace(self) -> float:
        return self.state.update * self.settings.batch_size / max(self.state.seconds, 1e-9)


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Set apart what decays: matrices and kernels."""
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


def _shown(values: Mapping[str, float], pace: float) -> dict[str, float | str]:
    return {**{k: f"{v:.4g}" for k, v in values.items()}, "samples/s": f"{pace:.0f}"}
