"""`lwdctl.Dataset`: arrays of the caller's own become demonstrations as files do."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import lwdctl
from lwdctl.core.progress import SilentProgress


class Dock(gymnasium.Env[Any, Any]):
    """Says the limits of its actions, and not what they mean."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,))
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,))


class Simulated(lwdctl.GymnasiumSimulator):
    """Says what its actions mean."""

    observations = (lwdctl.ObservationSpec("observation", 2),)
    action = lwdctl.ActionSpec(2, "delta", "meters", (-0.2,) * 2, (0.2,) * 2, control_rate=10.0)
    metrics = (lwdctl.Metric("far", "distance", "last", failed=4.0),)
    max_steps = 70

    def make(self, task: str) -> Dock:
        return Dock()


def steps_and_positions() -> tuple[np.ndarray, np.ndarray]:
    """Return motions (episode, time, 2) and the positions (episode, time + 1, 2) around them."""
    motions = np.random.default_rng(0).uniform(-0.1, 0.1, (6, 40, 2)).astype(np.float32)
    start = np.zeros((6, 1, 2), np.float32)
    return motions, np.concatenate([start, motions.cumsum(axis=1)], axis=1)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


@pytest.mark.parametrize(("name", "limit"), [("Dock", 0.1), ("Simulated/dock", 0.2)])
def test_arrays_get_the_actions_that_ingest_gives_the_same_data(
    name: str, limit: float, tmp_path: Path
) -> None:
    motions, positions = steps_and_positions()
    seen = positions[:, :-1]
    np.savez(
        tmp_path / "demos.npz", observation=seen.reshape(-1, 2), action=motions.reshape(-1, 2),
        ends=40 * np.arange(1, 7),
    )  # fmt: skip
    env = f"{__name__}:{name}"
    ingested = lwdctl.ingest(
        "npz", tmp_path / "demos.npz", observation_keys=["observation"], action_key="action",
        episode_ends="ends", env=env, workspace=tmp_path / "runs", progress=SilentProgress(),
    )  # fmt: skip
    data = lwdctl.Dataset.from_arrays(list(seen), list(motions), env=env)
    action = data.store.spec.action
    assert action == ingested.store.spec.action
    assert (action.semantics, action.limits) == ("delta", "environment")
    np.testing.assert_allclose([action.low, action.high], [[-limit] * 2, [limit] * 2])
    assert data.store.spec.env.tasks == ingested.store.spec.env.tasks
    assert data.store.spec.env.max_steps == (70 if "/" in name else 40)


def test_what_the_data_show_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    motions, positions = steps_and_positions()
    lwdctl.Dataset.from_arrays(list(positions), list(motions), env=f"{__name__}:Dock")
    assert "they are stored as delta" in capsys.readouterr().err
    data = lwdctl.Dataset.from_arrays(list(positions), list(motions))
    assert not capsys.readouterr().err
    assert (data.store.spec.action.semantics, data.store.spec.action.limits) == ("absolute", "data")


def test_an_environment_that_does_not_exist_is_refused_as_in_ingest() -> None:
    motions, positions = steps_and_positions()
    with pytest.raises(lwdctl.ConfigError, match="no environment is called 'pushd'") as error:
        lwdctl.Dataset.from_arrays(list(positions), list(motions), env="pushd/x")
    assert "'pusht'" in error.value.hint


def test_the_environment_of_stored_data_is_not_imported_unasked() -> None:
    motions, positions = (list(rows) for rows in steps_and_positions())
    named = lwdctl.Dataset.from_arrays(positions, motions, env=f"{__name__}:Dock").store.spec
    stored = replace(named.env, stored=True)
    kept = lwdctl.Dataset.from_arrays(positions, motions, env=stored, action=named.action)
    assert (kept.store.spec.action, kept.store.spec.env) == (named.action, stored)
    with pytest.raises(lwdctl.ConfigError, match="environment outside of lwdctl") as error:
        lwdctl.Dataset.from_arrays(positions, motions, env=stored)
    name = error.value.hint.partition("env='")[2].partition("'")[0]
    assert lwdctl.Dataset.from_arrays(positions, motions, env=name).store.spec.env == named.env
    described = lwdctl.Dataset.from_arrays(positions, motions, env=replace(stored, stored=False))
    assert described.store.spec.action == named.action


def test_arguments_that_do_not_fit_are_answered() -> None:
    motions, positions = (list(rows) for rows in steps_and_positions())
    with pytest.raises(lwdctl.ConfigError, match="from_arrays takes no argument 'task'") as error:
        lwdctl.Dataset.from_arrays(positions, motions, task="dock")
    assert error.value.hint == "did you mean 'tasks'?"
    with pytest.raises(lwdctl.ConfigError, match="expected the name of an environment") as error:
        lwdctl.Dataset.from_arrays(positions, motions, env=Dock)
    env = error.value.hint.removeprefix('env="').removesuffix('"')
    assert lwdctl.Dataset.from_arrays(positions, motions, env=env).store.spec.env.adapter == env
    with pytest.raises(lwdctl.ConfigError) as error:
        lwdctl.Dataset.from_arrays(positions, motions, env=Dock())
    assert error.value.hint == 'env="package.module:Class"'
