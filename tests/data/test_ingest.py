"""Ingesting: validation splits (stratified, seeded, the source's own first), and the store."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwdctl.configs import IngestConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.data.formats import READERS
from lwdctl.data.ingest import assign_splits, ingest
from lwdctl.data.reader import EpisodeOutline, open_source

outlines = st.lists(
    st.builds(
        EpisodeOutline,
        st.just(""),
        st.just(1),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["x", "y", ""]),
    ),
    min_size=1,
    max_size=60,
)


@given(outlines=outlines, fraction=st.floats(0, 0.9), seed=st.integers(0, 9))
def test_share_is_kept_overall_and_per_stratum(outlines, fraction, seed):
    splits = assign_splits(outlines, fraction, seed)
    held = [item for item, split in zip(outlines, splits, strict=True) if split == "validation"]
    assert len(held) <= max(1, fraction * len(outlines) + 1)
    assert "train" in splits
    sizes, taken = Counter(outlines), Counter(held)
    if len(outlines) > 1 and fraction > 0:
        assert held
    for stratum, size in sizes.items():
        assert taken[stratum] <= fraction * size + 1
        if size > 1:
            assert taken[stratum] >= int(fraction * size) - 1
    assert splits == assign_splits(outlines, fraction, seed)


def test_six_operators_of_fifty_give_five_each():
    outlines = [EpisodeOutline("", 1, "Lift", f"operator_{i % 6}") for i in range(300)]
    splits = assign_splits(outlines, 0.1, 0)
    held = [item.label for item, split in zip(outlines, splits, strict=True) if split != "train"]
    assert set(Counter(held).values()) == {5}
    assert splits != assign_splits(outlines, 0.1, 1)


def test_the_sources_own_split_goes_first():
    outlines = [
        EpisodeOutline("", 1, split=split) for split in ("train", "", "validation", "train")
    ]
    assert assign_splits(outlines, 0.5, 0) == ["train", "train", "validation", "train"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_that_leaves_one_side_empty_is_no_split(split):
    splits = assign_splits([EpisodeOutline("", 1, split=split)] * 10, 0.2, 0)
    assert Counter(splits) == {"train": 8, "validation": 2}


@pytest.mark.parametrize("name", list(READERS))
def test_a_store_in_memory_equals_the_one_on_disk(make_sample, tmp_path, name):
    paths = [make_sample(name, tmp_path / "source").path]
    config = IngestConfig(format=name, max_episodes=9, seed=3)
    with open_source(name, paths, config) as source:
        memory, first = ingest(source, config, None, SilentProgress())
        disk, second = ingest(source, config, tmp_path / "snippets.zarr", SilentProgress())
    assert first == second
    assert memory.spec == disk.spec
    assert memory.episodes.source == disk.episodes.source
    np.testing.assert_array_equal(
        memory.read("action", 0, memory.steps), disk.read("action", 0, disk.steps)
    )
