import json
import multiprocessing
import subprocess
import sys
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest

from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import CollectConfig
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError, SimulatorError, install_extra
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.data.readers.robomimic_writer import DEMONSTRATIONS_PAYLOAD as PAYLOAD
from lwdctl.envs.metaworld_expert import EXPERTS
from lwdctl.evaluation import collect as collecting
from lwdctl.stages.collect import run
from lwdctl.stages.stage import StageContext

ROOT = Path(__file__).resolve().parents[2]
environment = EXPERTS.environment


@pytest.fixture
def collect(tmp_path):
    def collect(workspace="work", resume=False, **values):
        config = from_mapping(CollectConfig, {"workers": 0, **values})
        return run(config, {}, StageContext(Workspace(tmp_path / workspace), resume=resume))

    return collect


def contents(path):
    """Everything in the file, by name."""
    found = {}

    def visit(name, item):
        found[name] = item[()].tobytes() if isinstance(item, h5py.Dataset) else None
        found.update({f"{name}@{key}": str(value) for key, value in item.attrs.items()})

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


SHORT = {"task": ("reach", "drawer-open"), "episodes": 2, "max_steps": 120}


@pytest.mark.slow
def test_the_file_holds_what_ingest_and_evaluation_need(collect):
    artifact = collect(**SHORT)
    with h5py.File(artifact.payload(PAYLOAD)) as file:
        args = json.loads(file["data"].attrs["env_args"])
        assert args["type"] == args["env_name"] == "metaworld"
        assert args["env_kwargs"]["tasks"] == ["reach", "drawer-open"]
        assert args["env_kwargs"]["max_steps"] == 120
        assert args["env_kwargs"]["metaworld"] == args["env_version"]
        assert args["env_kwargs"]["mujoco"]
        assert len(file["data"]) == 4
        for name, demo in file["data"].items():
            assert demo["obs/observation"].shape == (120, 39), name
            actions = demo["actions"][()]
            assert actions.shape == (120, 4)
            assert np.abs(actions).max() <= 1
        seeds = [(demo.attrs["task"], demo.attrs["seed"]) for demo in file["data"].values()]
    assert sorted(seeds) == [("drawer-open", 0), ("drawer-open", 1), ("reach", 0), ("reach", 1)]


@pytest.mark.slow
def test_the_summary_holds_seeds_success_rate_and_steps(collect):
    summary = collect(**SHORT).manifest.summary
    assert summary["episodes"] == 4
    assert summary["steps"] == 480
    assert summary["seeds"] == [0, 1]
    assert summary["expert_success"] == 1.0
    assert summary["tasks"]["reach"]["failed_seeds"] == []
    assert set(summary["versions"]) == {"metaworld", "mujoco"}


@pytest.mark.slow
def test_the_output_does_not_depend_on_the_number_of_workers(collect):
    options = {"task": ("reach",), "episodes": 3, "max_steps": 60, "noise": 0.5, "seed": 5}
    files = [
        contents(collect(f"w{workers}", workers=workers, **options).payload(PAYLOAD))
        for workers in (0, 2)
    ]
    assert files[0] == files[1]
    assert multiprocessing.active_children() == []


def test_replaying_the_recorded_actions_repeats_the_episode(collect):
    from lwdctl.envs.metaworld import MetaworldSimulator

    artifact = collect(task=("drawer-open",), episodes=1, max_steps=120, noise=0.1)
    with h5py.File(artifact.payload(PAYLOAD)) as file:
        demo = file["data/demo_0"]
        rows, actions = demo["obs/observation"][()], demo["actions"][()]
        state, rewards = demo["initial_state"][()], demo["rewards"][()]
    simulator = MetaworldSimulator(environment(("drawer-open",), 120), "drawer-open")
    observation = simulator.restore(state)
    for row, action, reward in zip(rows, actions, rewards, strict=True):
        np.testing.assert_array_equal(observation["observation"], row)
        step = simulator.step(action)
        observation = step.observation
        assert np.float32(step.reward) == reward


@pytest.mark.slow
def test_failed_experts_are_replaced_by_the_next_seeds_and_counted(collect):
    # The goal of seed 25 takes the expert 60 steps.
    options = {"task": ("reach",), "episodes": 3, "max_steps": 50, "seed": 23}
    summary = collect("dropped", **options).manifest.summary["tasks"]["reach"]
    failed = summary["failed_seeds"]
    assert failed == [25]
    assert (summary["episodes"], summary["attempts"]) == (3, 4)
    assert summary["expert_success"] == 0.75
    assert summary["last_seed"] == 26
    kept = collect("kept", keep_failures=True, **options)
    assert kept.manifest.summary["tasks"]["reach"]["attempts"] == 3
    with h5py.File(kept.payload(PAYLOAD)) as file:
        flags = {demo.attrs["seed"]: demo.attrs["success"] for demo in file["data"].values()}
    assert flags == {23: True, 24: True, 25: False}


@pytest.mark.slow
def test_an_expert_that_never_succeeds_is_reported_and_leaves_nothing(collect, tmp_path):
    with pytest.raises(SimulatorError, match="0 of 25") as caught:
        collect(task=("reach",), episodes=1, max_steps=1)
    assert "--max-steps" in caught.value.hint
    assert not list((tmp_path / "work").rglob("*.hdf5"))


