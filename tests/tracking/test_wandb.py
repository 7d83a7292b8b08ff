"""Runs of wandb in its offline mode, read back from its own records."""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path

import pytest

from lwdctl.tracking.history import METRICS
from lwdctl.tracking.replay import replay
from lwdctl.tracking.tracking import Tracking

sys.path.insert(0, str(Path(__file__).parent))
from toy_runs import CONFIG, RESULTS, ROWS

sys.path.pop(0)

pytest.importorskip("wandb", reason="the extra wandb is not installed")

BLOCK = 2**15


def records(path):
    """Yield wandb's records of an offline run: protocol buffers in a log of LevelDB's."""
    from wandb.proto import wandb_internal_pb2

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        if place + 7 + size > len(content):
            return  # it is being written
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found = wandb_internal_pb2.Record()
            found.ParseFromString(record)
            record = b""
            yield found


def all_records(path):
    """Return the records when the last one is there: wandb's own process writes them."""
    deadline = time.monotonic() + 20
    while True:
        found = list(records(path))
        if any(item.HasField("exit") for item in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class Offline:
    """The only offline run below a folder."""

    def __init__(self, root):
        (self.folder,) = root.glob("wandb/offline-run-*")
        (path,) = self.folder.glob("*.wandb")
        found = all_records(path)
        self.run = next(item.run for item in found if item.HasField("run"))
        self.config = values(self.run.config.update)
        rows = [values(item.history.item) for item in found if item.HasField("history")]
        self.rows = {row["_step"]: self._own(row) for row in rows}
        assert len(self.rows) == len(rows)
        self.summary = {}
        for item in found:
            self.summary |= values(item.summary.update)
        self.exit_code = next(item.exit.exit_code for item in found if item.HasField("exit"))

    @staticmethod
    def _own(row):
        return {key: value for key, value in row.items() if not key.startswith("_")}

    def table(self):
        (path,) = self.folder.rglob("*.table.json")
        return json.loads(path.read_text())


def logged(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_training_live_and_replayed(runs):
    artifact = runs.train(Tracking.of("wandb"))
    live = Offline(runs.workspace.root)
    assert list(live.rows.values()) == logged(artifact.path / METRICS) == ROWS
    assert list(live.rows) == [50, 100, 120]
    assert {key: live.config[key] for key in CONFIG} == CONFIG
    assert live.config["inputs"] == ["snippets/toy:v1"]
    assert (live.run.project, live.run.display_name) == ("lab-runs", "vae/toy")
    assert list(live.run.tags) == ["train-vae", "lwd", "pusht"]
    assert live.summary["artifact"] == "vae/toy:v1"
    assert live.summary["updates"] == 120
    assert live.exit_code == 0
    (said,) = runs.progress.messages
    assert said.endswith(f"wandb sync {live.folder}")

    sent = replay(live.run.run_id, runs.workspace, Tracking.of("wandb"), runs.progress)
    found = Offline(runs.workspace.root)
    assert found.folder != live.folder
    assert sent.reference == artifact.reference
    assert sent.id == found.run.run_id == live.run.run_id
    assert (found.rows, found.config) == (live.rows, live.config)
    assert list(found.run.tags) == list(live.run.tags)


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_its_run(runs):
    runs.interrupt(Tracking.of("wandb"), [*ROWS[:2], {**ROWS[2], "update": 110, "kl": -1.0}])
    before = Offline(runs.workspace.root)
    assert (list(before.rows), before.exit_code) == ([50, 100, 110], 1)
    runs.train(Tracking.of("wandb"), resume=True)
    found = Offline(runs.workspace.root)
    assert found.run.run_id == before.run.run_id
    assert list(found.rows.values()) == ROWS
    assert found.exit_code == 0


@pytest.mark.long
def test_an_interrupted_training_is_sent_later(runs):
    path = runs.interrupt()
    sent = replay("vae/toy", runs.workspace, Tracking.of("wandb"), runs.progress)
    found = Offline(runs.workspace.root)
    assert (sent.state, sent.reference) == ("interrupted", str(path))
    assert sent.id == found.run.run_id
    assert list(found.rows.values()) == ROWS[:2]
    assert found.exit_code == 1


@pytest.mark.slow
def test_an_evaluation_with_rows_videos_and_pictures(runs):
    artifact = runs.evaluate(Tracking.of("wandb", "grid"))
    found = Offline(runs.workspace.root)
    assert list(found.run.tags) == ["eval", "lwd", "dp", "pusht"]
    assert found.run.project == "grid"
    table = found.table()
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    for row, result in zip(rows, RESULTS, strict=True):
        plain = {key: value for key, value in result.items() if not isinstance(value, dict)}
        assert {key: row[key] for key in plain} == plain
        assert row["metrics.max_overlap"] == result["metrics"]["max_overlap"]
        assert row["cost.flops_per_step"] == result["cost"]["flops_per_step"]
    assert [row["by_label.expert.episodes"] for row in rows] == [None, 4]
    stored = {path.suffix: path.read_bytes() for path in found.folder.rglob("media/**/*.mp4")}
    video = artifact.path / "videos/lwd-sampled/episode-000.mp4"
    assert stored == {".mp4": video.read_bytes()}
    (row,) = found.rows.values()
    shown = {key.partition("/_type")[0] for key in row if key.endswith("/_type")}
    assert shown == {
        "results", "figure", "videos/lwd-sampled/episode-000", "stills/lwd-sampled/episode-000",
    }  # fmt: skip


@pytest.mark.long
def test_models_that_are_trained_one_after_the_other_have_steps_of_their_own(runs):
    runs.train_parts(Tracking.of("wandb"))
    live = Offline(runs.workspace.root)
    assert list(live.run.tags) == ["train-baseline", "ldp", "pusht"]
    assert list(live.rows) == [50, 100, 120, 170, 220, 240]
    expected = [
        {f"{part}/{key}": value for key, value in row.items()}
        for part in ("vae", "diffusion")
        for row in ROWS
    ]
    assert list(live.rows.values()) == expected
