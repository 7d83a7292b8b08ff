"""How many files lie between `lwdctl eval` and the simulator: a reader has to follow them."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from trained_grid import write_snippets

import lwdctl
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.envs.pusht import PushTSimulator

PACKAGE = Path(lwdctl.__file__).parent
MOST_FILES = 20


@pytest.mark.sim
def test_the_way_from_the_command_to_the_simulator_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snippets(Workspace(tmp_path))
    ways: set[tuple[str, ...]] = set()
    step = PushTSimulator.step

    def seen(simulator, action):
        files = [Path(frame.filename) for frame in traceback.extract_stack()]
        inside = [str(file.relative_to(PACKAGE)) for file in files if PACKAGE in file.parents]
        ways.add(tuple(dict.fromkeys(inside)))
        return step(simulator, action)

    monkeypatch.setattr(PushTSimulator, "step", seen)
    words = ["eval", "--policy", "random", "--horizon", "5", "--episodes", "1", "--workers", "0"]
    assert main([*words, "--max-steps", "5", "--workspace", str(tmp_path)]) == 0
    assert ways
    for way in ways:
        assert way[0] == "cli/main.py"
        assert "evaluation/rollout.py" in way
        assert len(way) <= MOST_FILES
