"""Which snippets of an episode are used, and in which order training visits them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import ConfigError
from lwdctl.core.seeding import generator

IntArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WindowRule:
    """Which snippets of an episode are used.

    Attributes:
        length: Snippet length in steps.
        stride: Steps between neighboring snippet starts.
        min_valid_fraction: Smallest fraction of a snippet that must be real steps, in (0, 1]; the
            rest is padding. 1 uses full snippets only (a shorter episode gives one).
        first_only: Whether to use only the snippet that starts with the episode.
        before: Steps that a snippet may start before its episode; padded with the first step.
        after: Steps of padding allowed past the episode's end, instead of `min_valid_fraction`.
    """

    length: int
    stride: int = 1
    min_valid_fraction: float = 1.0
    first_only: bool = False
    before: int = 0
    after: int | None = None

    def counts(self, lengths: IntArray) -> IntArray:
        """Return how many snippets each episode (episode,) has, at least one."""
        if self.first_only:
            return np.ones_like(lengths)
        # 0.07 * 100 is more than 7 in floating point.
        real = math.ceil(round(self.min_valid_fraction * self.length, 9))
        if self.after is not None:
            real = self.length - self.after
        last_start = np.maximum(lengths + self.before - max(1, real), 0)
        counts: IntArray = last_start // self.stride + 1
        return counts

    def all(
        self, lengths: IntArray, start: int = 0, stop: int | None = None
    ) -> tuple[IntArray, IntArray]:
        """Return the snippets `start:stop` of all of them, in the order of the episodes.

        Returns:
            Episode position (snippet,) and start within it (snippet,).
        """
        counts = self.counts(lengths)
        ends = np.cumsum(counts)
        numbers = np.arange(*slice(start, stop).indices(int(ends[-1]) if len(ends) else 0))
        episode = np.searchsorted(ends, numbers, side="right").astype(np.int64)
        within = numbers - (ends - counts)[episode]
        return episode, within * self.stride - self.before

    def valid(self, lengths: IntArray, offsets: IntArray) -> IntArray:
        """Return how many of each snippet's steps are real."""
        ends = np.minimum(offsets + self.length, lengths)
        valid: IntArray = ends - np.maximum(offsets, 0)
        return valid


def blocks_of(starts: IntArray, lengths: IntArray, rows: int) -> list[IntArray]:
    """Group neighboring episodes into blocks of about `rows` steps.

    Returns:
        Episode positions per block, in store order; every block has at least one.
    """
    order = np.argsort(starts, kind="stable").astype(np.int64)
    begun = np.cumsum(lengths[order]) - lengths[order]
    label = begun // max(1, rows)
    cuts = np.flatnonzero(np.diff(label)) + 1
    return [np.asarray(part, dtype=np.int64) for part in np.split(order, cuts) if len(part)]


