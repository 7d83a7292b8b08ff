"""Recordings of robosuite, which hold states and no observations, where they cannot be replayed."""

from __future__ import annotations

import json
import sys

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError, install_extra
from lwdctl.data.reader import open_source, recognize

OSC = {
    "type": "OSC_POSE", "control_delta": True, "kp": 150, "damping": 1, "impedance_mode": "fixed",
    "input_max": 1, "input_min": -1, "output_max": 0.05, "output_min": -0.05,
    "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
SCENE = '<mujoco><asset/><worldbody><body name="gripper0_right_hand"/></worldbody></mujoco>'


@pytest.fixture
def recording(tmp_path):
    """Return a maker of a file as robosuite's `collect_human_demonstrations` leaves it."""

    def make(task="Lift", model=SCENE, **attributes):
        path = tmp_path / "demo recorded.hdf5"
        with h5py.File(path, "w") as file:
            data = file.create_group("data")
            info = json.dumps({"env_name": task, "robots": "Panda"})
            data.attrs.update(
                {"env": task, "env_info": info, "repository_version": "1.5.1"} | attributes
            )
            demo = data.create_group("demo_1")
            demo.attrs["model_file"] = model
            demo["states"] = np.zeros((5, 32))
            demo["actions"] = np.zeros((5, 7))
        return path

    return make


def refusal(path):
    with pytest.raises(DataError) as caught, open_source(None, (path,), IngestConfig()) as source:
        source.read(0)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_recording_is_recognized(recording):
    assert recognize(recording()).format == "robomimic"


def test_without_robosuite_the_commands_are_named(recording, monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    path = recording()
    error = refusal(path)
    assert "holds no observations" in error.message
    assert install_extra("robosuite") in error.hint
    assert f"convert_robosuite --dataset '{path}' && " in error.hint
    assert f"dataset_states_to_obs --dataset '{path}' --output_name" in error.hint


def test_a_converted_recording_needs_one_command(recording, monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    env_args = {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"]}}
    hint = refusal(recording(env_args=json.dumps(env_args))).hint
    assert "convert_robosuite" not in hint
    assert "dataset_states_to_obs" in hint


@pytest.mark.sim
class TestWithRobosuite:
    @pytest.fixture(autouse=True)
    def robosuite(self):
        return pytest.importorskip("robosuite")

    def test_a_task_of_another_project_is_refused(self, recording):
        error = refusal(recording("KitchenPnP"))
        assert "cannot build 'KitchenPnP'" in error.message
        assert "dataset_states_to_obs" in error.hint

    @pytest.mark.slow
    def test_a_scene_of_an_older_robosuite_is_refused(self, recording):
        error = refusal(recording(model=SCENE.replace("gripper0_right_", "gripper0_")))
        assert "data/demo_1: its scene is older than robosuite 1.5" in error.message
        assert "with the robosuite that recorded it" in error.hint

    @pytest.mark.slow
    @pytest.mark.parametrize("model", [SCENE, SCENE[:-5]])
    def test_a_scene_that_cannot_be_built_is_refused(self, recording, model):
        error = refusal(recording(model=model))
        assert "data/demo_1.attrs[model_file]: cannot be built" in error.message

    @pytest.mark.slow
    def test_a_scene_that_reads_other_files_is_refused(self, recording):
        asset = '<asset><mesh name="x" file="/etc/hosts.stl"/></asset>'
        error = refusal(recording(model=SCENE.replace("<asset/>", asset)))
        assert "names '/etc/hosts.stl', which is no file of the simulator's own" in error.message

    @pytest.mark.slow
    @pytest.mark.parametrize("controller", [None, OSC])
    def test_declared_targets_are_run_as_targets(self, tmp_path, controller):
        from lwdctl.envs.robosuite import RobosuiteSimulator

        path = tmp_path / "targets.hdf5"
        kwargs = {"robots": ["Panda"], "control_freq": 20}
        if controller:
            kwargs["controller_configs"] = controller
        env_args = {"env_name": "Lift", "type": 1, "env_version": "1.4.1", "env_kwargs": kwargs}
        with h5py.File(path, "w") as file:
            file.create_group("data").attrs["env_args"] = json.dumps(env_args)
            file["data/demo_0/actions"] = np.zeros((3, 7))
            file["data/demo_0/obs/object"] = np.zeros((3, 4))
        config = IngestConfig(actions="recorded-absolute")
        with open_source("robomimic", (path,), config) as source:
            spec = source.spec
        simulator = RobosuiteSimulator(spec.env, "Lift")
        assert simulator.action.unlimited() == spec.action
        start = simulator.reset(0)["robot0_eef_pos"]
        arm = simulator._env.robots[0].part_controllers["right"]
        turn = Rotation.from_matrix(arm.ref_ori_mat).as_rotvec()
        target = start + np.array([0.05, -0.04, 0.03])
        for _ in range(40):
            step = simulator.step(np.concatenate([target, turn, [0.0]]))
        simulator.close()
        np.testing.assert_allclose(step.observation["robot0_eef_pos"], target, atol=0.01)
