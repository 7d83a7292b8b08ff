"""Reports, comparisons and tables of data with hostile names: no script, no formula, no path."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import report_chain
from evaluation_grid import episode, record

from lwdctl.analysis.comparison import compare_evaluations
from lwdctl.analysis.plotting import new_figure
from lwdctl.analysis.sections import Findings, Section, read_sections
from lwdctl.analysis.tables import Table
from lwdctl.core.errors import LwdctlError
from lwdctl.core.plain_text import file_stem

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile import NAMES, check_csv, check_page, everything_below

sys.path.pop(0)

SOON = ("script", "bidi", "upwards")
KINDS = [pytest.param(kind, marks=() if kind in SOON else pytest.mark.long) for kind in NAMES]
pytestmark = pytest.mark.usefixtures("few_resamples")


def records(name: str, metric: str) -> list[dict]:
    """Return the records of two policies whose data have a hostile name everywhere."""
    made = []
    for policy, solved in ((name, 1), ("lwd", 0)):
        episodes = [episode(index, index % 2 == solved, 0.5, name) for index in range(6)]
        for item in episodes:
            item |= {"label": name, "metrics": {metric: 0.25 * solved}, "error": ""}
        item = record(policy, episodes, env=name, latent="")
        row = item["results"][0]
        row |= {
            "metrics": {metric: 0.25, "return": 1.0, "final_success": 0.0},
            "by_label": {name: {"episodes": 6, "success": 0.5, "metrics": {metric: 0.25}}},
        }
        made.append(item)
    return made


def chain(workspace, name: str, metric: str):
    """Publish a lineage whose texts are all one hostile name; return its evaluation."""
    store = report_chain.snippets(workspace, label=name)
    model = report_chain.vae(workspace, store)
    return model, evaluation(workspace, model, records(name, metric))


def evaluation(workspace, model, made):
    config = {"max_steps": 0, "perturbation_probability": 0.1}
    with workspace.begin("evaluation", "made", config=config, inputs=[model]) as draft:
        (draft.path / "episodes").mkdir()
        for index, item in enumerate(made):
            (draft.path / f"episodes/{index}.json").write_text(json.dumps(item))
        cells = [cell for item in made for cell in item["results"]]
        return draft.publish({"results": cells, "protocol": made[0]["results"][0]["env"]})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_hostile_names_runs_nothing(workspace, kind):
    name = NAMES[kind]
    model, found = chain(workspace, name, "overlap")
    with workspace.begin("analysis", "made", config={}, inputs=[model]) as draft:
        table = Table((name, "b"), ((name, 1), ([name], 2)))
        figure, ((axes,),) = new_figure(4, 2)
        axes.plot([0, 1], label=name)
        Findings(name, (Section(name, name, "figure", table, figure),), {"all": table}).save(
            draft.path, name
        )
        analysis = draft.publish({name: 1.0})
    check_csv((analysis.path / "all.csv").read_text())
    text = check_page(report_chain.page(workspace, found, analysis))
    if name.isascii() and name.isprintable() and name.strip() and len(name) < 100:
        assert name in text  # shown as it is


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_of_hostile_names_stays_in_its_directory(workspace, tmp_path, kind):
    name = NAMES[kind]
    _, found = chain(workspace, name, name)
    place = tmp_path / "in" / "here" / "comparison"
    before = everything_below(tmp_path)
    try:
        comparison = compare_evaluations([found], workspace.root)
        paths = comparison.save(place)
    except LwdctlError:
        assert kind in {"empty", "half a character"}  # which no JSON that is read may hold
        assert everything_below(tmp_path) == before
        return
    made = everything_below(tmp_path) - before - {"in", "in/here", "in/here/comparison"}
    assert {Path(path).parent for path in made} == {Path("in/here/comparison")}
    assert {path.resolve() for path in paths} == {tmp_path / path for path in made}
    assert not Path("/tmp/lwdctl-escaped-by-horizon.png").exists()
    for path in place.glob("*.csv"):
        check_csv(path.read_text())
    check_csv(comparison.to_csv())
    check_page(report_chain.page(workspace, found))


@pytest.mark.parametrize("kind", KINDS)
def test_an_analysis_with_hostile_stems_stays_in_its_directory(tmp_path, kind):
    """Figures and tables are found again under the names that were written."""
    name, place = NAMES[kind], tmp_path / "in" / "analysis"
    place.mkdir(parents=True)
    table = Table((name,), ((name,),))
    section = Section("one", "", name, table, new_figure(4, 2)[0])
    Findings("title", (section,), {name: table}).save(place, "title")
    made = everything_below(tmp_path)
    assert all(path == "in" or path.startswith("in/analysis") for path in made)
    _, (read,) = read_sections(place)
    assert (place / "figures" / f"{read.figure}.png").is_file()
    assert (place / f"{file_stem(name)}.csv").is_file()


def test_stems_are_names_of_files_and_distinct():
    stems = [file_stem(name) for name in NAMES.values()]
    assert len({*stems}) == len(NAMES)
    for stem in stems:
        assert len(stem) < 110
        assert stem.isascii()
        assert not set(stem) & set("/\\\0\n ")
        assert not stem.startswith(".")
        assert file_stem(stem) == stem
    assert file_stem("max_overlap-by-horizon") == "max_overlap-by-horizon"
