"""The loaders that the window benchmark compares give the same windows."""

from __future__ import annotations

import numpy as np
import pytest
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


CPU = torch.device("cpu")


@pytest.mark.slow
def test_memory_row_measures_a_training_in_a_process_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(data, "MEMORY_GIB", 2.0**-7)
    monkeypatch.setattr(data, "UPDATES", 2)
    (row,) = data.memory(torch.device("cpu"), 1)
    assert row.unit == "MiB"
    assert row.value.median > 1  # what two training steps allocate at the least


@pytest.mark.slow
def test_ingest_rows_measure_files_of_the_sizes_that_they_name(monkeypatch) -> None:
    monkeypatch.setattr(data, "INGESTED", ((3, 500),))
    monkeypatch.setattr(data, "INGESTED_LARGE", ((4, 60), (2, 90)))
    sizes, work = [], data._ingest_into

    def ingest_into(workspace, path, config):
        work(workspace, path, config)
        (artifact,) = workspace.artifacts("snippets")
        sizes.append(artifact.manifest.summary["steps"])

    monkeypatch.setattr(data, "_ingest_into", ingest_into)
    rows = [*data.ingest(CPU, 1), *data.ingest_of_large_files(CPU, 1)]
    assert [row.name.split(" of ")[0] for row in rows] == [
        f"ingest {count} demonstrations" for count in (3, 4, 2)
    ]
    assert sizes == [1500, 1500, 240, 240, 180, 180]  # a warm-up and one round each
    assert all(row.ratio > 0 for row in rows)
