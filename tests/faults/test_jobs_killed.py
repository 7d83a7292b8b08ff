"""`lwdctl run --jobs` killed at any moment: nothing goes on, nothing is lost, the same is made.

`LWDCTL_KILLS` sets how many kills the long test makes (20).
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
from chain import Counts
from chain import run as run_command

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from side_by_side import (
    add_grid,
    is_alive,
    made,
    run,
    session_of,
    start,
    wait_for,
    write_buffer,
    write_recipe,
)

sys.path.pop(0)

KILLS = int(os.environ.get("LWDCTL_KILLS", "20"))
SIGNALS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, 0), signal.SIGINT: (130, 0)}

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The recipe, the seconds that it takes undisturbed, and what it makes."""
    folder = tmp_path_factory.mktemp("whole")
    source = folder / "pusht.zarr"
    write_buffer(source)
    recipe = write_recipe(folder, str(source), updates=200)
    add_grid(recipe, episodes=2)  # two processes share it
    started = time.monotonic()
    done = run(recipe, folder / "runs", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    return recipe, time.monotonic() - started, made(folder / "runs")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_nothing_is_lost_at_random_moments(whole, tmp_path, number):
    recipe, seconds, expected = whole
    draw = random.Random(int(number))
    with Counts(f"run --jobs 2, {number.name}") as counts:
        for turn in range(KILLS):
            after, workspace = draw.uniform(0.1, 1.0) * seconds, tmp_path / str(turn)
            with counts.injection(f"after {after:.2f} s, {workspace}"):
                process = start(recipe, workspace, "--jobs", "2")
                time.sleep(after)
                below = session_of(process.pid)
                process.send_signal(number)
                _, errors = process.communicate()
                assert process.returncode in (*SIGNALS[number], 0), errors
                assert "Traceback" not in errors, errors
                counts.add("met a running command", process.returncode != 0)
                wait_for(lambda below=below: not [pid for pid in below if is_alive(pid)], 30)
                if workspace.exists():
                    assert run_command(workspace, ["verify", "-q"]).returncode in (0, 1)
                    assert "damaged" not in run_command(workspace, ["list", "-q"]).stdout
                again = run(recipe, workspace, "--jobs", "2")
                assert again.returncode == 0, again.stderr
                assert made(workspace) == expected
                assert run_command(workspace, ["gc", "--delete"]).returncode == 0
                assert not list(workspace.glob("*/*/.partial-*"))
