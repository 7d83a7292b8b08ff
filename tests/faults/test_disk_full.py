"""Every stage on a disk that fills up: one error line, the path, nothing published.

The limit on the size of a file stands for the disk: the system answers a write beyond it with an
error in the same way, and needs no rights for it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chain import CHAIN, Before, artifacts, run

sys.path.pop(0)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return Before(tmp_path_factory.mktemp("chain"))


def limits(count: int) -> list[int]:
    """Return sizes of a file from 0 to beyond most of what a stage writes, in bytes."""
    return [0, *(int(200 * 2.6**step) for step in range(count - 1))]


def fill(before, tmp_path: Path, name: str, count: int) -> None:
    line = CHAIN[name].split()
    for limit in limits(count):
        workspace = before(name, tmp_path / f"runs{limit}")
        known = artifacts(workspace)
        done = run(workspace, [*line, "--json"], limit)
        lines = done.stderr.splitlines()
        errors = [text for text in lines if text.startswith("error:")]
        if done.returncode == 0:
            made = artifacts(workspace) - known
            assert len(made) == 1, (limit, done.stderr)
            assert json.loads(done.stdout)["artifact"]
        else:
            assert done.returncode == 1, (limit, done.returncode, done.stderr)
            assert len(errors) == 1, (limit, done.stderr)
            assert str(workspace) in errors[0] or "cannot write" in errors[0], errors
            assert artifacts(workspace) == known
        verified = run(workspace, ["verify", "-q"])
        assert verified.returncode == 0, (limit, verified.stderr)
        again = run(workspace, line)
        assert again.returncode == 0, (limit, again.stderr)


def test_collect_on_a_full_disk(before, tmp_path):
    fill(before, tmp_path, "collect", 1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", list(CHAIN))
def test_every_stage_at_ten_sizes(before, tmp_path, name):
    fill(before, tmp_path, name, 10)
