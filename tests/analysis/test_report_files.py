"""Pictures and logs of a report come from inside the artifact, as its manifest has them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image
from report_chain import analysis, chain

from lwdctl.analysis.report.content import (
    embed_png,
    recorded_episodes,
    show_analysis,
    training_curves,
)
from lwdctl.analysis.sections import RECORD
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.manifest import MANIFEST_NAME, Manifest, PayloadFile
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import LwdctlError


@pytest.fixture
def workspace(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    return Workspace(tmp_path / "runs")


@pytest.mark.slow
def test_a_damaged_log_is_not_drawn(workspace):
    _, model, _ = chain(workspace)
    assert training_curves(model).pictures
    log = model.path / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b"2.0", b"3.0"))
    shown = training_curves(model)
    assert not shown.pictures
    assert "is damaged" in shown.notes[0]


def test_linked_stills_are_not_shown(workspace, tmp_path):
    _, _, found = chain(workspace, videos=1)
    for still in found.path.glob("videos/*/*.png"):
        still.unlink()
        still.symlink_to(tmp_path / "secret.png")
    for video in found.path.glob("videos/*/*.mp4"):
        video.unlink()
        video.symlink_to(tmp_path / "secret.png")
    episodes, _ = recorded_episodes([found])
    assert episodes
    for episode in episodes:
        assert episode.stills is None
        assert episode.video == ""
        assert "link" in episode.note


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../../../../secret", "/../../secret", "deep/../../secret"])
def test_a_figure_of_an_analysis_lies_inside_it(workspace, tmp_path, name):
    _, model, _ = chain(workspace)
    made = analysis(workspace, model)
    record = made.path / RECORD
    values = json.loads(record.read_text())
    values["sections"][0]["figure"] = name
    record.write_text(json.dumps(values))
    manifest = Manifest.read(made.path / MANIFEST_NAME)
    files = tuple(
        PayloadFile(file.path, (made.path / file.path).stat().st_size,
                    sha256_of(made.path / file.path))
        for file in manifest.files
    )  # fmt: skip
    replace(manifest, files=files).write(made.path / MANIFEST_NAME)
    shown = show_analysis(Artifact.open(made.path))
    assert not any(block.pictures for block in shown.blocks)
    assert any("cannot be shown" in note for note in shown.notes)


def test_other_formats_than_png_are_not_opened(tmp_path):
    (tmp_path / "plot.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(LwdctlError, match="no picture"):
        embed_png(tmp_path, "plot.png", "")
