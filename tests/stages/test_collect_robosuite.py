"""Demonstrations of Lift, judged by robomimic's own readers where they are installed."""

import json
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ConfigError, MissingExtraError
from lwdctl.data.readers.robomimic_writer import DEMONSTRATIONS_PAYLOAD
from lwdctl.envs.experts import EXPERTS
from lwdctl.evaluation.collect import expert_episode
from lwdctl.stages import collect, ingest
from lwdctl.stages.stage import StageContext

try:
    EXPERTS.load("robosuite")
except MissingExtraError as error:
    pytest.skip(error.message, allow_module_level=True)

pytestmark = pytest.mark.sim

CHOSEN = ("better_operator_1", "worse_operator_2")
OPTIONS = {"simulator": "robosuite", "task": ("lift",), "operator": CHOSEN, "episodes": 1}
# The scene in the file is rounded to six digits, as MuJoCo saves it.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return StageContext(Workspace(tmp_path_factory.mktemp("work")))


@pytest.fixture(scope="module")
def artifact(context):
    config = from_mapping(collect.CollectConfig, {**OPTIONS, "workers": 1})
    return collect.run(config, {}, context)


@pytest.fixture(scope="module")
def path(artifact):
    return artifact.payload(DEMONSTRATIONS_PAYLOAD)


@pytest.mark.slow
def test_the_file_has_robomimics_layout(path):
    with h5py.File(path) as file:
        data = file["data"]
        args = json.loads(data.attrs["env_args"])
        assert (args["env_name"], args["type"]) == ("Lift", 1)
        assert args["env_version"].startswith("1.5.")
        assert args["env_kwargs"]["controller_configs"]["body_parts"]["right"]["type"] == "OSC_POSE"
        assert data.attrs["total"] == sum(demo.attrs["num_samples"] for demo in data.values())
        for demo, operator in zip(data.values(), CHOSEN, strict=True):
            steps = demo.attrs["num_samples"]
            assert demo["states"].shape == (steps, 32)
            assert demo["states"].dtype == np.float64
            assert demo["obs/object"].shape == demo["next_obs/object"].shape == (steps, 10)
            assert demo["actions"].shape == (steps, 7)
            assert demo["rewards"][-1] == demo["dones"][-1] == 1
            assert demo.attrs["success"]
            assert demo.attrs["label"] == operator
            assert demo.attrs["model_file"].rstrip().endswith("</mujoco>")
        masks = {name: [demo.decode() for demo in file["mask"][name]] for name in file["mask"]}
    first, second = ["demo_0"], ["demo_1"]
    assert masks == {CHOSEN[0]: first, "better": first, CHOSEN[1]: second, "worse": second}


def test_operators_start_from_seeds_of_their_own(path, artifact):
    with h5py.File(path) as file:
        assert [demo.attrs["seed"] for demo in file["data"].values()] == [0, 5]
    task = artifact.manifest.summary["tasks"]["Lift"]
    assert set(task["operators"]) == set(CHOSEN)
    assert artifact.manifest.summary["seeds"] == [0, 5]
    assert artifact.name == "lift"


@pytest.mark.slow
def test_another_process_records_the_same_episode(path):
    env = EXPERTS.load("robosuite").environment(("Lift",), 0)
    again = expert_episode(env, "Lift", 5, 0.0, CHOSEN[1])
    with h5py.File(path) as file:
        demo = file["data/demo_1"]
        np.testing.assert_array_equal(demo["states"], again.states)
        np.testing.assert_array_equal(demo["actions"], again.episode.actions)
        np.testing.assert_array_equal(demo["rewards"], again.episode.rewards)
        for key, rows in again.episode.observations.items():
            np.testing.assert_array_equal(demo["obs"][key], rows)
            last = again.episode.final_observation[key]
            np.testing.assert_array_equal(demo["next_obs"][key][-1], last)


