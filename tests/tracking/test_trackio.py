"""Runs of Trackio, read back from its own storage.

Trackio asks for an earlier pillow than constraints.txt holds. Where it is not installed here, the
tests use the interpreter in LWDCTL_TRACKIO_PYTHON, which has it beside the dependencies of lwdctl:
`python -m venv --system-site-packages DIR`, `DIR/bin/pip install trackio`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from toy_runs import CONFIG, RESULTS, ROWS

sys.path.pop(0)

PYTHON = os.environ.get("LWDCTL_TRACKIO_PYTHON", "")
if importlib.util.find_spec("trackio"):
    PYTHON = sys.executable
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="trackio is not installed, and LWDCTL_TRACKIO_PYTHON names no interpreter with it",
)

HEAD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toy_runs import ROWS, Runs
from lwdctl.tracking.replay import replay
from lwdctl.tracking.tracking import Tracking
import trackio
from trackio.sqlite_storage import SQLiteStorage
runs, tracking = Runs(Path("lab-runs")), Tracking.of("trackio")
"""
TAIL = """
print(json.dumps({
    "runs": [
        {"name": run.name, "config": run.config, "logs": [
            {key: value for key, value in row.items() if key != "timestamp"}
            for row in SQLiteStorage.get_logs("lab-runs", run=run.name)
        ]}
        for run in trackio.Api().runs("lab-runs")
    ],
    "messages": runs.progress.messages,
}))
"""
REPLAY = "replay('vae/toy', runs.workspace, tracking, runs.progress)"


@pytest.fixture
def tracked(tmp_path):
    """Return a function that runs lines with toy runs and returns what Trackio has then."""

    def run(*lines):
        script = "\n".join([HEAD, *lines, TAIL])
        done = subprocess.run(
            [PYTHON, "-c", script, str(Path(__file__).parent)],
            env={
                **os.environ,
                "TRACKIO_DIR": str(tmp_path / "trackio"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "HF_HUB_OFFLINE": "1",
            },
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def points(run):
    return [row for row in run["logs"] if "update" in row]


def stepped(rows):
    return [{**row, "step": row["update"]} for row in rows]


def test_a_training_live_and_replayed(tracked):
    found = tracked("runs.train(tracking)", REPLAY)
    (run,) = found["runs"]
    assert points(run) == stepped(ROWS)
    (last,) = [row for row in run["logs"] if "update" not in row]
    summary = {item["name"]: item["value"] for item in last["summary"]["_value"]}
    assert (summary["artifact"], summary["updates"]) == ("vae/toy:v1", 120)
    assert {key: run["config"][key] for key in CONFIG} == CONFIG
    assert run["config"]["tags"] == ["train-vae", "lwd", "pusht"]
    assert run["name"].startswith("vae/toy ")
    assert [line for line in found["messages"] if not line.startswith("sending")] == []


def test_a_replay_is_what_is_seen_live(tracked):
    live = tracked("runs.train(tracking)")["runs"][0]
    both = tracked(
        "runs = Runs(Path('other/lab-runs'))",
        "runs.train()",
        REPLAY,
    )["runs"]
    (replayed,) = (run for run in both if run["name"] != live["name"])
    assert replayed["logs"] == live["logs"]


def test_a_resumed_training_goes_on_in_its_run(tracked):
    (run,) = tracked("runs.interrupt(tracking)", "runs.train(tracking, resume=True)")["runs"]
    assert points(run) == stepped(ROWS)


def test_an_evaluation(tracked, tmp_path):
    (run,) = tracked("runs.evaluate(tracking)")["runs"]
    (row,) = run["logs"]
    for stored, result in zip(row["results"]["_value"], RESULTS, strict=True):
        assert stored["horizon"] == result["horizon"]
        assert stored["success"] == result["success"]
        assert stored["metrics.max_overlap"] == result["metrics"]["max_overlap"]
    media = tmp_path / "trackio" / "media"
    video = media / row["videos/lwd-sampled/episode-000"]["file_path"]
    (made,) = tmp_path.glob("lab-runs/evaluation/*/*/videos/*/*.mp4")
    assert video.read_bytes() == made.read_bytes()
    assert {"figure", "stills/lwd-sampled/episode-000"} <= set(row)


def test_a_storage_that_cannot_be_written_is_a_failure(tracked):
    found = tracked(
        "(tracker,) = (Path(path) for path in [trackio.utils.TRACKIO_DIR])",
        "tracker.mkdir(exist_ok=True)",
        "(tracker / 'lab-runs.db').mkdir()",
        "runs.train(tracking)",
        "(tracker / 'lab-runs.db').rmdir()",
        REPLAY,
    )
    (warning,) = [line for line in found["messages"] if line.startswith("warning: trackio")]
    assert "lwdctl track" in warning
    (run,) = found["runs"]
    assert points(run) == stepped(ROWS)
