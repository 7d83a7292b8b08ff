"""Fixtures of the evaluation grid's tests."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.stages import evaluate

# Tests beside this file import it too; it is found through this first import.
sys.path.insert(0, str(Path(__file__).parent))
from trained_grid import TINY, Interrupted, do, train_lwd, write_snippets

sys.path.pop(0)


def train_grid(root: Path) -> None:
    """Train LWD for two snippet lengths and two seeds, DP for two lengths, and MLP."""
    workspace = Workspace(root)
    write_snippets(workspace)
    for length, seed in ((8, 0), (16, 0), (16, 1)):
        train_lwd(workspace, length, seed)
    for length in (8, 16):
        values = {**TINY, "method": "dp", "snippet_length": length, "unet_size": "xs"}
        do("train-baseline", workspace, values, name=f"dp{length}")
    do("train-baseline", workspace, {**TINY, "method": "mlp", "policy_width": 8}, name="mlp")


@pytest.fixture(scope="session")
def trained(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Workspace:
    return Workspace(made_once("grid", train_grid))


@pytest.fixture
def workspace(trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A private copy, evaluated by software without local changes."""
    shutil.copytree(trained.root, tmp_path / "copy")
    clean = {**evaluate.software(), "git": {"commit": "abc", "dirty": False}}
    monkeypatch.setattr(evaluate, "software", lambda: clean)
    return Workspace(tmp_path / "copy")


@pytest.fixture
def rolled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the conditions that were really run."""
    names: list[str] = []
    roll = evaluate._roll

    def counting(arm: Any, *words: Any) -> Any:
        names.append(arm.name)
        return roll(arm, *words)

    monkeypatch.setattr(evaluate, "_roll", counting)
    return names


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    """Return a context in which an evaluation is interrupted before the conditions of a test."""

    @contextmanager
    def interrupted(**values: str) -> Iterator[None]:
        roll = evaluate._roll

        def failing(condition: Any, *rest: Any) -> Any:
            if all(getattr(condition, name) == value for name, value in values.items()):
                raise KeyboardInterrupt
            return roll(condition, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "_roll", failing)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted
