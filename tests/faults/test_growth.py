"""A long training holds no more memory and open files at its end than near its beginning."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from regression import SETTINGS, Regression, train

sys.path.pop(0)

UPDATES = 3000
SETTLED = 500
"""Training step from which buffers, caches and logs have their size."""
ALLOWED = 16 * 2**20


class Watched(Regression):
    """Records memory in bytes and open files at two training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[int, int]] = {}

    def loss(self, *arguments):
        update = self.first + int(arguments[1])
        if update in (SETTLED, UPDATES - 1):
            handles = len(list(Path("/proc/self/fd").iterdir()))
            self.seen[update] = psutil.Process(os.getpid()).memory_info().rss, handles
        return super().loss(*arguments)


@pytest.mark.long
def test_3000_training_steps_hold_no_more_memory_and_files(tmp_path):
    objective = Watched()
    train(tmp_path / "run", objective, replace(SETTINGS, updates=UPDATES, checkpoint_seconds=0.2))
    (memory, handles), (memory_later, handles_later) = objective.seen.values()
    assert memory_later - memory < ALLOWED
    assert handles_later <= handles
