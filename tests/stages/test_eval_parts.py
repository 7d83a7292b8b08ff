"""Conditions measured in parts, then taken into one evaluation."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trained_grid import GRID, do, train_lwd

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.locks import claimed
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import EvalConfig
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ArtifactError
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.run_stage import resolve_inputs
from lwdctl.stages import STAGES, evaluate
from lwdctl.stages.eval_models import count_conditions, plan_conditions
from lwdctl.stages.eval_parts import claim
from lwdctl.stages.stage import REST, Part, StageContext

pytestmark = pytest.mark.sim
SMALL = {**GRID, "policy": ["lwd", "mlp", "random"], "horizon": [8], "episodes": 1, "max_steps": 4}


def context(workspace: Workspace, name: str) -> StageContext:
    return StageContext(workspace, SilentProgress(), name)


def measure(workspace: Workspace, values: dict[str, Any], part: Part, name: str) -> None:
    stage = STAGES["eval"]
    config = from_mapping(stage.config, values)
    inputs = resolve_inputs(stage, config, workspace, {})
    stage.execute_part(config, inputs, context(workspace, name), part)


def measure_whole(workspace: Workspace, rolled: list[str]) -> tuple[Artifact, list[str]]:
    """Return the evaluation that one process makes, and its conditions in order."""
    whole = do("eval", workspace, SMALL, name="whole")
    names = list(rolled)
    rolled.clear()
    return whole, names


def payload(artifact: Any) -> dict[str, Any]:
    """Everything that was measured, without wall times and names."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key != "seconds"}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    files = sorted(path for path in artifact.path.rglob("*.json") if path.name != "manifest.json")
    return {
        path.relative_to(artifact.path).as_posix(): timeless(json.loads(path.read_text()))
        for path in files
    }


@pytest.mark.slow
def test_conditions_are_counted_before_there_are_models(workspace: Workspace) -> None:
    train_lwd(workspace, 8, seed=1)
    changes: list[dict[str, Any]] = [
        {},
        {"policy": ["lwd", "still"], "latent": ["sampled", "mean"], "perturbation": [0.0]},
        {"policy": ["lwd", "random"], "horizon": [8], "seeds": 2},
        {"policy": ["lwd", "lwd", "mlp"], "one_model": True, "perturbation": [1, 1, 2]},
    ]
    for values in [*({**GRID, **change} for change in changes), {"policy": ["random"]}]:
        config = from_mapping(EvalConfig, values)
        inputs = resolve_inputs(STAGES["eval"], config, workspace, {})
        planned = plan_conditions(config, inputs, context(workspace, "any"))
        assert count_conditions(config) == len(planned)


@pytest.mark.slow
def test_parts_make_the_evaluation_that_one_process_makes(
    workspace: Workspace, rolled: list[str]
) -> None:
    whole, names = measure_whole(workspace, rolled)
    for index in (2, 0, 1):
        measure(workspace, SMALL, (index, 3), "split")
    assert sorted(rolled) == sorted(names)
    rolled.clear()
    split = do("eval", workspace, SMALL, name="split")
    assert rolled == []
    assert payload(split) == payload(whole)
    assert not list(split.path.parent.glob(".*"))  # what the parts left is gone


@pytest.mark.slow
def test_what_no_part_measured_is_measured_by_the_evaluation(
    workspace: Workspace, rolled: list[str]
) -> None:
    whole = do("eval", workspace, SMALL, name="whole")
    names = list(rolled)
    measure(workspace, SMALL, (1, 2), "some")
    (folder,) = workspace.root.glob("evaluation/some/.parts-*")
    damaged = folder / f"{names[3]}.json"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    rolled.clear()
    some = do("eval", workspace, SMALL, name="some")
    assert sorted(rolled) == sorted([*names[::2], names[3]])
    assert payload(some) == payload(whole)


@pytest.mark.slow
def test_a_part_that_ran_is_not_run_again(workspace: Workspace, rolled: list[str]) -> None:
    measure(workspace, SMALL, (0, 2), "twice")
    rolled.clear()
    measure(workspace, SMALL, (0, 2), "twice")
    assert rolled == []
    do("eval", workspace, {**SMALL, "episodes": 2}, name="twice")  # of other settings: none fits
    assert len(rolled) == count_conditions(from_mapping(EvalConfig, SMALL))
    assert list(workspace.root.glob("evaluation/twice/.parts-*"))
    assert [item.reason for item in workspace.leftovers(resumable=True)] == ["can be resumed"]
    assert workspace.leftovers() == []


def test_a_link_among_the_parts_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    measure(workspace, SMALL, (0, 2), "linked")
    (folder,) = workspace.root.glob("evaluation/linked/.parts-*")
    (folder / "mlp.json").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="is a link"):
        do("eval", workspace, SMALL, name="linked")


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Return what lets a function be called while an evaluation measures its n-th condition."""

    def call(number: int, function: Callable[[], None]) -> None:
        roll, counted = evaluate._roll, itertools.count()

        def meanwhile(*words: Any) -> Any:
            if next(counted) == number:
                function()
            return roll(*words)

        monkeypatch.setattr(evaluate, "_roll", meanwhile)

    return call


def test_the_rest_is_measured_beside_the_evaluation(
    workspace: Workspace, rolled: list[str], during: Any
) -> None:
    whole, names = measure_whole(workspace, rolled)
    during(1, lambda: measure(workspace, SMALL, REST, "both"))
    both = do("eval", workspace, SMALL, name="both")
    assert rolled == [names[0], *names[:1:-1], names[1]]
    assert payload(both) == payload(whole)
    assert not list(both.path.parent.glob(".*"))


@pytest.mark.slow
def test_what_another_process_measures_is_awaited_and_taken_over_when_it_dies(
    workspace: Workspace, rolled: list[str], during: Any
) -> None:
    whole, names = measure_whole(workspace, rolled)
    claims = contextlib.ExitStack()

    def claim_second() -> None:
        (records,) = workspace.root.glob("evaluation/left/.partial-*/checkpoints")
        assert claims.enter_context(claimed(claim(records, names[1])))
        threading.Timer(0.5, claims.close).start()

    during(0, claim_second)
    left = do("eval", workspace, SMALL, name="left")
    assert rolled == [names[0], *names[2:], names[1]]
    assert payload(left) == payload(whole)


def test_there_is_no_rest_where_no_process_measures(
    workspace: Workspace, rolled: list[str], interrupted: Any
) -> None:
    measure(workspace, SMALL, REST, "none")
    assert not workspace.root.joinpath("evaluation").exists()
    with interrupted(perturbation=25.0):
        do("eval", workspace, SMALL, name="none")
    rolled.clear()
    measure(workspace, SMALL, REST, "none")
    assert rolled == []


def test_the_rest_ends_when_the_evaluation_is_published(
    workspace: Workspace, rolled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(*_: Any) -> Path:
        return workspace.root / "evaluation" / "gone" / ".partial-1"

    monkeypatch.setattr(evaluate, "run_that_measures", vanish)
    measure(workspace, SMALL, REST, "gone")
    assert rolled == []
