"""Options of sbatch, names of jobs, and files for sbatch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import lwdctl
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.slurm_jobs import frozen, stage_jobs, write_scripts
from lwdctl.pipeline.slurm_systems import parse_slurm_options
from lwdctl.pipeline.status import recipe_status

RECIPE = """\
[recipe]
title = "Seeds"
[stage."sow it"]
uses = "sow"
field_kind = "it's wheat; $(reboot)"
[stage.grow]
days = 3
[stage.reap]
needs = ["sow it", "grow"]
"""


@pytest.fixture
def recipe_run(toy_stages: object, tmp_path: Path) -> RecipeRun:
    path = tmp_path / "a field's.toml"
    path.write_text(RECIPE.replace('"sow it"]\nuses', '"sow it"]\nuses'))
    return RecipeRun(read_recipe(path), Workspace(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["partition=gpu,gpus=1,time=4:00:00"],
         {"partition": "gpu", "gpus": "1", "time": "4:00:00"}),
        (["nodelist=n1,n2,mem=4G", "exclusive=true"],
         {"nodelist": "n1,n2", "mem": "4G", "exclusive": True}),
        (["--mem-per-cpu=2G", "cpus_per_task=4"], {"mem-per-cpu": "2G", "cpus-per-task": "4"}),
        (["constraint=a100|h100", "gres=gpu:a100:1"],
         {"constraint": "a100|h100", "gres": "gpu:a100:1"}),
        (["time=1:00", "time=2:00"], {"time": "2:00"}),
        (["comment=a b=c"], {"comment": "a b=c"}),
    ],
)  # fmt: skip
def test_options_of_sbatch(texts: list[str], expected: dict[str, object]) -> None:
    assert parse_slurm_options(texts) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition=gpu\n#SBATCH --uid=root", "line break"),
        ("comment=\x1b[2J", "control character"),
        ("comment=a\u2028b", "control character"),
        ("partition", "no KEY=VALUE"),
        ("partition=", "no KEY=VALUE"),
        ("", "no KEY=VALUE"),
        ("Partition Name=gpu", "no KEY=VALUE"),
        ("gpu s=1", "no KEY=VALUE"),
        ("array=0-3", "sets 'array' itself"),
        ("time=1:00,dependency=afterok:3", "sets 'dependency' itself"),
        ("job_name=x", "sets 'job-name' itself"),
        ("no-requeue=true", "sets 'no-requeue' itself"),
        ("ntasks=4", "sets 'ntasks' itself"),
        ("wrap=rm", "sets 'wrap' itself"),
    ],
)
def test_what_is_no_option_or_not_the_users(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_slurm_options([text])
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_names_say_what_is_computed_where_and_from_what(recipe_run: RecipeRun) -> None:
    names = {key: jobs.name for key, jobs in stage_jobs(recipe_run).items()}
    assert all(
        name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in names.values()
    )
    again = RecipeRun(recipe_run.recipe, recipe_run.workspace)
    assert {key: jobs.name for key, jobs in stage_jobs(again).items()} == names

    changed = RecipeRun(recipe_run.recipe, recipe_run.workspace, ("grow.days=4",))
    other = {key: jobs.name for key, jobs in stage_jobs(changed).items()}
    assert [key for key in names if names[key] != other[key]] == ["grow", "reap"]

    elsewhere = RecipeRun(recipe_run.recipe, Workspace(recipe_run.workspace.root / "b"))
    assert not {jobs.name for jobs in stage_jobs(elsewhere).values()} & set(names.values())


def test_jobs_read_a_copy_of_the_recipe(recipe_run: RecipeRun) -> None:
    copy = frozen(recipe_run)
    before = copy.recipe.path.read_text()
    recipe_run.recipe.path.write_text("[stage.sow]\n")
    assert copy.recipe.path.read_text() == before
    assert frozen(recipe_run).recipe.path != copy.recipe.path
    assert copy.recipe.path.is_absolute()
    assert copy.workspace.root.is_absolute()
    names = {key: jobs.name for key, jobs in stage_jobs(recipe_run).items()}
    assert {key: jobs.name for key, jobs in stage_jobs(copy).items()} == names


def test_an_unknown_executor_is_refused(recipe_run: RecipeRun) -> None:
    path, root = recipe_run.recipe.path, recipe_run.workspace.root
    with pytest.raises(ConfigError, match="takes here, slurm, local, not 'Slurm'"):
        lwdctl.run(path, executor="Slurm", workspace=root)  # type: ignore[arg-type]
    assert not root.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "slurm", "jobs": 2}, "jobs is about stages on this machine"),
        ({"slurm": ["gpus=1"]}, "about jobs of Slurm"),
        ({"executor": "local", "detach": True}, "about jobs of Slurm"),
        ({"eval_jobs": 3}, "about jobs of a cluster"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    recipe_run: RecipeRun, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lwdctl.run(recipe_run.recipe.path, workspace=recipe_run.workspace, **options)
    assert not recipe_run.workspace.root.exists()


def test_one_setting_may_be_a_string(recipe_run: RecipeRun) -> None:
    path = recipe_run.recipe.path
    for given in (lwdctl.run, lwdctl.status):
        with pytest.raises(ConfigError, match="unknown setting 'x'"):
            given(path, assignments="grow.x=1", workspace=recipe_run.workspace)
        with pytest.raises(ConfigError, match="unknown setting 'x'"):
            given(path, sweep="grow.x=1,2", workspace=recipe_run.workspace)
    with pytest.raises(ConfigError, match="gpus"):
        lwdctl.run(path, executor="slurm", slurm="gpus", workspace=recipe_run.workspace)


def test_the_command_says_where_what_submits_the_jobs_is(
    recipe_run: RecipeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path / "jobs")
    path = str(recipe_run.recipe.path.absolute())
    assert main(["run", path, "--slurm-script", ".", "--workspace", str(tmp_path / "runs")]) == 0
    assert f"submit the jobs with: {tmp_path}/jobs/submit.sh" in capfd.readouterr().out
    assert main(["run", path, "--eval-jobs", "3"]) == 2
    assert "add --executor" in capfd.readouterr().err


def test_a_percent_sign_in_the_path_is_refused(recipe_run: RecipeRun, tmp_path: Path) -> None:
    run = RecipeRun(recipe_run.recipe, Workspace(tmp_path / "50%j"))
    with pytest.raises(ConfigError, match="replace the %"):
        frozen(run)
    with pytest.raises(ConfigError, match="replace the %"):
        write_scripts(recipe_run, tmp_path / "50%j", {})
    assert {item.state for item in recipe_status(run)} == {"missing"}  # it has no jobs
    assert write_scripts(run, tmp_path / "scripts", {})


FAKE_SBATCH = """\
#!/bin/bash
# Prints a number, and keeps what it was given.
count=$(cat "$SEEN/count" 2>/dev/null || echo 100)
echo $((count + 1)) > "$SEEN/count"
printf '%s\\n' "$@" > "$SEEN/$count"
echo "$count;cluster"
"""


def test_files_for_sbatch_run_the_stages_in_order(
    recipe_run: RecipeRun, tmp_path: Path, toy_stages: object
) -> None:
    """The shell scripts themselves run, with a fake sbatch and lwdctl."""
    seen, programs = tmp_path / "seen", tmp_path / "programs"
    seen.mkdir()
    programs.mkdir()
    (programs / "sbatch").write_text(FAKE_SBATCH)
    (programs / "sbatch").chmod(0o755)
    folder = tmp_path / "my files"
    submit, *files = write_scripts(recipe_run, folder, {"partition": "a b", "exclusive": True})
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SEEN": str(seen),
        "LWDCTL": "printf %s\\n",
    }  # fmt: skip
    subprocess.run([submit], env=environment, check=True, cwd=tmp_path)
    calls = [(seen / str(number)).read_text().splitlines() for number in (100, 101, 102)]
    assert not (seen / "103").exists()
    assert [call[-1] for call in calls] == [str(path) for path in files]
    assert [word for call in calls for word in call if "dependency" in word] == [
        "--dependency=afterok:100", "--dependency=afterok:100:101",
    ]  # fmt: skip

    text = files[0].read_text()
    assert "#SBATCH --partition='a b'\n#SBATCH --exclusive\n" in text
    environment["FILES"] = str(folder)
    done = subprocess.run(
        ["bash", files[0]], env=environment, check=True, capture_output=True, text=True
    )
    words = done.stdout.splitlines()
    assert words[:4] == ["run", str(folder / "a field's.toml"), "--only", "sow it"]
    assert words[-2:] == ["--workspace", str(recipe_run.workspace.root)]

    with pytest.raises(ConfigError, match="not an empty directory"):
        write_scripts(recipe_run, folder, {})
