"""Stages killed at any moment: no bad artifact, nothing lost, and the command again completes.

The campaigns fork their commands from a process that has the modules loaded, so that most moments
lie in the work and not in imports, which `tests/cli/test_signals.py` disturbs.

`LWDCTL_KILLS` sets how many kills the long test makes (100), `LWDCTL_KILLED` of which stages (all,
and a recipe).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chain import CHAIN, Counts, artifacts

sys.path.pop(0)

from lwdctl.stages import STAGES

KILLS = int(os.environ.get("LWDCTL_KILLS", "100"))
KILLED = os.environ.get("LWDCTL_KILLED", ",".join(CHAIN)).split(",")
MOMENTS = (0.15, 0.5, 0.8, 0.97)
"""Fractions of the time that a stage takes undisturbed, at which it gets a signal."""
WHOLE = ("ema.safetensors", "weights.safetensors", "demonstrations.hdf5")
"""Files that are equal bit for bit, as are the chunks of stores."""


def test_every_stage_is_disturbed():
    assert list(CHAIN) == [*STAGES, "run"]


def made_in(workspace: Path) -> dict[str, object]:
    """Return what the newest version of every artifact holds, but for times."""
    found: dict[str, object] = {}
    for version in sorted(workspace.glob("*/*/v*")):
        kind = str(version.parent.relative_to(workspace))
        for path in filter(Path.is_file, sorted(version.rglob("*"))):
            name = f"{kind}/{path.relative_to(version)}"
            if path.name in WHOLE or path.name.startswith("c."):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.parent.name == "episodes" and path.suffix == ".json":
                body = json.loads(path.read_text())
                found[name] = [{**row, "seconds": 0} for row in body["results"]]
    return found


def undisturbed(before, name: str, folder: Path) -> tuple[float, dict[str, object]]:
    """Return the seconds that a stage takes, and what it makes."""
    workspace = before(name, folder)
    started = time.monotonic()
    done = before.run(workspace, CHAIN[name].split())
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started, made_in(workspace)


def disturb(before, name: str, folder: Path, after: float, number: int) -> int:
    """Send a signal to a stage after some seconds; return its exit status."""
    workspace = before(name, folder)
    known = artifacts(workspace)
    done = before.run(workspace, CHAIN[name].split(), number=number, after=after)
    assert "Traceback" not in done.stderr, done.stderr
    if name != "run":  # which publishes one after another
        made = artifacts(workspace) - known
        assert len(made) == (done.returncode == 0) or number == signal.SIGKILL
    for command in (["list", "-q"], ["verify", "-q"]):
        checked = before.run(workspace, command)
        if artifacts(workspace):
            assert checked.returncode == 0, (name, after, checked.stderr)
        assert "damaged" not in checked.stdout
    return done.returncode


def complete(before, name: str, workspace: Path, expected: dict[str, object]) -> bool:
    """Run the command again, with --resume where a checkpoint waits; compare what it makes."""
    resumable = "resumable" in before.run(workspace, ["list", "-q"]).stdout and name != "run"
    again = before.run(workspace, [*CHAIN[name].split(), *(["--resume"] if resumable else [])])
    assert again.returncode == 0, again.stderr
    assert made_in(workspace) == expected
    assert before.run(workspace, ["gc", "--delete"]).returncode == 0
    assert not list(workspace.glob("*/*/.[a-z]*"))
    return resumable


@pytest.mark.slow
def test_a_killed_ingest_completes_when_it_is_run_again(before, tmp_path):
    seconds, made = undisturbed(before, "ingest", tmp_path / "whole")
    disturb(before, "ingest", tmp_path / "killed", 0.9 * seconds, signal.SIGKILL)
    complete(before, "ingest", tmp_path / "killed", made)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_kills_at_random_moments_lose_nothing(forked_before, tmp_path):
    draw, before = random.Random(0), forked_before
    whole = {name: undisturbed(before, name, tmp_path / f"whole-{name}") for name in KILLED}
    with Counts(f"kills over {len(KILLED)} stages") as counts:
        for number in range(KILLS):
            name = KILLED[number % len(KILLED)]
            seconds, made = whole[name]
            after = draw.uniform(0, 1.1) * seconds
            folder = tmp_path / f"killed{number}"
            with counts.injection(f"{name} after {after:.2f} s, {folder}"):
                code = disturb(before, name, folder, after, signal.SIGKILL)
                counts.add("met a running command", code == -signal.SIGKILL)
                counts.add("resumed", complete(before, name, folder, made))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(CHAIN))
def test_signals_end_with_their_status_and_the_command_again_completes(
    forked_before, tmp_path, name
):
    before = forked_before
    seconds, made = undisturbed(before, name, tmp_path / "whole")
    with Counts(f"SIGINT and SIGTERM, {name}") as counts:
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            for moment in MOMENTS:
                folder = tmp_path / f"{number}-{moment}"
                with counts.injection(f"{name}, {number} at {moment}, {folder}"):
                    code = disturb(before, name, folder, moment * seconds, number)
                    assert code in (0, status)
                    counts.add("met a running command", code == status)
                    counts.add("resumed", complete(before, name, folder, made))