@pytest.mark.slow
def test_what_ingest_reads_is_restored_and_replayed_to_success(path, context):
    from lwdctl.envs.table import make_simulator

    config = ingest.IngestConfig(format="robomimic", paths=(str(path),))
    store = SnippetStore.open(ingest.run(config, {}, context).path)
    assert set(store.spec.labels) == set(CHOSEN)
    simulator = make_simulator(store.spec.env, "Lift")
    with h5py.File(path) as file:
        demos = {demo.attrs["seed"]: demo["actions"][()] for demo in file["data"].values()}
    for index, actions in enumerate(demos[seed] for seed in store.episodes.seed):
        simulator.restore(store.initial_state(index), store.model(index))
        assert any(simulator.step(action).success for action in actions)
    simulator.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": ("lift", "can")}, "one task"),
        ({"task": ("lft",)}, "'lft'"),
        ({"operator": ("better_operator_3",)}, "'better_operator_3'"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_anything_runs(values, message, tmp_path):
    config = from_mapping(collect.CollectConfig, {**OPTIONS, **values})
    with pytest.raises(ConfigError, match=message):
        collect.run(config, {}, StageContext(Workspace(tmp_path)))
    assert not list(tmp_path.rglob("*"))


def test_the_hint_names_each_task_once():
    with pytest.raises(ConfigError) as caught:
        EXPERTS.load("robosuite").tasks(["square"])
    assert caught.value.hint == "known: can, lift"


def test_the_file_holds_the_environment_but_not_the_limit():
    experts = EXPERTS.load("robosuite")
    assert experts.environment(("Lift",), 0).max_steps == 500
    short = experts.environment(("Lift",), 70)
    assert short.max_steps == 70
    assert "70" not in json.dumps(experts.env_args(short))


def test_both_names_of_a_task_are_understood():
    experts = EXPERTS.load("robosuite")
    assert experts.tasks(["can", "PickPlaceCan"]) == ("PickPlaceCan",)
    assert experts.tasks(["Lift"]) == experts.tasks(["lift"]) == ("Lift",)


@pytest.fixture
def robomimic(monkeypatch):
    """robomimic's readers; its `mujoco_py` is a name that it never uses with robosuite 1.5."""
    monkeypatch.setitem(sys.modules, "mujoco_py", types.ModuleType("mujoco_py"))
    try:
        from robomimic.utils import dataset, env_utils, obs_utils
    except ImportError as error:
        pytest.skip(f"robomimic cannot be imported: {error}")
    keys = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": keys, "rgb": []}})
    return types.SimpleNamespace(dataset=dataset, env_utils=env_utils, keys=keys)


def test_robomimics_dataset_returns_what_was_written(robomimic, path, capsys):
    length = 10
    found = robomimic.dataset.SequenceDataset(
        hdf5_path=str(path),
        obs_keys=robomimic.keys,
        dataset_keys=("actions", "rewards", "dones"),
        seq_length=length,
        filter_by_attribute="worse",
        hdf5_cache_mode="low_dim",
    )
    with h5py.File(path) as file:
        demo = file["data/demo_1"]
        assert len(found) == len(demo["actions"])
        for start in (0, 7, len(found) - length):
            sequence = found[start]
            rows = slice(start, start + length)
            for key in ("actions", "rewards", "dones"):
                np.testing.assert_array_equal(sequence[key], demo[key][rows])
            for key in robomimic.keys:
                np.testing.assert_array_equal(sequence["obs"][key], demo["obs"][key][rows])
                np.testing.assert_array_equal(
                    sequence["next_obs"][key], demo["next_obs"][key][rows]
                )


@pytest.mark.slow
def test_robomimics_environment_is_rebuilt_and_starts_where_the_demonstration_does(
    robomimic, path, capsys
):
    with h5py.File(path) as file:
        args = json.loads(file["data"].attrs["env_args"])
        demo = file["data/demo_0"]
        state = {"model": demo.attrs["model_file"], "states": demo["states"][0]}
        first = {key: demo["obs"][key][0] for key in robomimic.keys}
        actions = demo["actions"][()]
    judge = robomimic.env_utils.create_env_from_metadata(args)
    seen = judge.reset_to(state)
    for key, value in first.items():
        np.testing.assert_allclose(seen[key], value, atol=TOLERANCE, err_msg=key)
    solved = False
    for action in actions:
        judge.step(action.astype(np.float64))
        solved = solved or judge.is_success()["task"]
    judge.env.close()
    assert solved


def test_help_says_what_episodes_means():
    done = subprocess.run(
        [sys.executable, "-m", "lwdctl", "collect", "--help"],
        capture_output=True, text=True, check=True, env={"COLUMNS": "200", "PATH": ""},
    )  # fmt: skip
    assert "per operator" in done.stdout
