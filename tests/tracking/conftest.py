"""A workspace for toy runs, on a machine where nobody is logged in to anything."""

import sys
from pathlib import Path

import pytest

from lwdctl.tracking import session

sys.path.insert(0, str(Path(__file__).parent))
from toy_runs import Runs

sys.path.pop(0)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for limit in ("STARTING_SECONDS", "SILENT_SECONDS", "INTERRUPTED_SECONDS"):
        monkeypatch.setattr(session, limit, 150.0)  # a busy machine
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no one is logged in there
    return Runs(tmp_path / "lab-runs")
