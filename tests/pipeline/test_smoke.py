"""Every shipped recipe runs from its first stage to its last at toy size.

All share one workspace, so that what one recipe has collected and trained is there for the next.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from lwdctl.artifacts.artifact import Artifact
from lwdctl.cli.main import main
from lwdctl.pipeline.expected import compare
from lwdctl.pipeline.recipe import read_recipe

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
RECIPES = sorted(PIPELINES.glob("*.toml"))
# Run by continuous integration, the quick start by default: one of every kind that recipes have (a
# test below compares). The others repeat these with other settings; `pytest -m long` runs them.
QUICK = {
    "can", "halfcheetah", "halfcheetah_unconditional", "hammer", "metaworld_paper", "mt10", "pusht",
    "pusht_dp", "pusht_grid", "pusht_paper", "pusht_samplers", "quickstart", "two_ways",
}  # fmt: skip
# Settings of which every value is of a kind of its own.
KINDS = ("format", "simulator", "method", "policy", "latent", "sampler", "warm_start", "latency")
# Measured for five models in its one recipe; tests/stages/test_analyze_reconstruction.py runs it.
# `ddim` is the default; pusht_from_paper.toml names it where a stage is like one with `ddpm`.
RUN_ELSEWHERE = {("latent", "nearest"), ("command", "analyze reconstruction"), ("sampler", "ddim")}
EXTRAS = {"robosuite": "robosuite", "adroit": "gymnasium_robotics"}

pytestmark = pytest.mark.sim


def marks_of(name):
    if name == "quickstart":
        return []
    return [pytest.mark.slow if name in QUICK else pytest.mark.long]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=marks_of(path.stem)) for path in RECIPES],
)
def test_recipe(path, capfd, monkeypatch, toy_file, toy_workspace):
    recipe = read_recipe(path)
    skip_without_extra(recipe)
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(toy_workspace))
    monkeypatch.syspath_prepend(PIPELINES.parent / "examples")  # environments of recipes' own
    monkeypatch.setattr("lwdctl.analysis.divergence.DRAWS", 10)  # intervals of toys say nothing
    words = [str(path), "--smoke", *own_files(recipe, toy_file)]
    summary = run(capfd, *words)
    states = {stage["id"]: stage["state"] for stage in summary["stages"]}
    assert list(states) == [stage.id for stage in recipe.stages]
    assert set(states.values()) <= {"ran", "up to date"}
    assert all(cell["errors"] == 0 for cell in summary["results"])
    assert {cell["stage"] for cell in summary["results"]} <= set(states)
    assert missing_numbers(recipe, summary) == []
    again = run(capfd, *words)
    assert {stage["state"] for stage in again["stages"]} == {"up to date"}


def kinds(path):
    """Return what kinds of stages, data, simulators, methods and evaluations a recipe has."""
    found = set()
    for stage in read_recipe(path).stages:
        found.add(("command", stage.command))
        for name in KINDS:
            values = stage.settings.get(name, ())
            values = values if isinstance(values, list | tuple) else [values]
            found.update((name, str(value)) for value in values)
    return found


def test_every_kind_is_run_by_continuous_integration():
    assert {path.stem for path in RECIPES} >= QUICK
    quick = set().union(*(kinds(path) for path in RECIPES if path.stem in QUICK))
    assert set().union(*map(kinds, RECIPES)) - quick == RUN_ELSEWHERE


def run(capfd, *words):
    code = main(["run", "--json", "-q", *words])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)["summary"]


def skip_without_extra(recipe):
    for stage in recipe.stages:
        extra = str(stage.settings.get("simulator", ""))
        if any("hammer" in name for name in stage.settings.get("paths", ())):
            extra = "adroit"
        if extra in EXTRAS and not importlib.util.find_spec(EXTRAS[extra]):
            pytest.skip(f"the extra '{extra}' is not installed")


def own_files(recipe, toy_file):
    """Return the options that replace a recipe's files by small ones."""
    words = []
    for stage in recipe.stages:
        if "paths" in stage.settings:
            paths = ",".join(toy_file(name) for name in stage.settings["paths"])
            words += ["--set", f"{stage.id}.paths={paths}"]
    return words


def missing_numbers(recipe, summary):
    """List the expected numbers that no toy result has: they name what is not measured."""
    made = {stage["id"]: Artifact.open(Path(stage["path"])) for stage in summary["stages"]}
    return [
        f"{item.stage}: {item.metric} {dict(item.where)}"
        for item in recipe.expected
        if compare(item, made[item.stage].manifest.summary).measured is None
    ]
