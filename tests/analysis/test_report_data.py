"""The report's section on the data shows what ingest found; a store without that has none."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
from report_chain import page, snippets

from lwdctl.configs import IngestConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import Episode
from lwdctl.data.quality.ingest_report import INGEST_REPORT
from lwdctl.data.readers.robomimic_writer import RobomimicWriter
from lwdctl.stages.ingest import run
from lwdctl.stages.stage import StageContext

BOLD = "<b>bold"
PICTURE = re.compile(r'<img src="data:image/svg')


@pytest.fixture
def store(workspace, tmp_path):
    """A store of eight random walks, one of which has an action beyond the limits."""
    path = tmp_path / "walks.hdf5"
    arguments = {"env_name": "metaworld", "type": "metaworld", "env_version": "3.1.1"}
    with RobomimicWriter(path, arguments) as writer:
        for index in range(8):
            rng = np.random.default_rng(index)
            rows = rng.normal(0, 0.1, (21, 3)).cumsum(axis=0).astype(np.float32)
            actions = np.diff(rows, axis=0)
            actions[3, 1] = 5 if index == 2 else 0
            writer.write(
                Episode(
                    source="",
                    observations={"observation": rows[:-1]},
                    actions=actions,
                    rewards=np.full(20, index, np.float32),
                    task="reach",
                    label=BOLD,
                )
            )
    config = IngestConfig(paths=(str(path),), clip_actions=True)
    return run(config, {}, StageContext(workspace, SilentProgress(), "walks"))


def section(markup: str) -> str:
    return markup[markup.index('<section id="data"') : markup.index('<section id="training"')]


@pytest.mark.slow
def test_findings_numbers_and_plots_of_the_data_are_shown(workspace, store):
    data = section(page(workspace, store))
    text = html.unescape(re.sub(r"<[^>]+>", "", data))
    assert "read as robomimic, recognized by" in text
    assert "The checks of ingest gave 0 warnings and" in text
    assert "0.21% of the action values (component 1) are outside the limits" in text
    assert "Episodes by label" in text
    assert "160" in text  # steps
    assert len(PICTURE.findall(data)) == 4
    assert BOLD not in data
    assert html.escape(BOLD) in data
    assert '<a href="#data">' in page(workspace, store)


def test_a_store_without_a_report_has_no_section(workspace):
    markup = page(workspace, snippets(workspace))
    assert 'id="data"' not in markup
    assert "#data" not in markup


EMPTY = '{"format": "x", "files": [], "findings": [], "statistics": %s}'


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    ["{}", "no json", '{"findings": 3}', "[]", "[" * 100_000, EMPTY % '{"labels": []}',
     EMPTY % '{"labels": {}, "observations": [], "action": 1e400}', EMPTY % "[]",
     EMPTY % '{"labels": {"": {"return": 0, "successful": 1, "success_known": {}}}}'],
)  # fmt: skip
def test_a_report_of_another_shape_is_a_note(workspace, content):
    with workspace.begin("snippets", "odd", config={}) as draft:
        (draft.path / INGEST_REPORT).write_text(content)
        made = draft.publish({})
    assert f"{INGEST_REPORT} cannot be read" in section(page(workspace, made))


def test_a_damaged_report_is_a_note(workspace, store):
    (store.path / INGEST_REPORT).write_text("{}")
    assert "the manifest says" in section(page(workspace, store))