def test_every_task_name_is_checked_before_anything_runs(collect, tmp_path):
    with pytest.raises(ConfigError, match="'draweropen'") as caught:
        collect(task=("reach", "draweropen"))
    assert "'drawer-open'" in caught.value.hint
    assert not list((tmp_path / "work").rglob("demonstrations*"))


def test_a_task_set_stands_for_its_tasks():
    recipe = tomllib.loads((ROOT / "pipelines/metaworld10.toml").read_text())
    # The recipe may name the ten or the set.
    assert list(EXPERTS.tasks(recipe["stage"]["collect"]["task"])) == list(EXPERTS.tasks(["lwd10"]))
    ten = EXPERTS.tasks(["MT10"])
    assert len(set(ten)) == 10
    assert {"reach", "pick-place", "peg-insert-side"} <= set(ten)
    assert EXPERTS.tasks(["reach", "mt10", "reach-v3"]) == ("reach", *ten[1:])
    assert EXPERTS.file_name(ten) == "mt10"
    with pytest.raises(ConfigError, match="'mt11'") as caught:
        EXPERTS.tasks(["mt11"])
    assert "'mt10'" in caught.value.hint


def test_without_a_task_it_is_the_simulators_first(collect):
    assert set(collect(episodes=1, max_steps=80).manifest.summary["tasks"]) == {"reach"}


def test_metaworld_has_no_operators(collect, tmp_path):
    with pytest.raises(ConfigError, match="'better_operator_1'"):
        collect(operator=("better_operator_1",))
    assert not list((tmp_path / "work").rglob("demonstrations*"))


@pytest.mark.slow
def test_a_simulator_that_is_not_installed_is_one_line():
    code = (
        "import sys; sys.modules['robosuite'] = None; from lwdctl.cli.main import main; "
        "sys.exit(main(['collect', 'robosuite', '--task', 'lift']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert install_extra("robosuite") in done.stderr
    assert "Traceback" not in done.stderr


def test_seeds_never_reach_the_evaluation_seeds(collect):
    with pytest.raises(ConfigError, match="seed"):
        collect(seed=EVALUATION_SEED_START)
    with pytest.raises(ConfigError, match="evaluation seeds"):
        collect(task=("reach",), episodes=3, max_steps=1, seed=EVALUATION_SEED_START - 2)


@pytest.mark.slow
def test_the_artifact_is_named_after_a_single_task(collect):
    assert collect(task=("reach-v3",), episodes=1, max_steps=80).name == "reach"
    assert collect(**SHORT).name == "metaworld"


@pytest.mark.slow
def test_an_interrupted_collection_goes_on_after_its_finished_episodes(collect, monkeypatch):
    options = {"task": ("reach", "drawer-open"), "episodes": 2, "max_steps": 60, "noise": 0.5}
    options["keep_failures"] = True
    whole = collect("whole", **options)
    run_expert, seeds = collecting.expert_episode, []

    def interrupted(env, task, seed, *given):
        if len(seeds) == 3:
            raise KeyboardInterrupt
        seeds.append((task, seed))
        return run_expert(env, task, seed, *given)

    monkeypatch.setattr(collecting, "expert_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect("part", **options)
    seeds.clear()
    part = collect("part", resume=True, **options)
    assert seeds == [("drawer-open", 1)]
    assert part.payload(PAYLOAD).read_bytes() == whole.payload(PAYLOAD).read_bytes()
    assert part.manifest.summary == whole.manifest.summary


@pytest.mark.slow
def test_a_simulator_that_raises_once_changes_nothing_and_twice_costs_a_seed(collect, monkeypatch):
    options = {"task": ("reach",), "episodes": 3, "max_steps": 80}
    whole = collect("whole", **options)
    run_expert, failures = collecting.expert_episode, []

    def failing(env, task, seed, *given):
        if seed == 1 and failures:
            raise failures.pop()
        return run_expert(env, task, seed, *given)

    monkeypatch.setattr(collecting, "expert_episode", failing)
    failures[:] = [RuntimeError("broken")]
    once = collect("once", **options)
    assert once.payload(PAYLOAD).read_bytes() == whole.payload(PAYLOAD).read_bytes()
    assert once.manifest.summary == whole.manifest.summary
    failures[:] = [RuntimeError("broken"), RuntimeError("broken")]
    with pytest.raises(SimulatorError, match="1 seeds were lost") as caught:
        collect("twice", **options)
    assert "seeds 1;" in caught.value.hint


def test_a_simulator_that_always_fails_is_reported_and_keeps_nothing(
    collect, monkeypatch, tmp_path
):
    def failing(*given):
        raise RuntimeError("no contact")

    monkeypatch.setattr(collecting, "expert_episode", failing)
    with pytest.raises(SimulatorError, match=r"at each of the seeds 0, 1, 2: .*no contact"):
        collect(task=("reach",), episodes=3, max_steps=80)
    assert not list((tmp_path / "work").rglob("*.hdf5"))
