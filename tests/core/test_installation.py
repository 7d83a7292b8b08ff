"""Package checks against made-up installations."""

from importlib import metadata
from pathlib import Path

import pytest

from lwdctl.core import errors, installation
from lwdctl.core.errors import install_extra
from lwdctl.core.installation import CONFLICTS, check_conflicts, check_packages

DECLARED = [
    "numpy<3,>=2.0",
    "Zarr<4,>=3.1",
    'robosuite==1.5.1; extra == "robosuite"',
    'mink<0.0.14; extra == "robosuite"',
    'lwdctl[robosuite]; extra == "all"',
    'pytest>=8; extra == "dev"',
]


def checked(**installed):
    found = check_packages(DECLARED, lambda name: installed.get(name.lower(), ""))
    return {item.name: item for item in found}


def test_what_is_installed_and_fits_is_ok():
    found = checked(
        numpy="2.4.6", zarr="3.1.6", robosuite="1.5.1", mink="0.0.13", robomimic="0.3.0"
    )
    assert {item.state for item in found.values()} == {"ok"}
    assert set(found) == {"python", "lwdctl", "numpy", "zarr", "robosuite", "mink", "robomimic"}
    assert found["zarr"].detail == "3.1.6"


def test_a_missing_extra_is_missing_with_its_command():
    found = checked(numpy="2.4.6", zarr="3.1.6")
    assert found["robosuite"].state == found["mink"].state == "missing"
    assert found["robosuite"].hint == install_extra("robosuite")
    assert found["robomimic"].state == "missing"
    assert "--no-deps" in found["robomimic"].hint


def test_a_missing_dependency_is_broken_and_a_foreign_version_a_warning():
    found = checked(numpy="1.26.4")
    assert found["zarr"].state == "broken"
    assert found["zarr"].hint == "pip install 'Zarr<4,>=3.1'"
    assert found["numpy"].state == "warning"
    assert "1.26.4" in found["numpy"].detail


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(installation, "installed_version", lambda name: "0.1.0")


def test_lwdctl_that_is_only_on_the_path_is_a_warning(monkeypatch):
    monkeypatch.setattr(installation, "installed_version", lambda name: "")
    found = {item.name: item for item in check_packages([])}
    assert found["lwdctl"].state == "warning"
    assert "pip install" in found["lwdctl"].hint


def test_our_own_dependencies_are_read():
    try:
        metadata.version("lwdctl")
    except metadata.PackageNotFoundError:
        pytest.skip("lwdctl is used without being installed")
    names = {item.name for item in check_packages()}
    assert {"torch", "numpy", "zarr", "robosuite"} <= names
    assert "pytest" not in names


GOOD = {
    "metaworld": "3.1.1", "mujoco": "3.3.0", "robosuite": "1.5.1", "numpy": "2.4.6",
    "zarr": "3.1.6", "hypnettorch": "0.0.4", "matplotlib": "3.11.2", "torch": "2.13.0+cpu",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({"mujoco": "4.0.1"}, "broken", "metaworld 3.1.1 with mujoco 4.0.1"),
        ({"robosuite": "1.5.2"}, "warning", "robosuite 1.5.2 with numpy 2.4.6"),
        ({"robosuite": "1.4.1"}, "warning", "robosuite 1.4.1"),
        ({"torchvision": "0.28.0"}, "warning", "torchvision 0.28.0 with torch 2.13.0+cpu"),
        ({"zarr": "2.18.7"}, "broken", "zarr 2.18.7"),
        ({"matplotlib": ""}, "broken", "hypnettorch 0.0.4 with no matplotlib"),
    ],
)
def test_versions_that_do_not_go_together_are_named(change, state, words):
    installed = {**GOOD, **change}
    (finding,) = check_conflicts(version=lambda name: installed.get(name, ""))
    assert (finding.state, finding.name) == (state, words)
    assert finding.hint
    assert finding.detail


@pytest.mark.parametrize("torch", ["2.13.0", "2.13.0+cu130", ""])
def test_torchvision_is_no_conflict_beside_another_build_of_torch(torch):
    installed = {**GOOD, "torchvision": "0.28.0", "torch": torch}
    assert check_conflicts(version=lambda name: installed.get(name, "")) == []


def test_the_tested_versions_go_together():
    assert check_conflicts(version=lambda name: GOOD.get(name, "")) == []
    assert check_conflicts(version=lambda name: "") == []
    assert len(CONFLICTS) == 6


def test_an_extra_is_installed_as_the_readme_says(monkeypatch, tmp_path):
    checkout = Path(errors.__file__).parents[2]
    command = f"pip install -c {checkout}/constraints.txt -e '{checkout}[minari]'"
    assert errors.install_extra("minari") == command
    assert errors.install_extra("trackio") == "pip install 'lwdctl[trackio]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "lwdctl" / "core" / "errors.py"))
    assert errors.install_extra("minari") == "pip install 'lwdctl[minari]'"
