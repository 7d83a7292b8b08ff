"""Batches of snippets cut from a snippet store in memory, on a device, or on disk."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import get_args

import numpy as np
import psutil
import torch
from torch import Tensor

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.zarr_columns import check_memory
from lwdctl.configs import Cache
from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec
from lwdctl.data.windows import IntArray, VisitOrder, WindowRule, blocks_of

CACHES = get_args(Cache)
BLOCK_ROWS = 65_536
KEPT_BLOCKS = 2 * VisitOrder.mixed
"""Blocks that are kept in memory where steps are streamed."""
ORDER_BYTES = 48
"""Bytes per step that shuffling the snippets of a block takes."""
MEMORY_FRACTION = 0.5
"""Largest fraction of the free memory that the steps may take for `cache="auto"`."""


@dataclass
class SnippetBatch:
    """Snippets cut from episodes, in environment units.

    Attributes:
        observations: (batch, time, obs).
        actions: (batch, time, action).
        mask: (batch, time), 1.0 for real steps. Padding repeats the nearest real step; actions that
            are motions are zero there, but for the gripper's.
        start: (batch,), its first step within its episode; negative before it.
        task: (batch,), task index, -1 for none.
        label: (batch,), label index, -1 for none.
        left: (batch,), steps of the episode from the snippet's first one on.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor
    start: Tensor
    task: Tensor
    label: Tensor
    left: Tensor


class MemoryRows:
    """The steps of the whole store as one tensor, in RAM or on the device.

    Attributes:
        table: (step, obs + action).
    """

    def __init__(self, store: SnippetStore, keys: tuple[str, ...], device: torch.device) -> None:
        width = sum(store.spec.sizes(keys)) + store.spec.action.size
        self.table = torch.empty(store.steps, width, device=device)
        for start in range(0, store.steps, BLOCK_ROWS):
            rows = torch.from_numpy(_read(store, keys, start, min(start + BLOCK_ROWS, store.steps)))
            self.table[start : start + len(rows)] = rows.to(device)

    def at(self, index: Tensor) -> Tensor:
        """Return the steps (batch, time, obs + action) of row numbers (batch, time)."""
        return self.table.index_select(0, index.flatten()).view(*index.shape, -1)

    def spans(self, first: Tensor, length: int) -> Tensor:
        """Return the steps (batch, time, obs + action) of `length` rows from each of `first` on.

        Each is copied as a whole, and must lie inside the store.
        """
        count, width = self.table.shape
        spans = self.table.as_strided((count - length + 1, length * width), (width, 1))
        return spans.index_select(0, first).view(len(first), length, width)

    def rows(self, index: IntArray, episodes: IntArray) -> Tensor:
        """Return the steps (batch, time, obs + action) of row numbers (batch, time).

        Args:
            index: Row numbers in the store.
            episodes: (batch,) the episode that each row of `index` belongs to.
        """
        del episodes
        return self.at(torch.from_numpy(index).to(self.table.device))


class StreamedRows:
    """Blocks of the store read on demand; at most `capacity` of them are kept in memory."""

    def __init__(
        self, store: SnippetStore, keys: tuple[str, ...], blocks: list[IntArray], capacity: int
    ) -> None:
        self._store, self._keys, self._capacity = store, keys, capacity
        table = store.episodes
        self._bounds = [
            (int(table.start[b[0]]), int(table.start[b[-1]] + table.length[b[-1]])) for b in blocks
        ]
        self._block_of = np.full(len(table.start), -1, dtype=np.int64)
        for number, block in enumerate(blocks):
            self._block_of[block] = number
        self._cached: OrderedDict[int, Tensor] = OrderedDict()

    def rows(self, index: IntArray, episodes: IntArray) -> Tensor:
        """Return the steps of row numbers, as `MemoryRows.rows` does."""
        numbers = self._block_of[episodes]
        out: Tensor | None = None
        for number in np.unique(numbers):
            block = self._block(int(number))
            here = np.flatnonzero(numbers == number)
            local = torch.from_numpy(index[here] - self._bounds[number][0])
            if out is None:
                out = block.new_empty((*index.shape, block.shape[1]))
            out[torch.from_numpy(here)] = block[local]
        assert out is not None  # a batch is never empty
        return out

    def _block(self, number: int) -> Tensor:
        if number in self._cached:
            self._cached.move_to_end(number)
            return self._cached[number]
        while len(self._cached) >= self._capacity:
            self._cached.popitem(last=False)
        block = torch.from_numpy(_read(self._store, self._keys, *self._bounds[number]))
        self._cached[number] = block
        return block


