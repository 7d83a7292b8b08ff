"""`lwdctl push` and `lwdctl pull` as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lwdctl.cli import share
from lwdctl.cli.failures import _how_to_resume
from lwdctl.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))
from sharing_steps import drop_logs

sys.path.pop(0)


def test_a_dry_run_asks_nobody_and_lists_every_file(hub, ours, capsys, monkeypatch):
    drop_logs(ours)
    monkeypatch.delenv("HF_TOKEN")
    line = ["push", "diffusion/toy", "me/toy", "--dry-run", "-q", "--workspace", str(ours.root)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "nothing was sent" in printed
    assert "vae/toy/v0001/ema.safetensors" in printed
    assert "left out of vae/toy:v1, 42 B: log.txt, metrics.jsonl, tensorboard" in printed
    assert main([*line, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["artifact"] == "diffusion/toy:v1"
    summary = answer["summary"]
    assert summary["dry_run"]
    assert summary["revision"] is None
    for file in summary["files"]:
        assert (ours.root / file["path"]).stat().st_size == file["bytes"]
    assert sum(file["bytes"] for file in summary["files"]) == summary["bytes"]
    assert main([*line, "--json", "--with-data"]) == 0
    with_data = json.loads(capsys.readouterr().out)["summary"]
    assert with_data["bytes"] > summary["bytes"]
    assert any("/snippets.zarr/action/c" in file["path"] for file in with_data["files"])
    assert hub.asked == []


def test_push_and_pull(hub, ours, theirs, capsys):
    line = ["push", "diffusion/toy", "me/toy", "--license", "mit", "--workspace", str(ours.root)]
    assert main(line) == 0
    printed = capsys.readouterr()
    commit = hub.repositories["me/toy"].newest
    assert f"pushed to {hub.url}/me/toy  {commit}" in printed.out
    assert f"lwdctl pull me/toy@{commit}" in printed.out
    assert "made the private repository me/toy" in printed.err
    assert main(["pull", f"me/toy@{commit}", "--workspace", str(theirs.root)]) == 0
    printed = capsys.readouterr()
    assert "diffusion/toy:v1  pulled" in printed.out
    assert f"from me/toy@{commit}" in printed.out
    assert "pull me/toy:" in printed.err
    assert main(["show", "vae/toy", "-q", "--workspace", str(theirs.root)]) == 0
    assert f"pulled from me/toy@{commit}" in capsys.readouterr().out
    assert main(["show", "vae/toy", "-q", "--json", "--workspace", str(ours.root)]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["manifest"]["pulled"] is None
    assert main(["pull", "me/toy", "--json", "-q", "--workspace", str(theirs.root)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["path"] == str(theirs.root / "diffusion/toy/v0001")
    assert answer["summary"] == {
        "repository": "me/toy", "revision": commit, "bytes": 0, "data_left_out": False,
        "artifacts": {f"{kind}/toy:v1": "here already"
                      for kind in ("snippets", "vae", "latents", "diffusion")},
    }  # fmt: skip


def test_a_terminal_is_asked_for_the_license(hub, ours, capsys, monkeypatch):
    asked = []

    def prompt(text, **options):
        asked.append(text)
        return " cc-by-4.0 "

    monkeypatch.setattr(share.typer, "prompt", prompt)
    line = ["push", "diffusion/toy", "me/toy", "-q", "--workspace", str(ours.root)]
    assert main(line) == 1
    assert "--license apache-2.0" in capsys.readouterr().err
    assert asked == []
    monkeypatch.setattr(share, "_is_terminal", lambda: True)
    assert main(line) == 0
    assert len(asked) == 1
    repository = hub.repositories["me/toy"]
    assert b"license: cc-by-4.0" in repository.commits[repository.newest]["README.md"]
    assert main([*line, "--dry-run"]) == 0
    assert len(asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["push", "pull"])
def test_help_is_light(command):
    code = (
        "import sys; from lwdctl.cli.main import main; main(sys.argv[1:]);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True,
        env={**os.environ},
    )  # fmt: skip
    loaded = set(done.stderr.split())
    assert "lwdctl" in loaded
    heavy = {"torch", "zarr", "matplotlib", "scipy", "huggingface_hub", "jinja2", "safetensors"}
    assert not loaded & heavy
    assert "USER/NAME" in done.stdout


def test_an_interruption_says_how_to_go_on():
    for command in ("push", "pull"):
        hint = _how_to_resume([command, "me/toy"])
        assert "kept" in hint
        assert hint.endswith(f"lwdctl {command} me/toy")


def test_nothing_is_pushed_by_a_training(hub, ours):
    sizes = "--updates 1 --snippet-length 4 --policy-width 4 --decoder xs --name again"
    line = f"train-vae {sizes} -q --workspace"
    assert main([*line.split(), str(ours.root)]) == 0
    assert ours.resolve("vae", "again")
    assert hub.asked == []
