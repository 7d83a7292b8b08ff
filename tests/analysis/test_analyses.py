"""The table of analyses: its rows are complete, and a new one needs nothing else."""

import importlib
import inspect
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.analysis import analyses
from lwdctl.analysis.analyses import ANALYSES, Analysis, analysis_of
from lwdctl.analysis.sections import Findings, Section, read_sections
from lwdctl.analysis.tables import Table
from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.core.config import option
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.stages import analyze
from lwdctl.stages.stage import StageContext


@pytest.mark.parametrize("row", ANALYSES, ids=lambda row: row.name)
def test_a_function_takes_what_its_row_says(row):
    module, _, name = row.function.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert set(parameters) == {"config", "progress", *row.arguments}
    assert analysis_of(row.config()) is row


@dataclass(frozen=True)
class CountConfig:
    """Settings of a new analysis."""

    seed: int = option(0, "Seed of nothing")


def count_episodes(config, *, snippets, progress):
    """A new analysis."""
    table = Table(("episode", "steps"), tuple(enumerate(snippets.episodes.length.tolist())))
    section = Section("Episodes", "How long they are.", table=table)
    return Findings("Counts", [section], {"counts": table}, {"episodes": len(table.rows)})


def test_a_new_analysis_is_one_function_and_one_row(workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(count_episodes=count_episodes))
    row = Analysis(
        "count", CountConfig, ("snippets",), "mine:count_episodes", ("snippets",), "Count episodes."
    )
    monkeypatch.setattr(analyses, "ANALYSES", (*ANALYSES, row))
    spec = SourceSpec(
        (ObservationSpec("x", 1),), ActionSpec(1, "torque", "normalized", (-1.0,), (1.0,)),
        EnvSpec("", ("t",), {}, 10), (), "made",
    )  # fmt: skip
    with workspace.begin("snippets", "made", config={}) as draft:
        writer = SnippetWriter(draft.path / SNIPPETS_PAYLOAD, spec)
        rows = np.zeros((3, 1), np.float32)
        writer.append(Episode("demo", {"x": rows}, rows, task="t", split="train"))
        snippets = draft.publish(writer.close())
    context = StageContext(workspace, SilentProgress())
    artifact = analyze.run(CountConfig(), {"snippets": snippets}, context)
    assert artifact.reference == "analysis/made:v1"
    assert artifact.manifest.summary["episodes"] == 1
    assert artifact.payload("counts.csv").read_text() == "episode,steps\n0,3\n"
    assert read_sections(artifact.path)[0] == "Counts: snippets/made:v1"
