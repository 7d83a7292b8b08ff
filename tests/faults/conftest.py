"""The workspaces that the stages find, made once for a module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chain import COUNTED, Before, Forked

sys.path.pop(0)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Return what makes the workspace before a stage; `run` starts a new process."""
    return Before(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def forked_before(tmp_path_factory):
    """Return the same, where `run` forks a process that has the modules loaded."""
    with Forked() as run:
        yield Before(tmp_path_factory.mktemp("chain"), run)


def pytest_terminal_summary(terminalreporter):
    """Print what the fault campaigns counted."""
    if COUNTED:
        terminalreporter.section("faults")
        for line in COUNTED:
            terminalreporter.line(line)
