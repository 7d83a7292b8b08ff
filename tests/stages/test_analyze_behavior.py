"""`analyze behavior` as the command line runs it, on a made evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwdctl.analysis import divergence, plotting
from lwdctl.analysis.sections import read_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.pipeline.run_stage import resolve_inputs
from lwdctl.stages import STAGES
from lwdctl.stages.stage import StageContext

pytestmark = pytest.mark.sim

TASK, STEPS = "HalfCheetah-v4", 12
SPEC = SourceSpec(
    (ObservationSpec("observation", 17),),
    ActionSpec(6, "torque", "normalized", (-1.0,) * 6, (1.0,) * 6),
    EnvSpec("mujoco", (TASK,), {}, 1000),
    ("fast", "slow"),
    "made",
)


def write_snippets(workspace: Workspace) -> Artifact:
    """Cheetahs that lie on their feet after a time of their own."""
    rng = np.random.default_rng(0)
    with workspace.begin("snippets", "made", config={}) as draft:
        writer = SnippetWriter(draft.path / SNIPPETS_PAYLOAD, SPEC)
        for index in range(16):
            rows = np.zeros((STEPS, 17), dtype=np.float32)
            lying = np.arange(STEPS) >= rng.integers(2, 7)
            rows[:, 0] = np.where(lying, -0.2, 0.5)
            writer.append(
                Episode(
                    source=f"demo_{index}",
                    observations={"observation": rows},
                    actions=np.zeros((STEPS, 6), dtype=np.float32),
                    rewards=np.ones(STEPS, dtype=np.float32),
                    task=TASK,
                    label=SPEC.labels[index % 2],
                    split="train",
                )
            )
        return draft.publish(writer.close())


def episode(index: int, label: str, contact: float, **values: Any) -> dict[str, Any]:
    metrics = {"normalized_score": 1.0, "contact_bfoot": contact, "contact_ffoot": contact}
    return {
        "index": index, "seed": 100_000 + index, "task": TASK, "label": label, "demonstration": -1,
        "steps": 8, "success": False, "final_success": False, "return": 7.0, "metrics": metrics,
        "num_replans": 1, "attempts": 1, "error": "", "policy_failure": "", **values,
    }  # fmt: skip


def write_evaluation(workspace: Workspace, snippets: Artifact, **config: Any) -> None:
    with workspace.begin("evaluation", "made", config=config, inputs=[snippets]) as draft:
        (draft.path / "episodes").mkdir()
        for policy, latent, contact in (("lwd", "sampled", 0.6), ("mlp", "", 0.0)):
            cell = {
                "policy": policy, "latent": latent, "task": "all", "env": "mujoco", "horizon": 8,
                "perturbation": 0.0, "train_seed": 0, "snippet_length": 8, "sampler": "",
                "num_inference_steps": None, "metrics": {}, "seconds": {}, "warm_start": 0.0,
                "episodes": 10, "errors": 0, "successes": 0, "success": 0.0, "success_low": 0.0,
                "success_high": 1.0, "score": None, "replans_per_episode": 0.0, "by_label": {},
            }  # fmt: skip
            rows = [
                episode(k, label, contact + 0.01 * k) for label in SPEC.labels for k in range(5)
            ]
            rows += [episode(9, "slow", 0.5, error="the simulator died")] * (policy == "mlp")
            text = json.dumps({"results": [cell], "episodes": rows})
            (draft.path / "episodes" / f"{policy}.json").write_text(text)
        draft.publish({})


def analyze(workspace: Workspace, **values: Any) -> Artifact:
    stage = STAGES["analyze behavior"]
    config = from_mapping(stage.config, values)
    inputs = resolve_inputs(stage, config, workspace, {})
    return stage.execute(config, inputs, StageContext(workspace, SilentProgress()))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(divergence, "DRAWS", 40)
    return Workspace(tmp_path / "runs")


@pytest.mark.slow
def test_the_source_is_compared_over_the_steps_of_the_evaluation(workspace: Workspace) -> None:
    write_evaluation(workspace, write_snippets(workspace), max_steps=8)
    artifact = analyze(workspace)
    assert artifact.reference == "analysis/made:v1"
    summary = artifact.manifest.summary
    assert summary["steps_compared"] == 8
    assert summary["episodes_lost_to_simulators"] == {"mlp": 1}
    for label in SPEC.labels:
        found = summary[label]
        assert set(found) == {"source", "lwd sampled", "mlp", "source_vs_source"}
        assert {one.get("trajectories", 5) for one in found.values()} == {5}
        assert {one["js_set_size"] for name, one in found.items() if name != "source"} == {4}
        assert found["source"]["return_mean"] == 8.0
        assert found["mlp"]["js"] > found["lwd sampled"]["js"] > 0
        assert not found["mlp"]["within_baseline"]
        assert not found["mlp"]["below_baseline_mean"]
    _, sections = read_sections(artifact.path)
    assert sum(bool(section.figure) for section in sections) == 3
    with artifact.payload("behavior.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows if row["group"] == "source"] == ["8.0"] * 16
    contacts = {float(row["contact_bfoot"]) * 8 for row in rows if row["group"] == "source"}
    assert contacts <= set(range(9))


@pytest.mark.slow
def test_without_a_limit_the_whole_source_is_measured_and_draws_repeat(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotting, "render", lambda *words: b"drawn elsewhere")
    write_evaluation(workspace, write_snippets(workspace), max_steps=0)
    one, two, other = analyze(workspace), analyze(workspace), analyze(workspace, seed=1)
    assert one.manifest.summary == two.manifest.summary != other.manifest.summary
    assert one.manifest.summary["steps_compared"] == 1000
    assert one.manifest.summary["fast"]["source"]["return_mean"] == 12.0
    assert analyze(workspace, source=4).manifest.summary["fast"]["source"]["trajectories"] == 4
