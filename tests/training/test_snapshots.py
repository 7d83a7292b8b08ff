"""EMA weights kept during training: evenly spaced, safe to resume, harmless."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lwdctl.core.errors import ArtifactError
from lwdctl.training import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from regression import SETTINGS as USUAL
from regression import Regression, network, same, train

sys.path.pop(0)

SETTINGS = replace(USUAL, snapshots=4)


def contents(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in sorted((path / "snapshots").iterdir())}


def test_they_are_evenly_spaced_and_the_last_is_the_final_average(tmp_path: Path) -> None:
    _, loop = train(tmp_path / "run", Regression(), SETTINGS)
    assert checkpoint.snapshot_updates(tmp_path / "run") == [10, 20, 30, 40]
    loaded = network()
    checkpoint.load_snapshot(loaded, tmp_path / "run", 40)
    assert same(loaded, loop.ema_model)
    checkpoint.load_snapshot(loaded, tmp_path / "run", 30)
    assert not same(loaded, loop.ema_model)
    _, uneven = train(tmp_path / "uneven", Regression(), replace(SETTINGS, snapshots=3))
    assert checkpoint.snapshot_updates(tmp_path / "uneven") == [14, 27, 40]
    assert same(uneven.model, loop.model)


def test_a_resumed_run_keeps_the_same_ones(tmp_path: Path) -> None:
    train(tmp_path / "whole", Regression(), SETTINGS)
    for stop in (4, 23):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", Regression(stop_at=stop), SETTINGS)
    assert checkpoint.snapshot_updates(tmp_path / "parts") == [10, 20]
    # As a process leaves it that was killed after its newest checkpoint.
    (tmp_path / "parts" / "snapshots" / "30.safetensors").write_bytes(b"of another course")
    train(tmp_path / "parts", Regression(), SETTINGS)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_none(tmp_path: Path) -> None:
    """With a time limit it planned another number of training steps."""
    (tmp_path / "parts" / "snapshots").mkdir(parents=True)
    (tmp_path / "parts" / "snapshots" / "7.safetensors").write_bytes(b"of another course")
    train(tmp_path / "parts", Regression(), SETTINGS)
    assert checkpoint.snapshot_updates(tmp_path / "parts") == [10, 20, 30, 40]


def test_none_are_kept_unasked_and_more_than_updates_are_one_each(tmp_path: Path) -> None:
    train(tmp_path / "none", Regression(), replace(SETTINGS, snapshots=0))
    assert not (tmp_path / "none" / "snapshots").exists()
    train(tmp_path / "many", Regression(), replace(SETTINGS, snapshots=99, updates=5))
    assert checkpoint.snapshot_updates(tmp_path / "many") == [1, 2, 3, 4, 5]


def test_a_time_limit_ends_with_a_snapshot(tmp_path: Path) -> None:
    settings = replace(SETTINGS, updates=10_000_000, time_limit=0.5 / 60)
    _, loop = train(tmp_path / "run", Regression(), settings)
    assert checkpoint.snapshot_updates(tmp_path / "run")[-1] == loop.state.update


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    _, loop = train(tmp_path / "run", Regression(), SETTINGS)
    (tmp_path / "run" / "snapshots" / "40.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        checkpoint.load_snapshot(loop.model, tmp_path / "run", 40)
