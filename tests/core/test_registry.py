"""Tables of named implementations, with what installed packages add to them."""

import sys

import pytest

from lwdctl.core import registry
from lwdctl.core.errors import ConfigError
from lwdctl.core.registry import Registry, Row

TABLE = Registry(
    "denoiser", {"mlp": Row("json:dumps", "Ours.")}, entry_points="lwdctl.test_denoisers"
)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package with entry points of TABLE's group."""

    def install(package, points):
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{TABLE.entry_points}]\n{points}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry._entry_points.cache_clear()

    yield install
    registry._entry_points.cache_clear()


def test_an_installed_plugin_adds_rows(install):
    assert list(TABLE) == ["mlp"]
    install("fancy", "mamba = json:loads")
    assert list(TABLE) == ["mlp", "mamba"]
    assert "mamba" in TABLE
    assert TABLE.load("mamba")("[1]") == [1]
    assert TABLE.all_rows()["mamba"].summary == "from the plug-in fancy"
    with pytest.raises(ConfigError, match="no denoiser is called 'mambo'") as error:
        TABLE.load("mambo")
    assert error.value.hint == "did you mean 'mamba'?"


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_such_name", "AttributeError: module 'json' has no attribute 'no_such_name'"),
        ("broken_plugin:x", "NameError: name 'nothing_here' is not defined"),
    ],
)
def test_a_broken_plugin_is_named_with_its_cause(install, tmp_path, target, cause):
    (tmp_path / "broken_plugin.py").write_text("x = nothing_here\n")
    install("fancy", f"mamba = {target}")
    with pytest.raises(ConfigError, match="'mamba' of the plug-in fancy cannot be imported") as e:
        TABLE.load("mamba")
    assert e.value.message.endswith(f" ({target}): {cause}")
    module, _, name = target.partition(":")
    assert e.value.hint.startswith(f"python -c 'from {module} import {name}' shows where it fails")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("x = nothing_here", r"NameError: .* \(in <module> of own_module.py, line 1\)"),
        ("def x(:", r"SyntaxError: invalid syntax \(own_module.py, line 1\)"),
        ("import sys\nsys.exit('no license')", r"SystemExit: no license \(in .*, line 2\)"),
        ("x = int('x')", r"ValueError: invalid literal .* line 1\)"),
        ("y = 1", "AttributeError: module 'own_module' has no attribute 'x'"),
        ("from math import y", "ImportError: cannot import name 'y' from 'math'"),
    ],
)
def test_a_broken_module_of_the_users_is_named_with_its_cause(
    tmp_path, monkeypatch, content, cause
):
    (tmp_path / "own_module.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    table = Registry("snake", {}, import_paths=True)
    with pytest.raises(ConfigError, match=f"snake 'own_module:x' cannot be imported: {cause}") as e:
        table.load("own_module:x")
    assert "importlib.import_module('own_module').x" in e.value.hint


@pytest.mark.parametrize("name", ["own-module", "3dof"])
def test_a_module_may_have_any_name_that_python_imports(tmp_path, monkeypatch, name):
    (tmp_path / f"{name}.py").write_text("x = 7")
    monkeypatch.syspath_prepend(tmp_path)
    assert Registry("snake", {}, import_paths=True).load(f"{name}:x") == 7


def test_a_plugin_cannot_take_a_name_of_ours(install):
    install("fancy", "mlp = json:loads")
    with pytest.raises(ConfigError, match="fancy adds a denoiser named 'mlp', a name") as error:
        TABLE.load("mlp")
    assert error.value.hint == "pip uninstall fancy"


def test_two_plugins_cannot_have_one_name(install):
    install("fancy", "mamba = json:loads")
    install("plain", "mamba = json:dumps")
    with pytest.raises(ConfigError, match=r"plain adds a .* 'mamba', .* fancy already") as error:
        TABLE.check("mamba")
    assert error.value.hint == "pip uninstall plain"


def test_import_paths_are_names_where_they_are_allowed():
    with pytest.raises(ConfigError, match="no denoiser is called 'json:loads'"):
        TABLE.load("json:loads")
    assert Registry("denoiser", {}, import_paths=True).load("json:loads")("2") == 2
