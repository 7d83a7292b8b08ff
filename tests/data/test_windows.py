"""Where snippets lie and in which order training visits them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwdctl.core.errors import ConfigError
from lwdctl.data.windows import VisitOrder, WindowRule, blocks_of

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=12).map(np.array)
RULES = st.builds(
    WindowRule,
    length=st.integers(1, 40),
    stride=st.integers(1, 7),
    min_valid_fraction=st.floats(0.05, 1.0),
    first_only=st.booleans(),
)


@given(lengths=LENGTHS, rule=RULES)
def test_every_window_starts_inside_its_episode_with_enough_real_steps(
    lengths: np.ndarray, rule: WindowRule
) -> None:
    episode, offset = rule.all(lengths)
    assert len(episode) == rule.counts(lengths).sum()
    assert set(episode) == set(range(len(lengths)))
    assert (offset >= 0).all()
    assert (offset < lengths[episode]).all()
    valid = rule.valid(lengths[episode], offset)
    assert ((valid >= 1) & (valid <= rule.length)).all()
    whole = lengths[episode] >= rule.length
    if not rule.first_only:
        assert (valid[whole] >= rule.min_valid_fraction * rule.length - 1e-9).all()
    pairs = set(zip(episode.tolist(), offset.tolist(), strict=True))
    assert len(pairs) == len(episode)


def test_full_windows_only_by_default() -> None:
    episode, offset = WindowRule(4).all(np.array([6, 3]))
    assert episode.tolist() == [0, 0, 0, 1]
    assert offset.tolist() == [0, 1, 2, 0]


def test_a_fraction_that_rounding_makes_larger_counts_as_it_is_written():
    lengths = np.array([100])
    for fraction, real in ((0.07, 7), (0.55, 55), (0.56, 56), (0.551, 56)):
        counts = WindowRule(100, min_valid_fraction=fraction).counts(lengths)
        assert counts.tolist() == [100 - real + 1]


def test_short_tails_when_a_share_of_padding_is_allowed() -> None:
    _, offset = WindowRule(4, min_valid_fraction=0.25).all(np.array([6]))
    assert offset.tolist() == [0, 1, 2, 3, 4, 5]


def order_of(seed: int = 0, episodes: int = 23, rows: int = 20) -> VisitOrder:
    lengths = np.full(episodes, 10)
    starts = np.arange(episodes) * 10
    return VisitOrder(blocks_of(starts, lengths, rows), np.full(episodes, 7), 2, seed)


def test_an_epoch_visits_every_episode_once() -> None:
    order = order_of()
    seen = np.concatenate([order.draw(update * 5, (update + 1) * 5)[0] for update in range(23)])
    for epoch in range(5):
        assert sorted(seen[epoch * 23 : (epoch + 1) * 23]) == list(range(23))


def test_batches_depend_on_seed_and_update_alone() -> None:
    forward = [order_of().draw(update * 8, (update + 1) * 8) for update in range(6)]
    backward = [order_of().draw(update * 8, (update + 1) * 8) for update in reversed(range(6))][
        ::-1
    ]
    for one, two in zip(forward, backward, strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(order_of(1).draw(0, 8), forward[0])


def test_offsets_follow_the_stride_and_cover_all_starts() -> None:
    order = order_of()
    offsets = np.concatenate(
        [order.draw(update * 50, (update + 1) * 50)[1] for update in range(40)]
    )
    assert set(offsets) == {0, 2, 4, 6, 8, 10, 12}


def test_a_batch_touches_few_blocks() -> None:
    lengths, starts = np.full(64, 10), np.arange(64) * 10
    order = VisitOrder(blocks_of(starts, lengths, 40), np.ones(64, dtype=np.int64), 1, 0)
    episodes, _ = order.draw(0, 16)
    assert len(set(episodes // 4)) <= order.mixed


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="no episode"):
        VisitOrder([], np.zeros(0, dtype=np.int64), 1, 0)


def test_blocks_hold_neighboring_episodes() -> None:
    blocks = blocks_of(np.array([30, 0, 10]), np.array([10, 10, 20]), 25)
    assert [block.tolist() for block in blocks] == [[1, 2], [0]]


def test_windows_may_start_before_and_end_after_their_episode() -> None:
    """Diffusion Policy's windows: one step before, executed - 1 past the end."""
    rule = WindowRule(16, before=1, after=7)
    episode, offset = rule.all(np.array([20, 9, 8]))
    assert offset[episode == 0].tolist() == list(range(-1, 12))
    assert offset[episode == 1].tolist() == [-1, 0]
    # Shorter than a window may be: its one window starts as early as it can.
    assert offset[episode == 2].tolist() == [-1]
    assert rule.valid(np.array([20, 20, 20]), np.array([-1, 0, 11])).tolist() == [15, 16, 9]


def test_an_epoch_of_every_window_visits_each_once() -> None:
    lengths = np.array([3, 9, 5, 14, 2, 7])
    starts = np.cumsum(lengths) - lengths
    counts = WindowRule(4, min_valid_fraction=0.25).counts(lengths)
    order = VisitOrder(blocks_of(starts, lengths, 8), counts, 2, 5, mixed=2, every=True)
    assert order.size == counts.sum()
    for epoch in range(2):
        episodes, offsets = order.draw(epoch * order.size, (epoch + 1) * order.size)
        pairs = sorted(zip(episodes.tolist(), offsets.tolist(), strict=True))
        assert pairs == [(e, 2 * n) for e, count in enumerate(counts) for n in range(count)]
    assert (
        order.draw(0, order.size)[0].tolist() != order.draw(order.size, 2 * order.size)[0].tolist()
    )
