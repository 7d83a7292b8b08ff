"""The doctor's checks on simulators that crash, hang, fail or are not installed."""

import json
import os
import shutil
from collections import namedtuple

import pytest

from lwdctl.cli.main import main
from lwdctl.core import registry
from lwdctl.core.progress import SilentProgress
from lwdctl.envs.table import ENVIRONMENTS
from lwdctl.evaluation import doctor
from lwdctl.evaluation.doctor import examine, probe

USAGE = namedtuple("usage", "total used free")
PATIENTS = """
import os, signal, time
print("a banner")

def task_names():
    return ("walk",)

class Well:
    observations = metrics = ()
    max_steps = 1
    restore = initial_state = perturb = render = None
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


def plugin(folder, group="environments", **adapters):
    """Install the patients as a package that adds to a group of entry points."""
    (folder / "patients.py").write_text(PATIENTS)
    info = folder / "patients-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: patients\nVersion: 1.0\n")
    rows = "\n".join(f"{name} = {target}" for name, target in adapters.items())
    (info / "entry_points.txt").write_text(f"[lwdctl.{group}]\n{rows}\n")
    registry._entry_points.cache_clear()


@pytest.fixture(autouse=True)
def _patients(tmp_path, monkeypatch):
    """Only a plug-in's environments are examined."""
    for name in list(ENVIRONMENTS.rows):
        monkeypatch.delitem(ENVIRONMENTS.rows, name)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin(tmp_path, well="patients:Well")
    yield
    registry._entry_points.cache_clear()


@pytest.fixture
def only_simulators(monkeypatch):
    """Leave out the slow checks of the rest of the machine, and how full its disk is."""
    monkeypatch.setattr(doctor, "_check_device", lambda timeout: _fine("device"))
    monkeypatch.setattr(doctor, "_check_rendering", lambda timeout: [_fine("rendering")])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(2**41, 0, 2**41))


def _fine(area):
    return doctor.Finding(area, area, "ok", "")


@pytest.mark.slow
@pytest.mark.usefixtures("only_simulators")
def test_each_simulator_has_its_own_finding(tmp_path):
    plugin(
        tmp_path, well="patients:Well", failing="patients:Failing", crashing="patients:Crashing",
        gone="no_such_package:X",
    )  # fmt: skip
    found = {item.name: item for item in examine(tmp_path / "runs", SilentProgress())}
    assert found["well"].state == "ok"
    assert "'walk'" in found["well"].detail
    assert found["failing"].state == "broken"
    assert found["failing"].detail == "OSError: no mesh"
    assert found["crashing"].state == "broken"
    assert "SIGSEGV" in found["crashing"].detail
    assert found["gone"].state == "broken"
    assert "no_such_package" in found["gone"].detail
    assert found["gone"].hint.startswith("python -c 'from no_such_package import X'")
    assert found["workspace"].state == "ok"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("only_simulators")
def test_other_plugins_are_listed_with_what_breaks_them(tmp_path):
    plugin(tmp_path, "policies", fine="patients:Well", gone="patients:Nobody", mlp="patients:Well")
    found = {
        item.name: item
        for item in examine(tmp_path / "runs", SilentProgress())
        if item.area == "plug-in"
    }
    assert [found[name].state for name in ("fine", "gone", "mlp")] == ["ok", "broken", "broken"]
    assert found["fine"].detail == "policy of patients 1.0 (patients:Well)"
    assert found["gone"].detail.endswith("module 'patients' has no attribute 'Nobody'")
    assert found["gone"].hint.startswith("python -c 'from patients import Nobody'")
    assert found["mlp"].detail.startswith("the plug-in patients adds a policy named 'mlp', a name")
    assert found["mlp"].hint == "pip uninstall patients"


@pytest.mark.slow
def test_a_simulator_that_hangs_is_given_up(tmp_path):
    plugin(tmp_path, hanging="patients:Hanging")
    assert probe("environment", "hanging", timeout=3.0)["error"] == "did not answer within 3 s"


def test_an_environment_whose_extra_is_not_installed_is_missing(monkeypatch):
    answer = {"missing": "needs the package 'robosuite'", "hint": "pip install 'lwdctl[robosuite]'"}
    monkeypatch.setattr(doctor, "probe", lambda *arguments, timeout: answer)
    (finding,) = doctor._check_environment("robosuite", 1.0)
    assert (finding.state, finding.hint) == ("missing", answer["hint"])


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(100, 99, 1))
    finding = doctor._check_disk(tmp_path / "not" / "there")
    assert finding.state == "warning"
    assert str(tmp_path) in finding.detail


def test_a_backend_that_does_not_work_is_answered_with_one_that_does(monkeypatch):
    answers = {"egl": {}, "osmesa": {"error": "OSError: no library"}}
    monkeypatch.setattr(doctor, "probe", lambda *names, timeout, MUJOCO_GL: answers[MUJOCO_GL])
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    found = {item.name: item for item in doctor._check_rendering(1.0)}
    assert [found[name].state for name in ("egl", "osmesa", "MUJOCO_GL")] == [
        "ok", "missing", "warning",
    ]  # fmt: skip
    assert found["MUJOCO_GL"].hint == "export MUJOCO_GL=egl"
    assert found["osmesa"].hint == ""  # egl works
    monkeypatch.delenv("MUJOCO_GL")
    assert len(doctor._check_rendering(1.0)) == 2
    answers["egl"] = {"error": "ImportError: no libEGL"}
    assert all("libegl1" in item.hint for item in doctor._check_rendering(1.0))


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
    monkeypatch.setattr(doctor, "probe", lambda *names, timeout: answer)
    finding = doctor._check_device(1.0)
    assert (finding.name, finding.state) == (name, state)


@pytest.mark.slow
def test_the_command_on_this_machine(tmp_path, capfd):
    """Every real check but lwdctl's own simulators."""
    assert main(["doctor", "--json", "--workspace", str(tmp_path / "runs")]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["artifact"] is None
    assert answer["summary"]["works"] is True
    states = {(item["area"], item["name"]): item["state"] for item in answer["summary"]["checks"]}
    assert states["package", "python"] == "ok"
    assert states["simulator", "well"] == "ok"
    assert {area for area, _ in states} >= {"device", "rendering", "disk"}


def test_the_command_prints_a_hint_once(tmp_path, monkeypatch, capfd):
    found = [
        doctor.Finding(area, name, "missing", "", hint)
        for area, name, hint in (
            ("package", "mink", "install it"),
            ("package", "robosuite", "install it"),
            ("simulator", "robosuite", "install it"),
            ("rendering", "osmesa", "another"),
        )
    ]
    monkeypatch.setattr(doctor, "examine", lambda *given: found)
    assert main(["doctor", "-q", "--workspace", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert printed.endswith("mink, robosuite: install it\nosmesa: another\n")
    assert printed.count("install it") == 1


@pytest.mark.usefixtures("only_simulators")
def test_the_command_ends_with_1_when_something_is_broken(tmp_path, capfd):
    plugin(tmp_path, crashing="patients:Crashing")
    assert main(["doctor", "-q", "--workspace", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert "crashing" in out
    assert err.startswith("error: broken: crashing")
