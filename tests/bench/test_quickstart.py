"""One of both runs of the quick start has a busy process beside it."""

from __future__ import annotations

import psutil
import pytest
import torch

from lwdctl.bench import quickstart


def test_the_busy_process_lives_during_every_second_run_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy: list[int] = []

    def count(device: torch.device, *, smoke: bool) -> None:
        children = psutil.Process().children()
        busy.append(sum(quickstart.BUSY in child.cmdline() for child in children))

    monkeypatch.setattr(quickstart, "_run", count)
    found = next(iter(quickstart.beside_a_busy_process(torch.device("cpu"), rounds=2)))
    assert busy == [0, 1, 0, 1]
    assert found.rounds == 2
    assert not [c for c in psutil.Process().children() if quickstart.BUSY in c.cmdline()]


def test_the_recipe_is_the_quick_start() -> None:
    assert quickstart.RECIPE.exists()