@dataclass(frozen=True, eq=False)
class VisitOrder:
    """The order in which training draws snippets, a function of seed and position only.

    An epoch is one randomly placed snippet per episode, or every snippet once. Blocks are
    shuffled, `mixed` blocks at a time are merged and their snippets shuffled. A reader thus
    needs only those blocks in memory, and every cache mode gives the same batches.

    With weights, an epoch still has as many snippets as without them. The expected number of times
    that it visits an episode is the episode's weight divided by the mean weight of the episodes;
    the actual number is that one, rounded down or up at random. With `every` the same holds for
    each snippet. Weight 0 is never visited. Equal weights change nothing.

    Attributes:
        blocks: Episode positions per block, as `blocks_of` returns them.
        counts: (episode,) snippets of each episode.
        stride: Steps between neighboring snippet starts.
        seed: Seed of the order.
        mixed: Blocks whose snippets are shuffled together.
        every: Whether an epoch visits every snippet.
        weights: (episode,) how often the snippets of an episode are visited, relative to those of
            the others; None for all alike.

    Raises:
        ConfigError: There is no episode to draw from, or all have weight 0.
    """

    blocks: Sequence[IntArray]
    counts: IntArray
    stride: int
    seed: int
    mixed: int = 4
    every: bool = False
    weights: DoubleArray | None = None

    def __post_init__(self) -> None:
        """Check that there is something to draw."""
        if not self.size:
            raise ConfigError(
                "the training split holds no episode",
                "lower --validation-fraction of `lwdctl ingest`",
            )
        if self.weights is not None and not self.weights[np.concatenate(self.blocks)].any():
            raise ConfigError(
                "every episode of the training split has weight 0",
                "give one file a --weight above 0 in `lwdctl ingest`",
            )

    @cached_property
    def size(self) -> int:
        """Snippets per epoch."""
        return sum(int(self.counts[b].sum()) if self.every else len(b) for b in self.blocks)

    def draw(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """Return the snippets at the positions from `start` to before `stop`.

        Returns:
            Episode position (snippet,) and start within the episode (snippet,).
        """
        positions = np.arange(start, stop)
        epochs, ranks = np.divmod(positions, self.size)
        episodes, offsets = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            if self.every:
                episodes[here], offsets[here] = _epoch_of_all(self, int(epoch)).draw(ranks[here])
            else:
                order, shift = _epoch(self, int(epoch))
                episodes[here], offsets[here] = order[ranks[here]], shift[ranks[here]]
        return episodes, offsets

    @cached_property
    def relative_weights(self) -> DoubleArray | None:
        """Weights (episode,), the largest 1; None where the episodes to draw from are all alike."""
        if self.weights is None:
            return None
        own = self.weights[np.concatenate(self.blocks)]
        return None if (own == own[0]).all() else self.weights / own.max()

    def groups(self, rng: np.random.Generator) -> list[IntArray]:
        """Draw which blocks are merged; return the episodes of each group in an epoch's order."""
        blocks = [self.blocks[index] for index in rng.permutation(len(self.blocks))]
        size = self.mixed
        return [np.concatenate(blocks[i : i + size]) for i in range(0, len(blocks), size)]


class _WeightedVisits:
    """How many snippets of each group an epoch visits, and which, where episodes have weights.

    Systematic sampling (Madow 1949): the candidates, in random order, divide a line as long as the
    epoch in proportion to their weights, and every point a whole number of steps after a random
    first one visits the candidate that it falls on.

    Args:
        order: The order; an epoch has `order.size` visits.
        groups: Episodes of each group.
        rng: Source of randomness at the beginning of an epoch.

    Attributes:
        ends: (group,) visits up to the end of each group.
    """

    def __init__(
        self, order: VisitOrder, groups: Sequence[IntArray], rng: np.random.Generator
    ) -> None:
        weights = order.relative_weights
        assert weights is not None  # there is nothing to weight otherwise
        self._weights = [weights[group] for group in groups]
        self._repeats = [order.counts[group] if order.every else 1 for group in groups]
        parts = zip(self._weights, self._repeats, strict=True)
        bounds = np.cumsum([0.0, *((part * repeats).sum() for part, repeats in parts)])
        self._bounds = bounds / bounds[-1] * order.size
        self._first = rng.random()
        self._passed = np.ceil(self._bounds - self._first).astype(np.int64)
        self.ends = self._passed[1:]

    def shuffled(self, number: int, rng: np.random.Generator) -> IntArray:
        """Return which candidates of a group are visited (visit,), in random order."""
        weights = np.repeat(self._weights[number], self._repeats[number])
        order = rng.permutation(len(weights))
        begin, end = self._passed[number : number + 2]
        if begin == end:
            return order[:0]
        low, high = self._bounds[number : number + 2]
        points = (np.arange(begin, end) + self._first - low) / (high - low)
        edges = np.cumsum(weights[order])
        # Rounding must not move a point to a neighboring group.
        inside = np.clip(points, 0.0, np.nextafter(1.0, 0.0))
        chosen = order[np.searchsorted(edges / edges[-1], inside, side="right")]
        return rng.permutation(chosen)


@lru_cache(maxsize=8)
def _epoch(order: VisitOrder, epoch: int) -> tuple[IntArray, IntArray]:
    rng = generator("visit-order", order.seed, epoch)
    groups = order.groups(rng)
    if order.relative_weights is None:
        episodes = np.concatenate([rng.permutation(group) for group in groups])
    else:
        visits = _WeightedVisits(order, groups, rng)
        episodes = np.concatenate(
            [group[visits.shuffled(number, rng)] for number, group in enumerate(groups)]
        )
    starts = rng.random(len(episodes)) * order.counts[episodes]
    return episodes, np.floor(starts).astype(np.int64) * order.stride


class _EpochOfAll:
    """An epoch over all snippets; holds the order of one group at a time."""

    def __init__(self, order: VisitOrder, epoch: int) -> None:
        self._order = order
        self._rng = generator("visit-order", order.seed, epoch)
        self._groups = order.groups(self._rng)
        if order.relative_weights is None:
            self._visits = None
            self._ends = np.cumsum([order.counts[group].sum() for group in self._groups])
        else:
            self._visits = _WeightedVisits(order, self._groups, self._rng)
            self._ends = self._visits.ends
        self._states = [self._rng.bit_generator.state]  # before every group reached so far
        self._number = -1
        self._episodes = self._places = np.zeros(0, dtype=np.int64)

    def draw(self, ranks: IntArray) -> tuple[IntArray, IntArray]:
        """Return episode and start within it of the snippets at places in the epoch."""
        episodes, offsets = np.empty_like(ranks), np.empty_like(ranks)
        numbers = np.searchsorted(self._ends, ranks, side="right")
        for number in np.unique(numbers):
            here = numbers == number
            self._shuffle(int(number))
            within = ranks[here] - (self._ends[number] - len(self._places))
            episodes[here] = self._episodes[within]
            offsets[here] = self._places[within] * self._order.stride
        return episodes, offsets

    def _shuffle(self, number: int) -> None:
        """Hold the order of one group; the randomness of those before it is drawn once."""
        if number == self._number:
            return
        for reached in range(min(number, len(self._states) - 1), number + 1):
            self._rng.bit_generator.state = self._states[reached]
            counts = self._order.counts[self._groups[reached]]
            if self._visits is None:
                shuffled = self._rng.permutation(int(counts.sum()))
            else:
                shuffled = self._visits.shuffled(reached, self._rng)
            if reached + 1 == len(self._states):
                self._states.append(self._rng.bit_generator.state)
        self._episodes = np.repeat(self._groups[number], counts)[shuffled]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self._places = within[shuffled]
        self._number = number


@lru_cache(maxsize=8)
def _epoch_of_all(order: VisitOrder, epoch: int) -> _EpochOfAll:
    return _EpochOfAll(order, epoch)
