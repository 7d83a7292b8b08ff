"""Event files, read back by TensorBoard's own accumulator."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lwdctl.tracking.replay import replay
from lwdctl.tracking.tracking import Tracking
from lwdctl.training.loop import MetricLog

sys.path.insert(0, str(Path(__file__).parent))
from toy_runs import RESULTS, ROWS, png

sys.path.pop(0)

TENSORBOARD = Tracking.of("tensorboard")


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    found.Reload()
    return found


def curves(found):
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def expected(rows=ROWS, before=""):
    names = {key: None for row in rows for key in row if key != "update"}
    return {
        before + name: [
            (row["update"], float(np.float32(row[name]))) for row in rows if name in row
        ]
        for name in names
    }


def text(found, tag):
    (event,) = found.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()


@pytest.fixture
def folder(runs):
    """Return the folder of the only run."""

    def only():
        (path,) = (runs.workspace.root / "tensorboard").iterdir()
        return path

    return only


def test_a_training_live_and_replayed(runs, folder):
    artifact = runs.train(TENSORBOARD)
    live = read(folder())
    assert curves(live) == expected()
    assert "| seed | 3 |" in text(live, "config")
    replay(str(artifact.path), runs.workspace, TENSORBOARD, runs.progress)
    assert len(list(folder().iterdir())) == 1
    assert curves(read(folder())) == expected()
    assert runs.progress.warnings == []


def test_a_resumed_training_goes_on_in_its_folder(runs, folder):
    runs.interrupt(TENSORBOARD)
    assert curves(read(folder())) == expected(ROWS[:2])
    runs.train(TENSORBOARD, resume=True)
    assert curves(read(folder())) == expected()


def test_several_models(runs, folder):
    runs.train_parts()
    replay("baseline/toy", runs.workspace, TENSORBOARD, runs.progress)
    found = {**expected(before="vae/"), **expected(before="diffusion/")}
    assert curves(read(folder())) == found


def test_an_evaluation(runs, folder):
    runs.evaluate(TENSORBOARD)
    found = read(folder())
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


def test_every_training_writes_events_into_its_artifact(tmp_path):
    with MetricLog(tmp_path) as log:
        for row in ROWS:
            log.write(row["update"], {k: v for k, v in row.items() if k != "update"}, 120)
    with MetricLog(tmp_path, done=100) as log:  # resumed from a checkpoint before the last row
        log.write(110, {"kl": 4.0, "seconds": 1.0}, 120)
    found = curves(read(tmp_path / "tensorboard"))
    assert found["reconstruction"] == expected()["reconstruction"][:2]
    assert found["kl"] == [*expected()["kl"][:2], (110, 4.0)]