class SnippetBatches:
    """Batches of one split of a store; batch `n` depends only on the seed and `n`.

    Those of the training split follow the weights of the episodes, as `VisitOrder` defines; the
    other splits are drawn from without weights.

    Args:
        store: Snippet store, on disk or in memory.
        keys: Observation keys to concatenate.
        rule: Which snippets to draw.
        split: `"train"`, `"validation"`, or `"all"`.
        seed: Seed of the visit order.
        cache: Where the steps are kept: on the `"device"`, in `"ram"`, on disk (`"none"`), or
            `"auto"`: the first of these with enough free memory.
        device: Device of the batches.
        every: Whether an epoch visits every snippet, instead of one per episode.

    Attributes:
        episodes: Store indices of the split's episodes.
        cache: The chosen place of the steps.

    Raises:
        ConfigError: `cache` is none of these.
        ArtifactError: Episodes are too long to be streamed.
    """

    def __init__(
        self,
        store: SnippetStore,
        keys: tuple[str, ...],
        rule: WindowRule,
        *,
        split: str,
        seed: int,
        cache: str = "auto",
        device: torch.device | None = None,
        every: bool = False,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.rule = rule
        self._store, self._keys, self._seed, self._every = store, keys, seed, every
        self._start, self._length = store.episodes.start, store.episodes.length
        self._obs = sum(store.spec.sizes(keys))
        size = 4 * store.steps * (self._obs + store.spec.action.size)
        self.cache = choose_cache(cache, size, self.device)
        self._rows: MemoryRows | StreamedRows
        if self.cache == "none":
            blocks = self._blocks()
            _check_streamed(store, blocks, 4 * (self._obs + store.spec.action.size))
            self._rows = StreamedRows(store, keys, blocks, KEPT_BLOCKS)
        else:
            kept_on = self.device if self.cache == "device" else torch.device("cpu")
            self._rows = MemoryRows(store, keys, kept_on)
        self._steps = torch.arange(rule.length, device=self.device)
        self._motions = motions(store.spec.action).to(self.device)
        self._select(split)

    def of_split(self, split: str) -> SnippetBatches:
        """Return batches of another split that share the steps kept in memory."""
        other = copy.copy(self)
        other._select(split)  # noqa: SLF001 - a copy of this very object
        return other

    def _select(self, split: str) -> None:
        self._split = split
        self.episodes: IntArray = self._store.episodes.of_split(split)
        self._order: VisitOrder | None = None

    def batch(self, update: int, batch_size: int) -> SnippetBatch:
        """Return the training batch of one update, drawn in visit order."""
        return self.cut(*self.drawn(update, batch_size))

    def drawn(self, update: int, batch_size: int, count: int = 1) -> tuple[IntArray, IntArray]:
        """Return the snippets in the batches of `count` updates from `update` on.

        Returns:
            Store episode (count * batch,) and start within it (count * batch,).
        """
        if self._order is None:
            chosen = np.isin(np.arange(len(self._start)), self.episodes)
            blocks = [block[chosen[block]] for block in self._blocks() if chosen[block].any()]
            counts = self.rule.counts(self._length)
            self._order = VisitOrder(
                blocks,
                counts,
                self.rule.stride,
                self._seed,
                every=self._every,
                weights=self._store.episodes.weight if self._split == "train" else None,
            )
        episodes, offsets = self._order.draw(update * batch_size, (update + count) * batch_size)
        return episodes, offsets - self.rule.before

    @property
    def count(self) -> int:
        """Number of snippets in the split."""
        return int(self.rule.counts(self._length[self.episodes]).sum())

    def every(self, start: int = 0, stop: int | None = None) -> tuple[IntArray, IntArray]:
        """Return the snippets `start:stop` of the split: store episode and start (snippet,)."""
        position, offsets = self.rule.all(self._length[self.episodes], start, stop)
        return self.episodes[position], offsets

    def cut(self, episodes: IntArray, offsets: IntArray) -> SnippetBatch:
        """Return the snippets at `offsets` of `episodes`, padded; see `SnippetBatch`."""
        return self.assemble(*self.prepare(episodes, offsets))

    def prepare(self, episodes: IntArray, offsets: IntArray) -> tuple[Tensor, ...]:
        """Return on the device what the host knows of the snippets at `offsets` of `episodes`.

        Returns:
            Integers (snippet, 5): the row of its first step, that step's number within its episode,
            the steps from there to the episode's end, its task and its label. Unless the steps lie
            on the device, also the steps themselves (snippet, time, obs + action).
        """
        table, start = self._store.episodes, self._start[episodes]
        first, left = start + offsets, self._length[episodes] - offsets
        columns = (first, offsets, left, table.task[episodes], table.label[episodes])
        numbers = torch.from_numpy(np.stack(columns, axis=1).astype(np.int64)).to(self.device)
        if self.resident:
            return (numbers,)
        rows = first[:, None] + np.arange(self.rule.length, dtype=np.int64)
        index = np.clip(rows, start[:, None], (first + left - 1)[:, None])
        return numbers, self._rows.rows(index, episodes).to(self.device)

    def assemble(self, numbers: Tensor, steps: Tensor | None = None) -> SnippetBatch:
        """Return the snippets that `prepare` described, without anything from the host."""
        first, start, left, task, label = numbers.unbind(1)
        index = real = None
        # This check is cheap on a CPU; for another device the host would have to wait.
        if numbers.device.type != "cpu" or start.min() < 0 or left.min() < self.rule.length:
            rows, low, high = first.unsqueeze(1) + self._steps, first - start, first + left - 1
            index = torch.clamp(rows, low.unsqueeze(1), high.unsqueeze(1))
            real = index == rows
        if steps is None:
            assert isinstance(self._rows, MemoryRows)
            if index is None:
                steps = self._rows.spans(first, self.rule.length)
            else:
                steps = self._rows.at(index)
        actions = steps[..., self._obs :]
        if real is not None and self._motions.numel():
            actions = actions.masked_fill(~real.unsqueeze(2) & self._motions, 0.0)
        mask = steps.new_ones(steps.shape[:2]) if real is None else real.to(steps.dtype)
        return SnippetBatch(steps[..., : self._obs], actions, mask, start, task, label, left)

    @property
    def resident(self) -> bool:
        """Whether the steps lie on the device of the batches."""
        # A tensor's device against another's: `cuda` is not equal to `cuda:0`, where it puts them.
        return isinstance(self._rows, MemoryRows) and self._rows.table.device == self._steps.device

    @property
    def snippet_bytes(self) -> int:
        """Size of the steps of one snippet."""
        return 4 * self.rule.length * (self._obs + self._store.spec.action.size)

    def history(self, episodes: IntArray, offsets: IntArray, count: int) -> Tensor:
        """Return the `count` observations up to each snippet's first step.

        The episode's first observation stands in for those before its start.

        Returns:
            (batch, count * obs), oldest first.
        """
        within = np.maximum(offsets[:, None] + np.arange(1 - count, 1), 0)
        rows = self._rows.rows(self._start[episodes][:, None] + within, episodes)
        return rows[..., : self._obs].flatten(1).to(self.device)

    def padding_fraction(self) -> float:
        """Return the fraction of padded steps over all snippets of the split."""
        padded, total = 0.0, 0
        for length in self._length[self.episodes]:
            valid = self.rule.valid(*np.broadcast_arrays(length, self.rule.all(length[None])[1]))
            padded += float((self.rule.length - valid).sum())
            total += len(valid) * self.rule.length
        return padded / total

    def _blocks(self) -> list[IntArray]:
        return blocks_of(self._start, self._length, BLOCK_ROWS)


def _check_streamed(store: SnippetStore, blocks: list[IntArray], row_bytes: int) -> None:
    """Check that the blocks kept in memory, and the order of their snippets, fit into it.

    A block holds whole episodes, so a store that declares episodes of any length decides on it.

    Raises:
        ArtifactError: They would take more than half of the free memory.
    """
    longest = max((int(store.episodes.length[block].sum()) for block in blocks), default=0)
    needed = KEPT_BLOCKS * longest * (row_bytes + ORDER_BYTES)
    steps = int(store.episodes.length.max(initial=0))
    check_memory(needed, f"{store.path}: streamed episodes of up to {steps:,} steps")


def choose_cache(cache: str, size: int, device: torch.device) -> str:
    """Return where to keep data of `size` bytes: for `"auto"` where there is enough free memory.

    Raises:
        ConfigError: `cache` is none of the modes.
    """
    if cache not in CACHES:
        raise ConfigError(f"no cache mode is called '{cache}'", "known: " + ", ".join(CACHES))
    if cache != "auto":
        return cache
    if device.type == "cuda" and size < MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "ram" if size < MEMORY_FRACTION * psutil.virtual_memory().available else "none"


def motions(action: ActionSpec) -> Tensor:
    """Return which components are motions (action,), empty where none is: zero moves nothing."""
    if action.semantics != "delta":
        return torch.zeros(0, dtype=torch.bool)
    chosen = torch.ones(action.size, dtype=torch.bool)
    chosen[list(action.gripper)] = False
    return chosen


def _read(
    store: SnippetStore, keys: tuple[str, ...], start: int, stop: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    observations = store.features(keys, start, stop)
    return np.concatenate([observations, store.read("action", start, stop)], axis=1)
