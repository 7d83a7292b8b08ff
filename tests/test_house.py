"""The package as a whole: pins, extras, set-up commands, light imports, sizes."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lwdctl import __version__
from lwdctl.cli.commands import COMMANDS
from lwdctl.cli.generate import stage_parameters
from lwdctl.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "diffusers", "mujoco", "metaworld", "gymnasium", "zarr", "h5py", "matplotlib")


def pins():
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = version
    return found


def declared():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    return [item for item in requirements if item.name != "lwdctl"]


@pytest.mark.parametrize("requirement", declared(), ids=lambda item: item.name)
def test_every_dependency_is_a_range_that_holds_its_pin(requirement):
    version = pins().get(canonicalize_name(requirement.name))
    assert version, f"constraints.txt has no pin for {requirement.name}"
    assert requirement.specifier.contains(version)
    assert requirement.specifier


def test_pins_are_exact_and_portable():
    assert pins()["torch"] == "2.13.0"
    assert "torchvision" not in pins()
    assert [name for name, version in pins().items() if "+" in version] == []


def test_extras():
    extras = PROJECT["optional-dependencies"]
    apart = {"all", "dev", "trackio"}  # trackio cannot be installed with constraints.txt
    together = {"robosuite", "adroit", "minari", "onnx", "parquet", "slurm", "wandb"}
    assert set(extras) == together | apart
    assert Requirement(extras["all"][0]).extras == together


def test_extras_named_in_tables_exist():
    from lwdctl.data.formats import READERS
    from lwdctl.envs.table import ENVIRONMENTS
    from lwdctl.tracking.trackers import TRACKERS

    named = {
        row.extra for table in (READERS, ENVIRONMENTS, TRACKERS) for row in table.rows.values()
    } - {""}
    assert named <= set(PROJECT["optional-dependencies"])


def test_readme_names_the_two_set_up_commands():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"^make (\S+)", text, flags=re.MULTILINE)
    assert targets == ["quickstart", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_continuous_integration_runs_the_readmes_test_command():
    script = (ROOT / ".ci/run").read_text()
    assert re.search(r"^export SLOW=1\n(.*\n)*make test$", script, flags=re.MULTILINE)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_version_is_in_the_changelog():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_readme_links_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "pipelines/README.md"):
        text = (ROOT / name).read_text()
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        missing = [link for link in links if not ((ROOT / name).parent / link).exists()]
        assert missing == [], name


def test_architecture_names_modules_and_classes_that_exist():
    packages = {path.parent.name for path in (ROOT / "lwdctl").glob("*/__init__.py")}
    text = (ROOT / "ARCHITECTURE.md").read_text()
    found = {
        name
        for name in re.findall(r"`(?:lwdctl\.)?([a-z_]+(?:\.\w+)+)`", text)
        if name.partition(".")[0] in packages
    }
    assert len(found) > 20
    assert not {name for name in found if not exists(ROOT / "lwdctl", *name.split("."))}


def exists(place, first, *rest):
    """Whether a package holds a module, or a module something of that name, and so on."""
    if (place / first).is_dir():
        return not rest or exists(place / first, *rest)
    module = place / f"{first}.py"
    module = module if module.exists() else place / "__init__.py"
    names = rest if module.stem == first else (first, *rest)
    tree = ast.parse(module.read_text()).body
    for name in names:
        tree = next((node.body for node in tree if getattr(node, "name", "") == name), None)
        if tree is None:
            return False
    return True


def test_readme_lists_every_command():
    text = (ROOT / "README.md").read_text()
    missing = [name for name in (*STAGES, *COMMANDS) if f"lwdctl {name}" not in text]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["--help"], *[[*name.split(), "--help"] for name in (*STAGES, *COMMANDS)]],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(words):
    program = (
        "import sys; from lwdctl.cli.main import main; code = main(sys.argv[1:]); "
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]; "
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: lwdctl" in done.stdout


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "lwdctl", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"lwdctl {__version__}\n"


@pytest.mark.parametrize("name", list(STAGES))
def test_options_of_a_stage_do_not_clash(name):
    stage = STAGES[name]
    assert stage.command == name
    names = _names_used(stage_parameters(stage))
    assert len(names) == len(set(names))
    assert {"--name", "--json", "--workspace", "--run", "--quiet"} <= set(names)


@pytest.mark.parametrize("name", list(STAGES))
def test_defaults_of_a_stage_are_valid_and_explained(name):
    from dataclasses import fields

    from lwdctl.core.config import from_mapping, to_mapping

    config = STAGES[name].config
    assert from_mapping(config, to_mapping(config())) == config()
    assert [field.name for field in fields(config) if not field.metadata.get("help")] == []


def test_no_file_is_long():
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / "lwdctl").rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 600
    }
    assert long == {}


def test_nothing_is_called_utils():
    banned = {"utils", "common", "helpers", "misc", "manager"}
    assert [path for path in (ROOT / "lwdctl").rglob("*.py") if path.stem in banned] == []


def test_no_pickle():
    pattern = re.compile(
        r"^\s*(import|from) (pickle|dill|joblib(?! import cpu_count))|torch\.load\(", re.MULTILINE
    )
    found = [path for path in (ROOT / "lwdctl").rglob("*.py") if pattern.search(path.read_text())]
    assert found == []


@pytest.mark.slow
def test_every_import_of_the_package_is_a_declared_dependency():
    """What only the development set brings would be missing after a plain install."""
    names = set()
    for path in (ROOT / "lwdctl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        item
        for name, group in project["optional-dependencies"].items()
        if name != "dev"
        for item in group
    ]
    declared = {
        re.split(r"[\[<>=!~ ;]", item)[0].lower().replace("-", "_")
        for item in [*project["dependencies"], *extras]
    }
    # pandas only where it is installed: `to_pandas` needs it and says so.
    third_party = names - set(sys.stdlib_module_names) - {"lwdctl", "pandas"}
    distribution = {"PIL": "pillow", "sklearn": "scikit_learn"}
    assert {distribution.get(name, name) for name in third_party} <= declared


def _names_used(parameters):
    """Return every option name (`--x`) among the parameters, for clash checks."""
    return [
        name
        for item in parameters
        for info in item.annotation.__metadata__
        for declaration in [getattr(info, "default", ""), *(info.param_decls or ())]
        if isinstance(declaration, str)
        for name in declaration.split("/")
        if name.startswith("-")
    ]
