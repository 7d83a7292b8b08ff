"""Sections of an analysis survive the trip to the disk, and damage is named."""

import json

import pytest
from matplotlib.figure import Figure

from lwdctl.analysis.sections import Findings, Section, read_sections
from lwdctl.analysis.tables import Table
from lwdctl.core.errors import ArtifactError


def test_sections_come_back_as_they_were(tmp_path):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1], [0, 1])
    table = Table(("component", "share"), ((1, 0.5), (2, None)))
    sections = (Section("PCA", "Two.", "pca", table, figure), Section("Words", "Nothing drawn."))
    Findings("", sections).save(tmp_path, "Latents")
    assert read_sections(tmp_path) == ("Latents", sections)
    assert (tmp_path / "figures/pca.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures/pca.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("content", [None, "[]", '{"title": "x", "sections": [{}]}', "{"])
def test_a_damaged_record_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(
        ArtifactError, match=r"is no record of an analysis|is missing|is not valid JSON"
    ):
        read_sections(tmp_path)


def test_ragged_tables_and_cells_of_other_types_are_refused(tmp_path):
    section = {"title": "x", "text": "", "figure": "", "table": {"columns": ["a", "b"]}}
    for rows in ([[1]], [[1, 2, 3]], [1], 7):
        section["table"]["rows"] = rows
        (tmp_path / "analysis.json").write_text(json.dumps({"title": "x", "sections": [section]}))
        with pytest.raises(ArtifactError, match=r"sections\[0\]\.table"):
            read_sections(tmp_path)
