"""Event files, read back by TensorBoard's own accumulator."""

from __future__ import annotations

import sys
from pathlib import Path

from tensorboard.summary.writer import event_file_writer

from lwdctl.tracking.replay import replay
from lwdctl.tracking.tracking import Tracking
from lwdctl.training.loop import MetricLog

sys.path.insert(0, str(Path(__file__).parent))
from event_files import curves, expected, only_run, read, text
from toy_runs import RESULTS, ROWS, png

sys.path.pop(0)

TENSORBOARD = Tracking.of("tensorboard")


def test_a_training_live_and_replayed(runs):
    artifact = runs.train(TENSORBOARD)
    live = read(only_run(runs.workspace.root))
    assert curves(live) == expected(ROWS)
    assert "| seed | 3 |" in text(live, "config")
    replay(str(artifact.path), runs.workspace, TENSORBOARD, runs.progress)
    assert len(list(only_run(runs.workspace.root).iterdir())) == 1
    assert curves(read(only_run(runs.workspace.root))) == expected(ROWS)
    assert runs.progress.warnings == []


def test_a_resumed_training_goes_on_in_its_folder(runs):
    runs.interrupt(TENSORBOARD)
    assert curves(read(only_run(runs.workspace.root))) == expected(ROWS[:2])
    runs.train(TENSORBOARD, resume=True)
    assert curves(read(only_run(runs.workspace.root))) == expected(ROWS)


def test_several_models(runs):
    runs.train_parts()
    replay("baseline/toy", runs.workspace, TENSORBOARD, runs.progress)
    found = {**expected(ROWS, before="vae/"), **expected(ROWS, before="diffusion/")}
    assert curves(read(only_run(runs.workspace.root))) == found


def test_an_evaluation(runs):
    runs.evaluate(TENSORBOARD)
    found = read(only_run(runs.workspace.root))
    head, _, *rows = text(found, "results").splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    for line, result in zip(rows, RESULTS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        row = dict(zip(columns, cells, strict=True))
        assert row["task"] == result["task"]
        assert float(row["metrics.max_overlap"]) == result["metrics"]["max_overlap"]
    assert found.Tags()["images"] == ["figure", "stills/lwd-sampled/episode-000"]
    (picture,) = found.Images("figure")
    assert (picture.encoded_image_string, picture.width, picture.height) == (png(8, 5), 8, 5)


def test_every_training_writes_events_into_its_artifact(tmp_path, monkeypatch):
    # TensorBoard reads files by name, which ends in a number that the process counts up: within
    # one second the tenth would come before the ninth. A resumed training is another process.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    with MetricLog(tmp_path) as log:
        for row in ROWS:
            log.write(row["update"], {k: v for k, v in row.items() if k != "update"}, 120)
    with MetricLog(tmp_path, done=100) as log:  # resumed from a checkpoint before the last row
        log.write(110, {"kl": 4.0, "seconds": 1.0}, 120)
    found = curves(read(tmp_path / "tensorboard"))
    assert found["reconstruction"] == expected(ROWS)["reconstruction"][:2]
    assert found["kl"] == [*expected(ROWS)["kl"][:2], (110, 4.0)]
