"""The loaders that the window benchmark compares give the same windows."""

from __future__ import annotations

import numpy as np
import torch

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.bench import data
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule


def test_index_sampler_gives_the_windows_of_our_batches() -> None:
    store = SnippetStore.in_memory(data._episodes(3), data._spec())
    arrays = {key: store.read(key, 0, store.steps) for key in ("state", "action")}
    ends = (store.episodes.start + store.episodes.length).tolist()
    theirs = data.IndexSampler(arrays, ends, data.LENGTH)
    batches = SnippetBatches(
        store, ("state",), WindowRule(data.LENGTH), split="all", seed=0, cache="ram", every=True
    )
    assert len(theirs) == batches.count
    ours = batches.cut(*batches.every())
    np.testing.assert_array_equal(
        np.stack([theirs[index]["state"] for index in range(len(theirs))]), ours.observations
    )
    np.testing.assert_array_equal(theirs[7]["action"], ours.actions[7])


def test_memory_row_measures_a_training_in_a_process_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(data, "MEMORY_GIB", 2.0**-7)
    monkeypatch.setattr(data, "UPDATES", 2)
    (row,) = data.memory(torch.device("cpu"), 1)
    assert row.unit == "MiB"
    assert row.value.median > 1  # what two training steps allocate at the least
