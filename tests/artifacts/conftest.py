"""Workspaces, lineages and stores small enough to make in every test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec

Make = Callable[..., Artifact]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep records of hashed files out of the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("LWDCTL_WORKSPACE", raising=False)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "runs")


@pytest.fixture
def make(workspace) -> Make:
    """Return a function that publishes an artifact with one small file."""

    def publish(kind: str, name: str, *inputs: Artifact, content: str = "weights") -> Artifact:
        with workspace.begin(kind, name, config={"updates": 5}, inputs=inputs) as draft:
            (draft.path / "deep").mkdir()
            (draft.path / "deep" / "payload.txt").write_text(content)
            return draft.publish({"loss": 0.5}, seed=3)

    return publish


@pytest.fixture
def spec() -> SourceSpec:
    return SourceSpec(
        observations=(ObservationSpec("agent", 2), ObservationSpec("object", 3, network=False)),
        action=ActionSpec(2, "absolute", "pixels", (0.0, 0.0), (512.0, 512.0), 10.0, "agent"),
        env=EnvSpec("pusht", ("push", "pull"), {"version": [1, 2]}, 300),
        labels=("good", "poor"),
        source_format="made",
        collection_seeds=(0, 9),
    )


@pytest.fixture
def episode() -> Callable[..., Episode]:
    """Return a function that draws an episode of any length; keywords replace its fields."""

    def draw(length: int, number: int = 0, **fields) -> Episode:
        random = np.random.default_rng(number)

        def rows(*shape: int) -> np.ndarray:
            return (100 + 5 * random.normal(size=shape)).astype(np.float32)

        values = {
            "source": f"demo_{number}",
            "observations": {"agent": rows(length, 2), "object": rows(length, 3)},
            "actions": rows(length, 2),
            "task": "push",
            "label": "good",
            "split": "train",
        }
        return Episode(**{**values, **fields})

    return draw
