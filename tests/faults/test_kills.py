"""Stages killed at any moment: no bad artifact, nothing lost, and the command again completes.

`LWDCTL_KILLS` sets how many kills the slow test makes over all stages (100).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chain import CHAIN, Before, artifacts, run, start

sys.path.pop(0)

KILLS = int(os.environ.get("LWDCTL_KILLS", "100"))
MOMENTS = (0.15, 0.5, 0.8, 0.97)
"""Fractions of the time that a stage takes undisturbed, at which it gets a signal."""
WEIGHTS = ("ema.safetensors", "weights.safetensors")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return Before(tmp_path_factory.mktemp("chain"))


def weights(workspace: Path) -> dict[str, bytes]:
    """Return the newest weights of every model."""
    return {
        f"{path.parts[-4]}/{path.name}": path.read_bytes()
        for path in sorted(workspace.glob("*/*/v*/*.safetensors"))
        if path.name in WEIGHTS
    }


def undisturbed(before, name: str, folder: Path) -> tuple[float, dict[str, bytes]]:
    """Return the seconds that a stage takes, and the weights that it makes."""
    workspace = before(name, folder)
    started = time.monotonic()
    done = run(workspace, CHAIN[name].split())
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started, weights(workspace)


def disturb(before, name: str, folder: Path, after: float, number: int) -> int:
    """Send a signal to a stage after some seconds; return its exit status."""
    workspace = before(name, folder)
    known = artifacts(workspace)
    process = start(workspace, CHAIN[name].split())
    time.sleep(after)
    process.send_signal(number)
    _, errors = process.communicate()
    assert "Traceback" not in errors, errors
    made = artifacts(workspace) - known
    assert len(made) == (process.returncode == 0) or number == signal.SIGKILL
    for command in (["list", "-q"], ["verify", "-q"]):
        checked = run(workspace, command)
        assert checked.returncode == 0, (name, after, checked.stderr)
        assert "damaged" not in checked.stdout
    return process.returncode


def complete(name: str, workspace: Path, expected: dict[str, bytes]) -> None:
    """Run the command again, with --resume where a checkpoint waits; compare the weights."""
    resumable = "resumable" in run(workspace, ["list", "-q"]).stdout
    again = run(workspace, [*CHAIN[name].split(), *(["--resume"] if resumable else [])])
    assert again.returncode == 0, again.stderr
    assert weights(workspace) == expected
    assert run(workspace, ["gc", "--delete"]).returncode == 0
    assert not list(workspace.glob("*/*/.[a-z]*"))


def test_a_killed_ingest_completes_when_it_is_run_again(before, tmp_path):
    seconds, made = undisturbed(before, "ingest", tmp_path / "whole")
    disturb(before, "ingest", tmp_path / "killed", 0.9 * seconds, signal.SIGKILL)
    complete("ingest", tmp_path / "killed", made)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kills_at_random_moments_lose_nothing(before, tmp_path, capsys):
    draw = random.Random(0)
    whole = {name: undisturbed(before, name, tmp_path / f"whole-{name}") for name in CHAIN}
    killed = 0
    for number in range(KILLS):
        name = list(CHAIN)[number % len(CHAIN)]
        seconds, made = whole[name]
        folder = tmp_path / f"killed{number}"
        code = disturb(before, name, folder, draw.uniform(0, 1.1) * seconds, signal.SIGKILL)
        killed += code == -signal.SIGKILL
        complete(name, folder, made)
    with capsys.disabled():
        sys.stdout.write(f"\nkills: {KILLS} injected, {killed} met a running command, 0 lost\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(CHAIN))
def test_signals_end_with_their_status_and_the_command_again_completes(before, tmp_path, name):
    seconds, made = undisturbed(before, name, tmp_path / "whole")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for moment in MOMENTS:
            folder = tmp_path / f"{number}-{moment}"
            assert disturb(before, name, folder, moment * seconds, number) in (0, code)
            complete(name, folder, made)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [2, 5])
def test_commands_at_once_end_distinct(before, tmp_path, count):
    workspace = before("train-vae", tmp_path / "runs")
    running = [start(workspace, CHAIN["train-vae"].split()) for _ in range(count)]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * count, errors
    assert len(list(workspace.glob("vae/*/v*/manifest.json"))) == count
    assert len({path.read_bytes() for path in workspace.glob("vae/*/v*/ema.safetensors")}) == 1
    assert run(workspace, ["verify", "-q"]).returncode == 0
