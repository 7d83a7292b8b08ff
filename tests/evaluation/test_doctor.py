"""The doctor's checks on simulators that crash, hang, fail or are not installed."""

import json
import shutil
from collections import namedtuple

import pytest

from lwdctl.cli.main import main
from lwdctl.core.progress import SilentProgress
from lwdctl.core.registry import Registry, Row
from lwdctl.envs.table import SIMULATORS
from lwdctl.evaluation import doctor
from lwdctl.evaluation.doctor import ask, examine

PATIENTS = """
import os, signal, time
print("a banner")

def task_names():
    return ("walk",)

class Well:
    def __init__(self, env, task):
        from lwdctl.core.records import ActionSpec
        self.action = ActionSpec(1, "delta", "units", (-1.0,), (1.0,))
    def reset(self, seed): pass
    def step(self, action): assert action.shape == (1,)
    def close(self): pass

class Failing(Well):
    def reset(self, seed): raise OSError("no mesh\\nmore")

class Crashing(Well):
    def step(self, action): os.kill(os.getpid(), signal.SIGSEGV)

class Hanging(Well):
    def step(self, action): time.sleep(60)
"""
TABLE = Registry(
    "environment",
    {
        "well": Row("patients:Well", ""),
        "failing": Row("patients:Failing", ""),
        "crashing": Row("patients:Crashing", ""),
        "absent": Row("no_such_package:X", "", extra="robosuite"),
    },
)


@pytest.fixture(autouse=True)
def _patients(tmp_path, monkeypatch):
    (tmp_path / "patients.py").write_text(PATIENTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def only_simulators(monkeypatch):
    """Leave out the slow checks of the rest of the machine."""
    monkeypatch.setattr(doctor, "_learning", lambda timeout: _fine("device"))
    monkeypatch.setattr(doctor, "_rendering", lambda timeout: [_fine("rendering")])


def _fine(area):
    return doctor.Finding(area, area, "ok", "")


@pytest.mark.usefixtures("only_simulators")
def test_each_simulator_is_told_apart(tmp_path):
    found = {item.name: item for item in examine(tmp_path / "runs", SilentProgress(), TABLE)}
    assert found["well"].state == "ok"
    assert "'walk'" in found["well"].detail
    assert found["failing"].state == "broken"
    assert found["failing"].detail == "OSError: no mesh"
    assert found["crashing"].state == "broken"
    assert "SIGSEGV" in found["crashing"].detail
    assert found["absent"].state == "missing"
    assert found["absent"].hint == "pip install 'lwdctl[robosuite]'"
    assert found["workspace"].state == "ok"
    assert not (tmp_path / "runs").exists()


def test_a_simulator_that_hangs_is_given_up():
    answer = ask("simulator", "hanging", "patients:Hanging", "", timeout=3.0)
    assert answer["error"] == "did not answer within 3 s"


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    finding = doctor._disk(tmp_path / "not" / "there")
    assert finding.state == "warning"
    assert str(tmp_path) in finding.detail


def test_a_backend_that_does_not_work_is_answered_with_one_that_does(monkeypatch):
    answers = {"egl": {}, "osmesa": {"error": "OSError: no library"}}
    monkeypatch.setattr(doctor, "ask", lambda *words, timeout, MUJOCO_GL: answers[MUJOCO_GL])
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    found = {item.name: item for item in doctor._rendering(1.0)}
    assert [found[name].state for name in ("egl", "osmesa", "MUJOCO_GL")] == [
        "ok", "missing", "warning",
    ]  # fmt: skip
    assert found["MUJOCO_GL"].hint == "export MUJOCO_GL=egl"
    monkeypatch.delenv("MUJOCO_GL")
    assert len(doctor._rendering(1.0)) == 2


@pytest.mark.parametrize(
    ("answer", "name", "state"),
    [
        ({"devices": ["H100, 80 GB"], "built_for": "12.8", "threads": 4}, "cuda", "ok"),
        ({"devices": [], "built_for": "12.8", "threads": 4}, "cuda", "warning"),
        ({"devices": [], "built_for": "", "threads": 4}, "cpu", "ok"),
        ({"error": "RuntimeError: operator torchvision::nms does not exist", "hint": ""}, "torch",
         "broken"),
    ],
)  # fmt: skip
def test_the_device(monkeypatch, answer, name, state):
    monkeypatch.setattr(doctor, "ask", lambda *words, timeout: answer)
    finding = doctor._learning(1.0)
    assert (finding.name, finding.state) == (name, state)


@pytest.fixture
def table(monkeypatch):
    for name in list(SIMULATORS.rows):
        monkeypatch.delitem(SIMULATORS.rows, name)
    monkeypatch.setitem(SIMULATORS.rows, "well", TABLE.rows["well"])
    monkeypatch.setitem(SIMULATORS.rows, "absent", TABLE.rows["absent"])


@pytest.mark.usefixtures("table")
def test_the_command_on_this_machine(tmp_path, capfd):
    """Every real check but the simulators; a missing extra does not count as an error."""
    assert main(["doctor", "--json", "--workspace", str(tmp_path / "runs")]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["artifact"] is None
    assert answer["summary"]["works"] is True
    states = {(item["area"], item["name"]): item["state"] for item in answer["summary"]["checks"]}
    assert states["package", "python"] == "ok"
    assert states["simulator", "well"] == "ok"
    assert states["simulator", "absent"] == "missing"
    assert {area for area, _ in states} >= {"device", "rendering", "disk"}


@pytest.mark.usefixtures("table", "only_simulators")
def test_the_command_ends_with_1_when_something_is_broken(monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(SIMULATORS.rows, "crashing", TABLE.rows["crashing"])
    assert main(["doctor", "-q", "--workspace", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert "crashing" in out
    assert "absent: pip install 'lwdctl[robosuite]'" in out
    assert err.startswith("error: broken: crashing")
