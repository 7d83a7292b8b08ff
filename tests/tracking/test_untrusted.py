"""Artifacts of unknown origin: their names are texts, their links lead nowhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from lwdctl.artifacts.origin import ORIGIN_VERSION, Origin
from lwdctl.core.errors import ArtifactError, LwdctlError
from lwdctl.tracking.history import log_files, outcome_of, points
from lwdctl.tracking.replay import replay
from lwdctl.tracking.run import run_of_artifact, tidy
from lwdctl.tracking.tracking import Tracking
from lwdctl.tracking.worker import reason

sys.path.insert(0, str(Path(__file__).parent))
from event_files import curves, only_run, read
from toy_runs import ROWS, write_log

sys.path.pop(0)

ESCAPE = "\x1b]0;gone\x07"
TENSORBOARD = Tracking.of("tensorboard")


def test_names_and_texts_are_escaped_and_cut(runs):
    config = {"_wandb": {"x": 1}, f"a{ESCAPE}": "b" * 9999, "c": [{"d\n": ESCAPE}], "method": "m\r"}
    rows = [{"update": 1, f"kl{ESCAPE}": 1.0, "_step": 7.0, "n" * 999: 2.0}]
    artifact = runs.train(rows=rows, config=config)
    run = run_of_artifact(artifact, runs.workspace.root)
    shown = json.dumps([run.config, run.tags], ensure_ascii=False)
    assert "\\u" not in shown
    assert "_wandb" not in run.config
    assert len(shown) < 3000
    (point,) = points(artifact.path)
    assert all(name.isprintable() and len(name) <= 100 for name in point.values)
    assert "_step" not in point.values
    replay("vae/toy", runs.workspace, TENSORBOARD, runs.progress)
    assert len(curves(read(only_run(runs.workspace.root)))) == 2


def test_values_of_any_shape():
    assert tidy({"a": [1, {"_b": 2, "c": None}], "_d": 3}) == {"a": [1, {"c": None}]}


def test_a_pipe_is_not_waited_for(runs):
    path = runs.interrupt()
    (path / "metrics.jsonl").unlink()
    os.mkfifo(path / "metrics.jsonl")
    sent = replay(str(path), runs.workspace, TENSORBOARD, runs.progress)
    assert sent.state == "interrupted"


def test_links_are_not_followed(runs, tmp_path):
    write_log(tmp_path / "other", ROWS)
    artifact = runs.train()
    (artifact.path / "metrics.jsonl").unlink()
    (artifact.path / "metrics.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(ArtifactError, match="is a link"):
        replay("vae/toy", runs.workspace, TENSORBOARD, runs.progress)
    with pytest.raises(ArtifactError, match="is a link"):
        list(points(artifact.path))


def test_media_that_a_pulled_artifact_was_shared_without(runs):
    artifact = runs.evaluate()
    names = ("figure.png", "videos/lwd-sampled/episode-000.mp4")
    for name in names:
        (artifact.path / name).unlink()
    Origin(
        ORIGIN_VERSION, "https://hub", "me/x", "0" * 40, "2026-01-01T00:00:00+00:00",
        artifact.reference, artifact.digest, "2026-01-01T00:00:00+00:00", names,
    ).write(artifact.path)  # fmt: skip
    assert [item.kind for item in outcome_of(artifact.path).media] == ["picture"]


def test_media_that_are_links(runs, tmp_path):
    artifact = runs.evaluate()
    (artifact.path / "figure.png").unlink()
    (artifact.path / "figure.png").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="is a link"):
        outcome_of(artifact.path)


def test_a_log_that_is_none(runs):
    artifact = runs.train()
    (artifact.path / "metrics.jsonl").write_text('{"update": 1, "kl": "x"}\n')
    with pytest.raises(ArtifactError, match="line 1"):
        list(points(artifact.path))


def test_half_a_line_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "kl": 2.0}\n{"update": 2, "kl"')
    assert [point.values for point in points(tmp_path)] == [{"update": 1, "kl": 2.0}]


def test_logs_that_are_about_to_be_cut_wait(tmp_path):
    write_log(tmp_path / "metrics.jsonl", ROWS)
    known = {"metrics.jsonl": (tmp_path / "metrics.jsonl").stat().st_mtime_ns}
    assert list(points(tmp_path, known)) == []
    os.utime(tmp_path / "metrics.jsonl", ns=(1, 1))
    assert [point.step for point in points(tmp_path, known)] == [50, 100, 120]


def test_folders_of_a_publication_are_no_parts(tmp_path):
    for folder in (".publish", ".publish/vae", "vae", "checkpoints/vae"):
        write_log(tmp_path / folder / "metrics.jsonl", ROWS)
    assert list(log_files(tmp_path)) == ["vae"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key " + "a1" * 20, "ValueError: key ***"),
        ("see https://me:pass@host/x", "ValueError: see https:***host/x"),
        (ESCAPE, "ValueError: \\x1b]0;gone\\x07"),
        ("the key is tiny!pw", "ValueError: the key is ***"),
    ],
)
def test_reasons_hold_no_secrets(monkeypatch, text, shown):
    monkeypatch.setenv("MY_TRACKER_PASSWORD", "tiny!pw")
    assert reason(ValueError(text)) == shown


def test_reasons_of_our_own():
    assert reason(LwdctlError("it is full.")) == "it is full"
