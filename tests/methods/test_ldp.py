"""Training of LDP with its encoded snippets in a file, beside the same in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lwdctl.core.progress import SilentProgress
from lwdctl.methods import BASELINES, ldp
from lwdctl.training.encode import encode_batches
from tests.training.every_objective import BASELINE, walks


@pytest.mark.slow
def test_without_a_cache_latents_are_streamed_and_weights_are_the_same(tmp_path, monkeypatch):
    stores = []

    def encode(*arguments):
        stores.append(encode_batches(*arguments))
        return stores[-1]

    monkeypatch.setattr(ldp, "encode_batches", encode)

    def train(cache):
        folder = tmp_path / cache
        folder.mkdir()
        config = replace(BASELINE, method="ldp", updates=4, vae_updates=4, cache=cache)
        model = BASELINES.load("ldp").train(walks(), config, folder, SilentProgress()).model
        return folder, model.state_dict()

    _, kept = train("ram")
    stores.clear()
    folder, streamed = train("none")
    paths = [store.path for store in stores]
    assert len(paths) == 2  # training and validation split
    assert all(path.is_relative_to(folder / "checkpoints") for path in paths)
    assert not any(path.exists() for path in paths)
    assert kept.keys() == streamed.keys()
    for name, value in kept.items():
        torch.testing.assert_close(streamed[name], value, rtol=0, atol=0)
