"""Sections of an analysis survive the trip to the disk, and damage is named."""

import pytest

from lwdctl.analysis.sections import Findings, Section, read_sections
from lwdctl.analysis.tables import Table
from lwdctl.core.errors import ArtifactError

SECTIONS = (
    Section("PCA", "Two components.", "pca", Table(("component", "share"), ((1, 0.5), (2, None)))),
    Section("Words", "Nothing drawn."),
)


def figure():
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([0, 1], [0, 1])
    return drawn


def test_sections_come_back_as_they_were(tmp_path):
    Findings("Latents", SECTIONS, {"pca": figure()}).save(tmp_path)
    assert read_sections(tmp_path) == ("Latents", SECTIONS)
    assert (tmp_path / "figures/pca.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures/pca.pdf").read_bytes().startswith(b"%PDF")


def test_a_figure_that_no_section_shows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="drawn are"):
        Findings("Latents", SECTIONS[1:], {"pca": figure()}).save(tmp_path)


@pytest.mark.parametrize("content", [None, "[]", '{"title": "x", "sections": [{}]}', "{"])
def test_a_damaged_record_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(ArtifactError, match="is no record of an analysis"):
        read_sections(tmp_path)
