"""One training step, which needs nothing from the host once its block of batches is loaded."""
# ruff: noqa: SLF001 - torch has no public names for operations on lists of tensors

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from inspect import unwrap
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lwdctl.configs import CudaGraphs, Precision, TrainingConfig
from lwdctl.core.errors import first_line
from lwdctl.core.seeding import derive_seed
from lwdctl.models.cuda_graphs import capture
from lwdctl.models.files import TrainingOnly, load_tensors, unique_tensors
from lwdctl.models.products import fast_products
from lwdctl.training import checkpoint
from lwdctl.training.distributed import Processes

_TORCH = torch.optim.AdamW


class AdamW(_TORCH):
    """torch's AdamW without the wrappers that its methods have for `torch.compile`.

    Outside of a compiled function the wrappers change nothing, but the first call of each imports
    `torch._dynamo`, which takes as long as `import torch`.
    """

    add_param_group = unwrap(_TORCH.add_param_group)
    zero_grad = unwrap(_TORCH.zero_grad)
    state_dict = unwrap(_TORCH.state_dict)
    load_state_dict = unwrap(_TORCH.load_state_dict)
    # The wrapper of this one turns gradients off, too.
    step = torch.no_grad()(unwrap(_TORCH.step))


FINAL_FACTOR = 0.01
"""Fraction of the peak learning rate that is left at the end of the cosine."""

M = TypeVar("M", bound=nn.Module)


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
        ema_power: Exponent of the EMA's warm-up; see `ema_weight`.
        checkpoint_seconds: Seconds between checkpoints.
        log_every: Training steps between rows of the log.
        validate_every: Training steps between validations.
        snapshots: How often the EMA weights are saved, evenly spaced to the end.
        threads: Threads of the CPU, None to choose by measuring.
        precision: `"auto"` and `"fp32"` compute in single precision, `auto` with TF32 factors in
            CUDA's matrix products; `"bf16"` runs networks in bfloat16 where autocast does.
        cuda_graphs: `"auto"` captures the training step as a CUDA graph, `"off"` does not.
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
    threads: int | None = None
    precision: Precision = "auto"
    cuda_graphs: CudaGraphs = "auto"

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


