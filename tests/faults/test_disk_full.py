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
from chain import CHAIN, Counts, artifacts

sys.path.pop(0)

WRITERS = {
    "report": "report --output written.html",
    "compare": "compare --output written",
    "export policy": "export policy --output written",
    "export minari": "export minari --id a/b/c-v0 --output written",
    "export lerobot": "export lerobot reach written",
}
"""Commands that write files outside of the workspace."""


def limits(count: int) -> list[int]:
    """Return sizes of a file from 0 to beyond most of what a stage writes, in bytes."""
    return [0, *(int(200 * 2.6**step) for step in range(count - 1))]


def check_error(done, place: Path) -> None:
    """Check that a command ended with one line that names what could not be written."""
    errors = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert str(place) in errors[0] or "cannot write" in errors[0], errors


def fill(before, tmp_path: Path, name: str, count: int) -> None:
    line = CHAIN[name].split()
    with Counts(f"write limits, {name}") as counts:
        for limit in limits(count):
            with counts.injection(f"{name}, at most {limit} bytes"):
                workspace = before(name, tmp_path / f"runs{limit}")
                known = artifacts(workspace)
                done = before.run(workspace, [*line, "--json"], limit)
                if done.returncode == 0:
                    if name != "run":
                        assert len(artifacts(workspace) - known) == 1, done.stderr
                    assert json.loads(done.stdout)["artifact"]
                else:
                    counts.add("met the limit")
                    check_error(done, workspace)
                    if name != "run":
                        assert artifacts(workspace) == known
                verified = before.run(workspace, ["verify", "-q"])
                assert verified.returncode == 0 or not artifacts(workspace), verified.stderr
                again = before.run(workspace, line)
                assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_collect_on_a_full_disk(before, tmp_path):
    fill(before, tmp_path, "collect", 1)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", list(CHAIN))
def test_every_stage_at_ten_sizes(forked_before, tmp_path, name):
    fill(forked_before, tmp_path, name, 10)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", list(WRITERS))
def test_every_other_writer_at_ten_sizes(forked_before, tmp_path, monkeypatch, name):
    """What is written outside of the workspace appears as a whole or not at all."""
    before = forked_before
    workspace = before("analyze latents", tmp_path / "runs")
    with Counts(f"write limits, {name}") as counts:
        for limit in limits(10):
            with counts.injection(f"{name}, at most {limit} bytes"):
                target = tmp_path / f"written{limit}"
                line = WRITERS[name].replace("written", str(target)).split()
                done = before.run(workspace, line, limit)
                if done.returncode != 0:
                    counts.add("met the limit")
                    check_error(done, tmp_path)
                    left = list(tmp_path.rglob(f"*written{limit}*"))
                    assert not [path for path in left if path.is_file()], left
                again = before.run(workspace, line)
                assert again.returncode == 0 or done.returncode == 0, again.stderr
