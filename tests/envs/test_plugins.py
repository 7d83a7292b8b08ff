"""Simulators that live outside the package are named by module and class."""

import sys
from dataclasses import replace
from functools import partial

import gymnasium
import h5py
import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.core.registry import Registry
from lwdctl.envs.gymnasium_adapter import GymnasiumSimulator
from lwdctl.envs.simulator import Metric
from lwdctl.envs.table import environment_named, make_simulator, with_outside_environment
from lwdctl.evaluation.checks import check_compatible, restores_initial_states
from lwdctl.evaluation.rollout import rollout
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.random import RandomPolicy

MODULE = __name__


class CounterEnv(gymnasium.Env):
    """Counts what it was given; observed as a dictionary or as one array."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1, 1))

    def __init__(self, as_array=True):
        self.as_array = as_array
        size = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
        twice = gymnasium.spaces.Box(-np.inf, np.inf, (2, 1))
        named = gymnasium.spaces.Dict({"total": size, "twice": twice})
        self.observation_space = gymnasium.spaces.Box(-1, 1, (3,)) if as_array else named

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.total = self.np_random.uniform(-1, 1, 1)
        return self.seen(), {}

    def step(self, action):
        self.total = self.total + np.ravel(action)
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


class Abstract(GymnasiumSimulator):
    pass


class Half:
    def __init__(self, env, task):
        pass


def make_counter():
    return gymnasium.wrappers.TimeLimit(CounterEnv(as_array=False), 5)


def function_adapter(env, task):
    return gymnasium.wrappers.TimeLimit(CounterEnv(task == "array"), 6)


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
    with pytest.raises(ConfigError, match="cannot be perturbed"):
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
        (f"{MODULE}:Half", "is no simulator: it has no observations", "gymnasium.Env"),
        (f"{MODULE}:Abstract", "cannot be called with an EnvSpec .* abstract", "gymnasium.Env"),
        (f"{MODULE}:name_of", "cannot be called with an EnvSpec", "gymnasium.Env"),
    ],
)
def test_names_that_lead_nowhere(name, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        make_simulator(EnvSpec(name, ("array",)), "array")
    assert hint in caught.value.hint


def test_closed_tables_take_no_plug_ins():
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
    made = run_stage("ingest", settings, workspace=workspace, progress=SilentProgress())
    spec = SnippetStore.open(made.path).spec
    assert spec.action == Counter.action
    assert spec.env == EnvSpec(name_of(Counter), ("array",), {}, 7)
    with pytest.raises(ConfigError, match="actions have 2 components, those of"):
        run_stage(
            "ingest",
            write(tmp_path / "two.hdf5", size=2),
            workspace=workspace,
            progress=SilentProgress(),
        )


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"observation_keys": ["total"], "env": f"{MODULE}:CounterEnv/array"},
         "observation 'total' of 1 components, .* gives none",
         r"it gives: observation (3); ingest with --rename 'total=NAME'"),
        ({"actions": "recorded-absolute"}, "has absolute actions .* takes delta ones", "--actions"),
    ],
)  # fmt: skip
def test_what_an_evaluation_would_refuse_is_not_ingested(tmp_path, changes, message, hint):
    settings = {**write(tmp_path / "demos.hdf5"), **changes}
    with pytest.raises(ConfigError, match=message) as caught:
        run_stage(
            "ingest", settings, workspace=Workspace(tmp_path / "runs"), progress=SilentProgress()
        )
    assert hint in caught.value.hint


def test_arrays_for_an_environment_without_a_task_are_not_ingested(tmp_path):
    path = tmp_path / "demos.npz"
    rows = np.random.default_rng(0).uniform(-1, 1, (30, 4)).astype(np.float32)
    total, twice, action = rows[:, :1], rows[:, 1:3], rows[:, 3:]
    np.savez(path, total=total, twice=twice, action=action, ends=[10, 20, 30])
    keys = {"observation_keys": ["total", "twice"], "action_key": "action", "episode_ends": "ends"}
    settings = {"paths": [str(path)], "env": name_of(Counter), **keys}
    workspace = Workspace(tmp_path / "runs")
    with pytest.raises(ConfigError, match="the data name no task of") as caught:
        run_stage("ingest", settings, workspace=workspace, progress=SilentProgress())
    assert f"--env {name_of(Counter)}/NAME, where NAME is the task" in caught.value.hint
    run_stage("ingest", {**settings, "env": f"{name_of(Counter)}/array"}, workspace=workspace,
              progress=SilentProgress())  # fmt: skip


class Pushed(Counter):
    """Perturbs by itself, as the contract of simulators has it."""

    def __init__(self, env, task):
        super().__init__(env or EnvSpec("", (task,)), task)

    def perturb(self, magnitude, rng):
        self.env.total = self.env.total + magnitude


class Plain(CounterEnv):
    """An environment without tasks, which its entry point names as it is."""

    def __init__(self):
        super().__init__(as_array=False)


def test_a_plain_environment_needs_no_task_and_takes_any(tmp_path):
    path, name = tmp_path / "demos.npz", name_of(Plain)
    rows = np.random.default_rng(0).uniform(-1, 1, (30, 4)).astype(np.float32)
    total, twice, action = rows[:, :1], rows[:, 1:3], rows[:, 3:]
    np.savez(path, total=total, twice=twice, action=action, ends=[10, 20, 30])
    keys = {"observation_keys": ["total", "twice"], "action_key": "action", "episode_ends": "ends"}
    workspace = Workspace(tmp_path / "runs")
    for env, tasks in ((name, ("Plain",)), (f"{name}/left", ("left",))):
        settings = {"paths": [str(path)], "env": env, **keys}
        run_stage("ingest", settings, workspace=workspace, progress=SilentProgress())
        store = SnippetStore.open(workspace.resolve("snippets").path)
        assert store.spec.env.tasks == tasks
        assert environment_named(env).tasks == tasks
    with pytest.raises(ConfigError, match="cannot be perturbed"):
        check_compatible(store.spec, Plain, "left", (5, 0.1))
    check_compatible(store.spec, Plain, "left", (5, 0.0))
    described = replace(store.spec, action=Counter.action)
    check_compatible(described, partial(Pushed, None, "left"), "left", (5, 0.1))
    with pytest.raises(ConfigError, match="no limit of the steps"):
        check_compatible(store.spec, Plain, "left", (None, 0.0))


class Restoring(Counter):
    def restore(self, state, model=""):
        return self.reset(int(state[0]))


class Limited(Plain):
    max_steps = 9


class Unlimited(Plain):
    max_steps = -1


class Unready(Plain):
    @property
    def max_steps(self):
        raise RuntimeError("call reset first")


def limited():
    return gymnasium.wrappers.TimeLimit(Plain(), 6)


@pytest.mark.parametrize(
    ("made", "limit"), [(Plain, 0), (Limited, 9), (limited, 6), (Unlimited, 0), (Unready, 0)]
)
def test_a_plain_environment_declares_its_limit(made, limit):
    name = name_of(made)
    source = SourceSpec(Counter.observations, Counter.action, EnvSpec(name, ()), (), "made")
    assert with_outside_environment(source).env.max_steps == limit
    assert make_simulator(environment_named(name), made.__name__).max_steps == limit


@pytest.mark.parametrize(
    ("made", "state", "restored"),
    [(Plain, [7], True), (Plain, [1, 2], False), (Restoring, [1, 2], True), (Plain, None, False)],
)
def test_states_are_restored_where_the_environment_can(made, state, restored):
    rows = np.zeros((9, 1), dtype=np.float32)
    start = None if state is None else np.array(state, dtype=np.float64)
    seen = {"total": rows, "twice": np.repeat(rows, 2, axis=1)}
    episode = Episode("e", seen, rows, task="x", initial_state=start)
    env = EnvSpec(name_of(made), ("x",), {}, 5)
    spec = SourceSpec(Counter.observations, Counter.action, env, (), "made")
    assert restores_initial_states(SnippetStore.in_memory([episode], spec)) == restored


class LimitOfInstance:
    """A simulator whose episode limit only an instance knows, as the contract allows."""

    observations, action, metrics = Counter.observations, Counter.action, Counter.metrics
    reset = step = initial_state = restore = perturb = render = None
    closed = 0

    def __init__(self, env, task):
        self.max_steps = 11

    def close(self):
        type(self).closed += 1


def test_what_only_an_instance_says_is_taken_from_one():
    source = SourceSpec(
        Counter.observations,
        Counter.action,
        EnvSpec(name_of(LimitOfInstance), ("x",), {}, 5),
        (),
        "made",
    )
    assert with_outside_environment(source).env.max_steps == 11
    assert LimitOfInstance.closed == 1


class Relative:
    max_steps = 11
    action = ActionSpec(1, "absolute", "meters", (-1.0,), (1.0,), reference="position")


@pytest.mark.parametrize("name", ["position", "velocity"])
def test_the_environments_actions_refer_to_an_observation_that_is_stored(name):
    env = EnvSpec(f"{MODULE}:Relative", ("a",))
    source = SourceSpec((ObservationSpec(name, 1),), Relative.action, env, (), "arrays")
    expected = {"position": "position", "velocity": ""}
    assert with_outside_environment(source).action.reference == expected[name]


def test_a_file_cannot_name_code_to_import(tmp_path):
    settings = write(tmp_path / "demos.hdf5", kind=name_of(Counter))
    workspace = Workspace(tmp_path / "runs")
    made = run_stage(
        "ingest", {**settings, "env": ""}, workspace=workspace, progress=SilentProgress()
    )
    assert SnippetStore.open(made.path).spec.env.adapter == ""


def run(env, policy=None, tasks=("array",) * 3, **options):
    plans = [EpisodePlan(index, 100_000 + index, task) for index, task in enumerate(tasks)]
    options = {"num_envs": 2, **options}
    policy = policy or RandomPolicy(Counter.action, options["num_envs"])
    return rollout(policy, env, plans, **options)


def test_the_same_name_serves_an_evaluation():
    env = EnvSpec(name_of(Counter), ("array",), {}, 4)
    one, other = (run(env) for _ in range(2))
    assert [item.steps for item in one.episodes] == [4, 4, 4]
    assert one.score == "largest"
    assert [replace(item, seconds={}) for item in one.episodes] == [
        replace(item, seconds={}) for item in other.episodes
    ]


def test_a_factory_of_any_gymnasium_environment_serves_an_evaluation():
    found = run(make_counter)
    assert found.score == "return"
    for item in found.episodes:
        assert (item.steps, item.error, item.values["return"]) == (5, "", 5.0)
    named = EnvSpec(f"{MODULE}:function_adapter", ("array",))
    assert [item.steps for item in run(named).episodes] == [6, 6, 6]


@pytest.mark.slow
def test_a_factory_serves_worker_processes():
    factory = partial(gymnasium.make, "Pendulum-v1")
    action = ActionSpec(1, "absolute", "unknown", (-2.0,), (2.0,))
    here, there = (
        run(factory, RandomPolicy(action, 2), max_steps=3, workers=count) for count in (0, 2)
    )
    assert [replace(item, seconds={}) for item in here.episodes] == [
        replace(item, seconds={}) for item in there.episodes
    ]
    assert there.episodes[0].values["return"] < 0


def test_spaces_describe_a_wrapped_environment():
    wrapped = make_simulator(make_counter, "any")
    assert wrapped.observations == (ObservationSpec("total", 1), ObservationSpec("twice", 2))
    assert wrapped.action == ActionSpec(1, "absolute", "unknown", (-1.0,), (1.0,))
    assert (wrapped.max_steps, wrapped.metrics[0].name) == (5, "return")
    first = wrapped.reset(3)
    assert first["twice"].shape == (2,)
    moved = wrapped.step(np.ones(1, dtype=np.float32)).observation["total"]
    assert moved == pytest.approx(first["total"] + 1)
    with pytest.raises(SimulatorError, match="renders no image"):
        wrapped.render()
    with pytest.raises(SimulatorError, match=r"a seed of shape \(1,\)"):
        wrapped.restore(np.zeros(3))


@pytest.mark.parametrize(
    ("dtype", "given", "taken"), [("float64", 5.0, 0.1), ("float64", 0.05, 0.05), ("int32", 1.9, 2)]
)
def test_actions_lie_in_the_space_of_the_environment(dtype, given, taken):
    env = CounterEnv(as_array=False)
    high = 0.1 if dtype == "float64" else 3
    env.action_space = gymnasium.spaces.Box(-high, high, (1,), dtype)
    seen = []
    env.step = lambda action: seen.append(action) or (env.seen(), 0.0, False, False, {})
    wrapped = make_simulator(lambda: env, "any")
    wrapped.reset(0)
    wrapped.step(np.array([given], np.float32))
    assert env.action_space.contains(seen[0])
    assert seen[0] == pytest.approx(taken)


def test_an_environment_itself_runs_alone_and_stays_open():
    env = make_counter()
    env.closed = False
    env.close = lambda: setattr(env, "closed", True)
    assert [item.steps for item in run(env, num_envs=1).episodes] == [5, 5, 5]
    assert not env.closed
    with pytest.raises(ConfigError, match="one environment in this process") as caught:
        run(env)
    assert "functools.partial" in caught.value.hint


class Shaken(CounterEnv):
    def perturb(self, magnitude, rng):
        self.total = self.total + magnitude * rng.normal(size=1)


def test_perturbations_need_a_method_of_the_environment():
    still, shaken = (
        run(Shaken, max_steps=4, perturbation=magnitude, perturbation_probability=1.0)
        for magnitude in (0.0, 9.0)
    )
    assert [item.error for item in shaken.episodes] == ["", "", ""]
    assert still.episodes[0].steps == 4
    with pytest.raises(ConfigError, match="cannot be perturbed") as caught:
        run(make_counter, perturbation=1.0, perturbation_probability=1.0)
    assert "perturb(magnitude, rng)" in caught.value.hint


class Discrete(CounterEnv):
    action_space = gymnasium.spaces.Discrete(3)


class Pictured(CounterEnv):
    def __init__(self):
        super().__init__()
        self.observation_space = gymnasium.spaces.Discrete(3)


UNLIMITED = partial(gymnasium.make, "Pendulum-v1", max_episode_steps=-1)


@pytest.mark.parametrize(
    ("factory", "options", "message", "hint"),
    [
        (Discrete, {}, "actions in Discrete.3., expected a Box", "continuous"),
        (Pictured, {}, "observation 'observation' in Discrete", "FlattenObservation"),
        (CounterEnv, {}, "no limit of the steps per episode", "--max-steps N"),
        (UNLIMITED, {"workers": 1}, "no limit of the steps per episode", "max_steps=N"),
        (lambda: None, {"workers": 1}, "cannot be given this environment", "workers=0"),
    ],
)
def test_what_is_not_supported_is_an_error_with_a_hint(factory, options, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        run(factory, **options)
    assert hint in caught.value.hint
