"""Simulators that live outside the package are named by module and class."""

import sys
from dataclasses import replace

import gymnasium
import h5py
import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, ObservationSpec
from lwdctl.core.registry import Registry
from lwdctl.envs.gymnasium_adapter import GymnasiumSimulator
from lwdctl.envs.simulator import Metric
from lwdctl.envs.table import make_simulator
from lwdctl.pipeline.calls import run_stage

MODULE = __name__


class CounterEnv(gymnasium.Env):
    """Counts what it was given; observed as a dictionary or as one array."""

    def __init__(self, as_array):
        self.as_array = as_array

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.total = self.np_random.uniform(-1, 1, 1)
        return self.seen(), {}

    def step(self, action):
        self.total = self.total + action
        info = {"size": float(abs(self.total[0])), "is_success": self.total[0] > 0}
        return self.seen(), 1.0, self.total[0] > 9, False, info

    def seen(self):
        parts = {"total": self.total, "twice": np.repeat(2 * self.total, 2)}
        return np.concatenate(list(parts.values())) if self.as_array else {**parts, "more": 1}


class Counter(GymnasiumSimulator):
    observations = (ObservationSpec("total", 1), ObservationSpec("twice", 2))
    action = ActionSpec(1, "delta", "steps", (-1.0,), (1.0,), 5.0)
    metrics = (Metric("largest", "size", "max"),)
    max_steps = 7

    def make(self, task):
        return CounterEnv(as_array=task == "array")


class Unmeasured(Counter):
    metrics = (Metric("weight", "weight", "last"),)


class Half:
    def __init__(self, env, task):
        pass


def name_of(simulator):
    return f"{MODULE}:{simulator.__name__}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])


@pytest.mark.parametrize("task", ["array", "dictionary"])
def test_a_gymnasium_environment_as_a_simulator(task):
    simulator = make_simulator(EnvSpec(name_of(Counter), (task,)), task)
    first = simulator.reset(100_001)
    assert {name: (rows.shape, str(rows.dtype)) for name, rows in first.items()} == {
        "total": ((1,), "float32"),
        "twice": ((2,), "float32"),
    }
    step = simulator.step(np.array([5.0], dtype=np.float32))
    assert step.observation["total"] == pytest.approx(first["total"] + 1.0)
    assert (step.success, step.terminated, step.reward) == (True, False, 1.0)
    assert step.metrics == {"size": pytest.approx(float(step.observation["total"][0]))}
    assert simulator.restore(simulator.initial_state())["total"] == first["total"]
    simulator.perturb(0.0, np.random.default_rng())
    with pytest.raises(SimulatorError, match="cannot be disturbed"):
        simulator.perturb(0.1, np.random.default_rng())
    assert simulator.max_steps == 7
    assert make_simulator(EnvSpec(name_of(Counter), (task,), {}, 3), task).max_steps == 3


def test_a_metric_that_info_does_not_hold_is_named():
    simulator = make_simulator(EnvSpec(name_of(Unmeasured), ("array",)), "array")
    simulator.reset(1)
    with pytest.raises(SimulatorError, match="no 'weight'"):
        simulator.step(np.zeros(1, dtype=np.float32))


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("no_such_module:X", "no module is called 'no_such_module'", "PYTHONPATH"),
        (f"{MODULE}:Kounter", "Kounter", ""),
        (":Counter", "names no environment", "package.module:Class"),
        (f"{MODULE}:Half", "is no simulator: it has no observations", "gymnasium_adapter"),
    ],
)
def test_names_that_lead_nowhere(name, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        make_simulator(EnvSpec(name, ("array",)), "array")
    assert hint in caught.value.hint


def test_closed_tables_take_no_outsiders():
    with pytest.raises(ConfigError, match="no reader is called"):
        Registry("reader", {}).load(name_of(Counter))


def write(path, size=1, kind=None):
    with h5py.File(path, "w") as file:
        for number in range(3):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.zeros((9, size))
            demo["obs/total"], demo["obs/twice"] = np.zeros((9, 1)), np.zeros((9, 2))
        if kind:
            file["data"].attrs["env_args"] = f'{{"type": "{kind}", "env_name": "array"}}'
    return {"paths": [str(path)], "env": f"{name_of(Counter)}/array"}


def test_the_data_take_what_actions_mean_from_the_environment(tmp_path):
    workspace = Workspace(tmp_path / "runs")
    settings = write(tmp_path / "demos.hdf5")
    made = run_stage("ingest", workspace, settings, progress=SilentProgress())
    spec = SnippetStore.open(made.path).spec
    assert spec.action == Counter.action
    assert spec.env == EnvSpec(name_of(Counter), ("array",), {}, 7)
    with pytest.raises(ConfigError, match="actions have 2 numbers, those of"):
        run_stage(
            "ingest", workspace, write(tmp_path / "two.hdf5", size=2), progress=SilentProgress()
        )


def test_a_file_cannot_name_code_to_import(tmp_path):
    settings = write(tmp_path / "demos.hdf5", kind=name_of(Counter))
    workspace = Workspace(tmp_path / "runs")
    made = run_stage("ingest", workspace, {**settings, "env": ""}, progress=SilentProgress())
    assert SnippetStore.open(made.path).spec.env.adapter == ""


def test_the_same_name_serves_an_evaluation(tmp_path):
    from lwdctl.evaluation.rollout import rollout
    from lwdctl.policies.policy import EpisodePlan
    from lwdctl.policies.random import RandomPolicy

    env = EnvSpec(name_of(Counter), ("array",), {}, 4)
    plans = [EpisodePlan(index, 100_000 + index, "array") for index in range(3)]
    one, other = (
        rollout(RandomPolicy(Counter.action, 2), env, plans, width=2, workers=0).episodes
        for _ in range(2)
    )
    assert [item.steps for item in one] == [4, 4, 4]
    assert [replace(item, seconds={}) for item in one] == [replace(i, seconds={}) for i in other]
