"""What training minimizes: losses on snippets and on latents, and their validation."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig, DiffusionConfig, EncodeConfig, VaeConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import generator as numpy_generator
from lwdctl.data.batches import SnippetBatch, SnippetBatches, choose_cache
from lwdctl.data.windows import WindowRule
from lwdctl.models.normalizer import normal_like
from lwdctl.models.skeleton import check_batch_memory
from lwdctl.training.distributed import own_rows
from lwdctl.training.loop import choose_device
from lwdctl.training.update import Ahead, LoopSettings

VALIDATION_BATCHES = 4
VALIDATION_LATENTS = 1024
MOST_PADDING = 0.5
"""Fraction of padded steps above which a training warns."""
READ_ROWS = 32_768
"""Rows of a latent store that are read at a time."""
BLOCK = 64
"""Training steps whose batches are put on the device together."""
BLOCK_BYTES = 2**26
"""Largest size of those batches where the steps themselves do not lie on the device."""


def training_batches(
    data: SnippetStore,
    keys: tuple[str, ...],
    rule: WindowRule,
    config: VaeConfig | BaselineConfig,
    *,
    every: bool = False,
) -> tuple[SnippetBatches, SnippetBatches | None]:
    """Return the training snippets, and those of the validation split if it has episodes.

    An epoch visits one snippet per episode, or with `every` all of them.
    """
    batches = SnippetBatches(
        data,
        keys,
        rule,
        split="train",
        seed=config.seed,
        cache=config.cache,
        device=choose_device(config.device),
        every=every,
    )
    some_held_out = bool((data.episodes.split == 1).any())
    return batches, batches.of_split("validation") if some_held_out else None


def warn_of_unused(
    config: VaeConfig | EncodeConfig | DiffusionConfig | BaselineConfig,
    what: str,
    options: Iterable[str],
    progress: Progress,
) -> None:
    """Warn of options that are set without effect; a recipe may set them for other models."""
    unused = [name for name in options if getattr(config, name) != getattr(type(config), name)]
    if unused:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        progress.message(f"warning: {what} has no use for {names}")


def describe_training(
    batches: SnippetBatches,
    config: VaeConfig | BaselineConfig,
    settings: LoopSettings,
    *,
    every: bool = False,
) -> list[str]:
    """Say how many snippets there are and how often a training visits them.

    A second line warns where most steps of the snippets are padding, unless their length was chosen
    as that of an episode.

    Args:
        batches: The training snippets.
        config: Settings of the stage.
        settings: Training steps and batch size.
        every: Whether an epoch visits every snippet, instead of one per episode.
    """
    episodes, padding = len(batches.episodes), batches.padding_fraction()
    drawn = settings.updates * settings.batch_size
    about = (
        f"{episodes} training episodes, {batches.count} snippets of {batches.rule.length} steps,"
        f" {padding:.0%} padding; {settings.updates} training steps ="
        f" {drawn / batches.count:.2f} passes over all snippets"
    )
    if not every:
        about += f", or {drawn / episodes:.1f} epochs of one snippet per episode"
    lines = [about]
    if padding > MOST_PADDING and config.snippet_length != "episode":
        lines.append(
            f"warning: {padding:.0%} of the steps of all snippets are padding, because episodes are"
            " too short for them; give a smaller --snippet-length, or --snippet-length episode"
        )
    return lines


@dataclass
class SnippetObjective:
    """The weighted sum of the loss terms that a model's method `terms` returns for snippets.

    Attributes:
        batches: Training snippets.
        held_out: Snippets of the validation split, or None.
        batch_size: Snippets per training step.
        weights: Weight of a term by its name; terms without one have weight 1.
        options: Further arguments of `terms` while training.
        validation: Number and size of the batches to validate on; None takes four of `batch_size`.
    """

    batches: SnippetBatches
    held_out: SnippetBatches | None
    batch_size: int
    weights: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    validation: tuple[int, int] | None = None
    _ahead: Ahead = field(default_factory=Ahead)

    def __post_init__(self) -> None:
        """Check the size of a batch.

        Raises:
            ConfigError: A batch fits into no memory.
        """
        check_batch_memory(self.batch_size, self.batches.snippet_bytes)

    def load(self, update: int, left: int) -> int:
        """Put the snippets of a block of training steps on the device; return their number."""
        batches, size = self.batches, self.batch_size
        count = min(BLOCK, left)
        if not batches.resident:  # the snippets themselves are uploaded
            count = max(1, min(count, BLOCK_BYTES // (size * batches.snippet_bytes)))
        rows = own_rows(size)
        drawn = batches.drawn(update, size, count)
        parts = batches.prepare(*(each.reshape(count, size)[:, rows].ravel() for each in drawn))
        self._ahead.put(*(part.view(count, -1, *part.shape[1:]) for part in parts))
        return count

    def weight(self, model: nn.Module, place: Tensor) -> Tensor | None:
        """Return the weight of this process's loss, a scalar; None for its number of rows.

        It is what the model's method `loss_weight` returns, if it has one.
        """
        weigh = getattr(model, "loss_weight", None)
        if weigh is None:
            return None
        batch = self.batches.assemble(*self._ahead.take(place))
        return cast(Tensor, weigh(batch, **self.options))

    def loss(
        self, model: nn.Module, place: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one training step and its unweighted terms, all scalars."""
        batch = self.batches.assemble(*self._ahead.take(place))
        terms = self._terms(model, batch, generator, **self.options)
        total = sum((self.weights.get(name, 1.0) * term for name, term in terms.items()), 0.0)
        return cast(Tensor, total), {name: term.detach() for name, term in terms.items()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the terms on a fixed draw of held-out snippets; {} when nothing is held out."""
        if self.held_out is None:
            return {}
        generator = torch.Generator(self.held_out.device).manual_seed(0)
        count, size = self.validation or (VALIDATION_BATCHES, self.batch_size)
        drawn = [self.held_out.batch(number, size) for number in range(count)]
        found = [self._terms(model, batch, generator) for batch in drawn]
        return {
            f"held_out_{name}": float(torch.stack([terms[name] for terms in found]).mean())
            for name in found[0]
        }

    @staticmethod
    def _terms(
        model: Any, batch: SnippetBatch, generator: torch.Generator, **options: Any
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = model.terms(batch, batch.task, batch.label, generator, **options)
        return terms


Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class LatentTable:
    """Encoded snippets on the training device.

    Attributes:
        mean: (snippet, latent), posterior mean.
        std: (snippet, latent), posterior standard deviation.
        state: (snippet, history * obs), observations up to the snippet's first step.
        task: (snippet,), task index.
        label: (snippet,), label index.
    """

    mean: Tensor
    std: Tensor
    state: Tensor
    task: Tensor
    label: Tensor

    @classmethod
    def read(
        cls,
        store: LatentStore,
        device: torch.device,
        episodes: npt.NDArray[np.bool_] | None = None,
    ) -> LatentTable:
        """Load the snippets of some episodes; see `latent_table`."""
        count = count_rows(store, episodes)
        sizes = (store.latent_size, store.latent_size, store.state_size)
        # Read in pieces: a copy of the whole would double the peak of memory.
        parts = [torch.empty((count, size), device=device) for size in sizes]
        parts += [torch.empty(count, device=device, dtype=torch.long) for _ in range(2)]
        done = 0
        for columns in _read_rows(store, episodes):
            for part, values in zip(parts, columns, strict=True):
                part[done : done + len(values)] = values
            done += len(columns[0])
        return cls(*parts)

    @property
    def device(self) -> torch.device:
        """Where the snippets lie."""
        return self.mean.device

    def __len__(self) -> int:
        """Return the number of snippets."""
        return len(self.mean)

    @property
    def row_bytes(self) -> int:
        """Size of a snippet's mean, std and state."""
        return 4 * (2 * self.mean.shape[1] + self.state.shape[1])

    def take(self, rows: Tensor) -> Columns:
        """Return mean, std, state, task and label of rows (row,), on the device."""
        rows = rows.to(self.device)
        return self.mean[rows], self.std[rows], self.state[rows], self.task[rows], self.label[rows]


class SpilledLatents:
    """Encoded snippets in a file without a name, in rows that can be read in any order.

    The chunks of a latent store would have to be read and decompressed for every row.

    Args:
        store: The encoded snippets.
        device: Device of what is taken.
        episodes: As for `latent_table`.
        folder: Where the file is made; on the disk, and not among what is published.
    """

    def __init__(
        self,
        store: LatentStore,
        device: torch.device,
        episodes: npt.NDArray[np.bool_] | None,
        folder: Path,
    ) -> None:
        self.device = device
        self._sizes = [store.latent_size, store.latent_size, store.state_size, 1, 1]
        folder.mkdir(exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._count = 0
        for mean, std, state, task, label in _read_rows(store, episodes):
            indices = torch.stack([task, label], dim=1).view(torch.float32)
            self._file.write(torch.cat([mean, std, state, indices], dim=1).numpy().data)
            self._count += len(mean)
        self._file.flush()

    def __len__(self) -> int:
        """Return the number of snippets."""
        return self._count

    @property
    def row_bytes(self) -> int:
        """Size of a snippet in the file."""
        return 4 * sum(self._sizes)

    def take(self, rows: Tensor) -> Columns:
        """Return mean, std, state, task and label of rows (row,), on the device."""
        found = np.empty((len(rows), sum(self._sizes)), np.float32)
        read = 0
        for place, row in enumerate(rows.tolist()):
            read += os.preadv(self._file.fileno(), [found[place].data], row * self.row_bytes)
        if read != found.nbytes:
            raise OSError(errno.EIO, "the temporary file of the latents cannot be read")
        values = torch.from_numpy(found).to(self.device)
        mean, std, state, task, label = torch.split(values, self._sizes, dim=1)
        task, label = (part.contiguous().view(torch.int32)[:, 0].long() for part in (task, label))
        return mean, std, state, task, label


def latent_table(
    store: LatentStore,
    device: torch.device,
    episodes: npt.NDArray[np.bool_] | None,
    cache: str,
    folder: Path,
) -> LatentTable | SpilledLatents:
    """Return snippets of a latent store where a training finds them: on its device, or in a file.

    Args:
        store: The encoded snippets.
        device: Device of the training.
        episodes: (episode,), of which episodes of the snippet store to take the snippets; None
            takes all. They keep their order.
        cache: Where to keep them, as in `SnippetBatches`; `"ram"` means a file on CUDA, which the
            system keeps in main memory.
        folder: Where a file is made.
    """
    size = 4 * count_rows(store, episodes) * (2 * store.latent_size + store.state_size)
    chosen = choose_cache(cache, size, device)
    if chosen == "device" or (chosen == "ram" and device.type != "cuda"):
        return LatentTable.read(store, device, episodes)
    return SpilledLatents(store, device, episodes, folder)


def count_rows(store: LatentStore, episodes: npt.NDArray[np.bool_] | None) -> int:
    """Return the number of snippets of some episodes; see `latent_table`."""
    return sum(len(rows) for _, _, rows in _blocks(store, episodes))


def _blocks(
    store: LatentStore, episodes: npt.NDArray[np.bool_] | None
) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """Yield start and end of each block of rows, and which rows of the block are wanted."""
    for start in range(0, store.count, READ_ROWS):
        stop = min(start + READ_ROWS, store.count)
        if episodes is None:
            yield start, stop, np.arange(stop - start)
        else:
            yield start, stop, np.flatnonzero(episodes[store.read("episode", start, stop)])


def _read_rows(store: LatentStore, episodes: npt.NDArray[np.bool_] | None) -> Iterator[Columns]:
    """Yield the wanted rows of each block: mean, std, state, and int32 indices."""
    for start, stop, rows in _blocks(store, episodes):
        mean, log_variance, state, task, label = (
            torch.from_numpy(store.read(name, start, stop)[rows])
            for name in ("mean", "log_variance", "state", "task", "label")
        )
        yield mean, log_variance.mul_(0.5).exp_(), state, task, label


def weights_of_rows(
    weights: npt.NDArray[np.float64], episode: Callable[[], npt.NDArray[np.integer[Any]]]
) -> npt.NDArray[np.float64] | None:
    """Return the weight of every snippet (row,); None where all episodes have the same.

    Args:
        weights: (episode,), weights of all episodes.
        episode: Returns the episode of every snippet (row,). It is called where weights differ:
            only then something is held in memory for every snippet.
    """
    if weights[0] > 0 and (weights == weights[0]).all():
        return None
    found: npt.NDArray[np.float64] = weights[episode()]
    return found


def cumulative_weights(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Return where each row's part of [0, 1) ends (row,); None where all weights are equal.

    Raises:
        ConfigError: All weights are 0.
    """
    if not weights.any():
        raise ConfigError(
            "every snippet of the training split has weight 0",
            "give one file a --weight above 0 in `lwdctl ingest`",
        )
    if (weights == weights[0]).all():
        return None
    ends: npt.NDArray[np.float64] = np.cumsum(weights / weights.max())
    ends /= ends[-1]
    return ends


@dataclass
class DiffusionObjective:
    """Denoising loss on latents that are drawn anew from their posteriors at every step.

    Attributes:
        table: Encoded snippets of the training split.
        held_out: Encoded snippets of the validation split, or None.
        batch_size: Snippets per training step.
        seed: Seed of the order in which snippets are drawn.
        state_noise: Standard deviation of noise on the normalized state condition.
        weights: (snippet,), how often a row of `table` is drawn, relative to the others; None for
            all alike.
        dropout: Probability with which the condition of a snippet is hidden.
    """

    table: LatentTable | SpilledLatents
    held_out: LatentTable | SpilledLatents | None
    batch_size: int
    seed: int
    state_noise: float = 0.0
    weights: npt.NDArray[np.float64] | None = None
    dropout: float = 0.0
    _ahead: Ahead = field(default_factory=Ahead)

    def __post_init__(self) -> None:
        """Check the size of a batch, and add up the weights.

        Raises:
            ConfigError: A batch fits into no memory, or all weights are 0.
        """
        check_batch_memory(self.batch_size, self.table.row_bytes)
        self._ends = None if self.weights is None else cumulative_weights(self.weights)

    def load(self, update: int, left: int) -> int:
        """Put the rows of a block of training steps on the device; return their number."""
        table, count = self.table, min(BLOCK, left)
        if isinstance(table, SpilledLatents):  # the snippets themselves are uploaded
            count = max(1, min(count, BLOCK_BYTES // (self.batch_size * table.row_bytes)))
        own = own_rows(self.batch_size)
        drawn = [self._draw(number)[own] for number in range(update, update + count)]
        rows = torch.from_numpy(np.stack(drawn))
        if isinstance(table, SpilledLatents):
            parts = table.take(rows.flatten())
            self._ahead.put(*(part.reshape(*rows.shape, *part.shape[1:]) for part in parts))
        else:
            self._ahead.put(rows.to(table.device))
        return count

    def _draw(self, update: int) -> npt.NDArray[np.int64]:
        """Return the rows (batch,) of one training step."""
        rng = numpy_generator("latent-batch", self.seed, update)
        if self._ends is None:
            return rng.integers(len(self.table), size=self.batch_size)
        return np.searchsorted(self._ends, rng.random(self.batch_size), side="right")

    def loss(
        self, model: nn.Module, place: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one training step, a scalar."""
        taken = self._ahead.take(place)
        if isinstance(self.table, LatentTable):
            taken = self.table.take(*taken)
        value = self._denoising(model, taken, generator, self.state_noise, self.dropout)
        return value, {"denoising": value.detach()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the loss on a fixed draw of held-out latents; {} when nothing is held out."""
        if self.held_out is None:
            return {}
        rng = numpy_generator("latent-validation", self.seed)
        drawn = torch.from_numpy(rng.integers(len(self.held_out), size=VALIDATION_LATENTS))
        generator = torch.Generator(self.held_out.device).manual_seed(0)
        loss = self._denoising(model, self.held_out.take(drawn), generator)
        return {"held_out_denoising": float(loss)}

    @staticmethod
    def _denoising(
        model: Any,
        taken: Sequence[Tensor],
        generator: torch.Generator,
        noise: float = 0.0,
        dropout: float = 0.0,
    ) -> Tensor:
        mean, std, state, task, label = taken
        latent = mean + std * normal_like(mean, generator)
        if noise and model.spec.state_size:
            state = state + noise * model.state.scale * normal_like(state, generator)
        condition = model.condition(state, task, label)
        loss: Tensor = model.loss(latent, condition, generator, condition_dropout=dropout)
        return loss