class Objective(Protocol):
    """What training minimizes.

    In a training of several processes each loads its own rows of the batches (`own_rows`), and
    losses are averaged by the number of rows. An objective whose loss is no mean over rows also
    has a method `weight(model, place)`: what the loss of this process counts, a scalar on the
    device, or None for its rows.
    """

    def load(self, update: int, left: int) -> int:
        """Put the batches of a block of training steps on the device.

        Args:
            update: The first step of the block.
            left: Training steps from it to the end, at least 1.

        Returns:
            Number of training steps in the block.
        """

    def loss(
        self, model: nn.Module, place: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one training step and its named terms, scalars.

        It runs on the device alone: a captured CUDA graph repeats it without Python.

        Args:
            model: The model in training.
            place: (1,), place of the training step in the loaded block.
            generator: Source of the noise, of the device.
        """

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return held-out numbers of the EMA model; {} when nothing is held out."""


class Ahead:
    """Tensors for a block of training steps, always at the same place in memory."""

    def __init__(self) -> None:
        self._buffers: tuple[Tensor, ...] = ()

    def put(self, *parts: Tensor) -> None:
        """Take tensors (step, ...) for the next block, at most as many steps as in the first."""
        if not self._buffers:
            self._buffers = parts
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer[: len(part)].copy_(part)

    def take(self, place: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors (...) of the training step at a place (1,) in the block."""
        return tuple(buffer.index_select(0, place).squeeze(0) for buffer in self._buffers)


class Update(Generic[M]):
    """The training step of one model, with its optimizer and its EMA weights.

    What depends on the number of a step (its batch, learning rate and EMA weight) is worked out
    for a block of steps and uploaded; the noise comes from a generator of the device that training
    seed and step set. On CUDA the step is captured as a graph and replayed.

    Args:
        model: What to train, on its device.
        objective: What to minimize.
        settings: How to train.
        log: Called with the reason where the training step is not captured.
        processes: All processes of the training; None where this is the only one.

    Attributes:
        model: The model in training.
        average: The model with the EMA weights.
        optimizer: AdamW.
        loss: Loss of the last step, a scalar.
        terms: Terms of that loss, scalars.
        runs_ahead: Whether the device works while Python goes on.
    """

    def __init__(
        self,
        model: M,
        objective: Objective,
        settings: LoopSettings,
        log: Callable[[str], None],
        processes: Processes | None = None,
    ) -> None:
        self.model, self.average = model, copy.deepcopy(model)
        self._objective, self._settings, self._log = objective, settings, log
        self._processes = processes
        self._parameters: list[Tensor] = list(model.parameters())
        self._averaged: list[Tensor] = list(self.average.parameters())
        self.device = self._parameters[0].device
        self.runs_ahead = self.device.type == "cuda"
        # The fused AdamW reads a learning rate of double precision on a CPU, of single on CUDA.
        precise = torch.float32 if self.runs_ahead else torch.float64
        self._rate = torch.zeros((), dtype=precise, device=self.device)
        self.optimizer = AdamW(
            _groups(model, settings.weight_decay),
            lr=self._rate,
            betas=settings.betas,
            fused=True,
            capturable=self.runs_ahead,
        )
        self.loss, self._norm = torch.zeros(()), torch.zeros(())
        self.terms: Mapping[str, Tensor] = {}
        self._generator = torch.Generator(self.device)
        self._schedule = Ahead()
        self._place = torch.zeros(1, dtype=torch.long, device=self.device)
        self._block, self._planned = range(0), 0
        self._replay: Callable[[], None] | None = None

    def step(self, number: int, planned: int) -> None:
        """Make the training step `number` of `planned`; on CUDA, without waiting for it."""
        self.load_block(number, planned)
        if self._replay is None:
            self._replay = self._captured() if self.runs_ahead else self._run
        self._seed(number)
        self._replay()
        if self._processes is not None and self._replay == self._run:
            # Python would not be heard while a full queue waits for a process that has gone.
            self._processes.wait_for_device(self.device)

    def load_block(self, number: int, planned: int) -> None:
        """Put a block of training steps on the device that the step `number` belongs to."""
        if number not in self._block:
            self._block = range(number, number + self._objective.load(number, planned - number))
            self._planned = 0
        if planned != self._planned:
            self._plan(number, planned)

    def rehearse(self) -> None:
        """Make the first training step of the loaded block."""
        self._place.zero_()
        self._run()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the training steps inside the context without the other processes."""
        processes, self._processes = self._processes, None
        try:
            yield
        finally:
            self._processes = processes

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undo what the training steps inside the context change."""
        kept = {id(tensor): (tensor, tensor.clone()) for tensor in self._tensors()}
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor in self._tensors():
                    if id(tensor) in kept:
                        tensor.copy_(kept[id(tensor)][1])
                    else:  # the optimizer's state starts from zeros
                        tensor.zero_()
            self.optimizer.zero_grad(set_to_none=True)
            self._planned = 0  # what the plan has set is undone as well

    def not_finite(self) -> str:
        """Say what of the last step is NaN or infinite, its loss or its gradient; or ""."""
        if bool(torch.isfinite(self.loss) & torch.isfinite(self._norm)):
            return ""
        loss = float(self.loss)
        if math.isfinite(loss):
            return f"the norm of the gradient is {float(self._norm)}"
        terms = {name: float(term) for name, term in self.terms.items()}
        odd = [f"{name} {value}" for name, value in terms.items() if not math.isfinite(value)]
        return f"the loss is {loss}" + (f" ({', '.join(odd)})" if odd else "")

    def broken_weights(self) -> str:
        """Name the first weight or EMA weight that is NaN or infinite, or return ""."""
        for noun, module in (("weight", self.model), ("EMA weight", self.average)):
            state = unique_tensors(module)
            finite = [torch.isfinite(value).all() for value in state.values()]
            if state and not bool(torch.stack(finite).all()):  # one wait for the device
                name = next(name for name, one in zip(state, finite, strict=True) if not one)
                return f"the {noun} {name} is not finite"
        return ""

    def save(self) -> dict[str, Tensor]:
        """Return all that a checkpoint needs, by name."""
        tensors = {f"model.{k}": v for k, v in unique_tensors(self.model).items()}
        tensors |= {f"average.{k}": v for k, v in unique_tensors(self.average).items()}
        optimizer = checkpoint.optimizer_tensors(self.optimizer)
        return tensors | {f"optimizer.{k}": v for k, v in optimizer.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `save` returned; before the first training step."""
        load_tensors(self.model, _under("model.", tensors))
        load_tensors(self.average, _under("average.", tensors))
        checkpoint.load_optimizer(self.optimizer, _under("optimizer.", tensors))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate

    def _run(self) -> None:
        """Make the training step whose place in the block is on the device."""
        settings = self._settings
        rate, weight = self._schedule.take(self._place)
        self._rate.copy_(rate)
        bf16 = torch.autocast(
            self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"
        )
        with bf16, self._draws():
            loss, terms = self._objective.loss(self.model, self._place, self._generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._processes is not None:
            loss, terms = self._averaged_over(self._processes, loss, terms)
        if settings.clip_norm:
            norm = nn.utils.clip_grad_norm_(self._parameters, settings.clip_norm, foreach=True)
            self._norm = norm.detach()
        self.optimizer.step()
        self._follow(weight)
        self._place.add_(1)
        self.loss, self.terms = loss.detach(), terms

    def _draws(self) -> AbstractContextManager[None]:
        if self._processes is None:
            return nullcontext()
        return self._processes.draws(self._settings.batch_size, self.device)

    def _averaged_over(
        self, processes: Processes, loss: Tensor, terms: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Average the gradients, the loss and its terms over all processes."""
        weigh = getattr(self._objective, "weight", None)
        weight = None if weigh is None else weigh(self.model, self._place)
        if weight is None:
            rows = processes.rows(self._settings.batch_size)
            weight = torch.full((), rows.stop - rows.start, device=self.device)
        loss, *values = processes.average(self._parameters, [loss, *terms.values()], weight)
        return loss, dict(zip(terms, values, strict=True))

    @torch.no_grad()
    def _follow(self, weight: Tensor) -> None:
        """Move the EMA weights towards the model's; buffers are copied."""
        average, current = self._averaged, self._parameters
        if self.runs_ahead:  # a number that lies on the device
            change = torch._foreach_sub(current, average)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(average, change)
        else:
            torch._foreach_lerp_(average, current, weight.item())
        buffers = list(self.model.buffers())
        if buffers:
            torch._foreach_copy_(list(self.average.buffers()), buffers)

    def _plan(self, number: int, planned: int) -> None:
        settings, self._planned = self._settings, planned
        for part in self.model.modules():
            if isinstance(part, TrainingOnly):
                part.plan(planned)
        rates, weights = [], []
        for update in self._block:
            factor = learning_rate_factor(update, planned, settings.warmup)
            rates.append(settings.learning_rate * factor)
            weights.append(ema_weight(update, settings.ema_decay, settings.ema_power))
        columns = torch.tensor([rates, weights], dtype=self._rate.dtype, device=self.device)
        self._schedule.put(*columns)
        self._place.fill_(number - self._block.start)

    def _seed(self, number: int) -> None:
        seed = self._settings.seed
        self._generator.manual_seed(derive_seed("update", seed, number))
        torch.manual_seed(derive_seed("dropout", seed, number))

    def _captured(self) -> Callable[[], None]:
        """Return the training step as a replayed CUDA graph, or as it is where that fails."""
        if self._settings.cuda_graphs == "off":
            return self._run
        try:
            with self.undone():
                graph, _ = capture(self._run, self.rehearse, self.device, self._generator)
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            self._log(f"training steps are not captured as a CUDA graph: {first_line(error)}")
            return self._run
        return graph.replay

    def _tensors(self) -> list[Tensor]:
        modules = (self.model, self.average)
        state = [t for entry in self.optimizer.state.values() for t in entry.values()]
        return [
            *(t for module in modules for t in (*module.parameters(), *module.buffers())),
            *state,
            self._place,
        ]


def learning_rate_factor(update: int, total: int, warmup: int) -> float:
    """Return the learning rate at a training step, as a fraction of its peak.

    Linear warm-up, then a half cosine from 1 to `FINAL_FACTOR` at the last step.
    """
    if update < warmup:
        return (update + 1) / warmup
    through = min(1.0, (update - warmup) / max(1, total - warmup))
    return FINAL_FACTOR + (1.0 - FINAL_FACTOR) * 0.5 * (1.0 + math.cos(math.pi * through))


def ema_weight(update: int, decay: float, power: float = 0.0) -> float:
    """Return the weight of the model's weights in their exponential moving average.

    The decay warms up, so that early weights are soon forgotten and a run that ends early still
    has a useful average: as (1 + n) / (10 + n), or as 1 - n ** -power, which is the schedule of
    Diffusion Policy (at its step 1 + n, with inv_gamma 1).

    Args:
        update: Training steps made before this one.
        decay: Largest decay, in [0, 1).
        power: Exponent of the warm-up; 0 selects the first schedule.
    """
    if update == 0:
        return 1.0
    warm = 1.0 - float(update) ** -power if power else (1.0 + update) / (10.0 + update)
    return 1.0 - min(decay, warm)


@contextmanager
def matrix_precision(device: torch.device, precision: str) -> Iterator[None]:
    """Let CUDA round the factors of matrix products to TF32, unless `precision` is `"fp32"`.

    On a CPU, see `fast_products`.
    """
    if device.type != "cuda":
        with fast_products():
            yield
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision != "fp32"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


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
