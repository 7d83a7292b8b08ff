"""Real trainings with `--track`, from the command line and from Python, and `lwdctl track`."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import lwdctl
from lwdctl.cli.main import main
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.tracking.tracking import Tracking

sys.path.insert(0, str(Path(__file__).parent))
from event_files import curves, expected, only_run, read, text

sys.path.pop(0)

SMALL = {
    "snippet_length": 8, "policy_width": 8, "decoder": "xs", "batch_size": 4, "updates": 10,
    "device": "cpu", "threads": 1,
}  # fmt: skip
LINE = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items() if key != "updates"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A PushT file of two short episodes."""
    import zarr

    path = tmp_path_factory.mktemp("recording") / "toy.zarr"
    rng = np.random.default_rng(0)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    position = 256 + np.cumsum(rng.normal(0, 2, (80, 2)), axis=0)
    state = np.concatenate([position, np.full((80, 2), 300.0), rng.random((80, 1))], axis=1)
    for name, array in {"state": state, "action": position}.items():
        root.create_array(f"data/{name}", data=array.astype(np.float32))
    root.create_group("meta").create_array("episode_ends", data=np.array([40, 80]))
    return path


@pytest.fixture
def data(recording, workspace_path):
    return lwdctl.ingest(recording, progress=SilentProgress())


def rows(artifact):
    log = artifact.path / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


class Interrupting(SilentProgress):
    """Presses Ctrl-C after so many training steps."""

    def __init__(self, after):
        self.left = after

    @contextmanager
    def task(self, title, total, unit="it", start=0):
        yield self

    def advance(self, amount=1, **fields):
        self.left -= amount
        if self.left <= 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_tracking_changes_no_weight(data, workspace_path, tmp_path, monkeypatch, capfd):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text("def init(**settings): raise OSError('offline')")
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    line = ["train-vae", *LINE, "--updates=10"]
    assert main([*line, "--name=plain"]) == 0
    assert main([*line, "--name=tracked", "--track=tensorboard,wandb", "--track-project=p"]) == 0
    plain, tracked = (workspace_path / "vae" / name / "v0001" for name in ("plain", "tracked"))
    for name in ("weights.safetensors", "ema.safetensors"):
        assert (plain / name).read_bytes() == (tracked / name).read_bytes()
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    (warning,) = warnings
    assert warning.endswith("--to wandb --project p")
    capfd.readouterr()
    found = curves(read(only_run(workspace_path)))
    assert main(["track", "vae/tracked", "--to", "tensorboard", "--json"]) == 0
    (sent,) = json.loads(capfd.readouterr().out)["summary"]["sent"]
    assert sent["id"] in warning
    assert curves(read(only_run(workspace_path))) == found


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_its_run(data, workspace_path):
    settings, tracking = {**SMALL, "updates": 100}, Tracking.of("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        run_stage(
            "train-vae",
            settings,
            workspace=data.workspace,
            track=tracking,
            progress=Interrupting(60),
        )
    before = only_run(workspace_path)
    assert [step for step, _ in curves(read(before))["kl"]] == [50]
    artifact = run_stage(
        "train-vae", settings, workspace=data.workspace, track=tracking, resume=True,
        progress=SilentProgress(),
    )  # fmt: skip
    assert only_run(workspace_path) == before
    assert curves(read(before)) == expected(rows(artifact))
    assert [row["update"] for row in rows(artifact)] == [50, 100]


@pytest.mark.slow
def test_models_in_memory(data, workspace_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    episodes = [item.observations["agent_position"] for item in data], [e.actions for e in data]
    in_memory = lwdctl.Dataset.from_arrays(*episodes)
    settings = lwdctl.VaeConfig(**SMALL)
    vae = lwdctl.train_vae(in_memory, settings, track="tensorboard", progress=SilentProgress())
    found = read(only_run(tmp_path))
    ((step, value),) = curves(found)["reconstruction"]
    assert (step, value) == (10, float(np.float32(vae.summary["reconstruction"])))
    assert "| updates | 10 |" in text(found, "summary")


@pytest.mark.long
@pytest.mark.sim
def test_evaluate(tmp_path, monkeypatch):
    class Still:
        def reset(self, seed=0, task=""):
            pass

        def act(self, observation):
            return np.zeros(2)

    monkeypatch.chdir(tmp_path)
    table = lwdctl.evaluate(
        {"mine": Still()}, env="pusht", episodes=1, max_steps=2, track="tensorboard",
        progress=SilentProgress(),
    )  # fmt: skip
    found = read(only_run(tmp_path))
    assert text(found, "tags") == "eval, mine, pusht"
    head, _, *lines = text(found, "results").splitlines()
    assert len(lines) == len(table.rows)
    place = [cell.strip() for cell in head.split("|")].index("score")
    assert [float(line.split("|")[place]) for line in lines] == [row.score for row in table.rows]


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        (["train-vae", "--track", "wandbb"], 2, "no tracker is called 'wandbb'"),
        (["eval", "--track", "trackio"], 1, "needs the package 'trackio'"),
        (["track", "vae/toy", "--to", "wandbb"], 2, "did you mean 'wandb'?"),
        (["track", "vae/toy", "--to", "tensorboard"], 1, "nothing is called|no finished vae"),
        (["track", "vae/toy", "--to", ","], 1, "no tracker is named"),
    ],
)
def test_errors(workspace_path, monkeypatch, capfd, line, code, error):
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert main(line) == code
    shown = capfd.readouterr().err
    assert any(part in shown for part in error.split("|"))
    assert "hint: " in shown


def test_other_stages_are_not_tracked(data):
    with pytest.raises(ConfigError, match="encode cannot be tracked"):
        run_stage("encode", workspace=data.workspace, track="tensorboard")


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_recipe(recording, workspace_path, tmp_path, jobs):
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in SMALL.items())
    recipe = tmp_path / "toy.toml"
    recipe.write_text(
        f"[stage.ingest]\npaths = [{json.dumps(str(recording))}]\n[stage.train-vae]\n{settings}"
    )
    made = lwdctl.run(recipe, jobs=jobs, track="tensorboard", progress=SilentProgress())
    assert curves(read(only_run(workspace_path))) == expected(rows(made["train-vae"]))


@pytest.mark.slow
def test_the_library_sends_runs(data, workspace_path):
    settings = lwdctl.VaeConfig(**SMALL)
    artifact = lwdctl.train_vae(data, settings, progress=SilentProgress()).artifact
    sent = lwdctl.track(artifact, "tensorboard", progress=SilentProgress())
    assert (sent.reference, sent.trackers) == (artifact.reference, ("tensorboard",))
    assert curves(read(only_run(workspace_path))) == expected(rows(artifact))
