"""Every command that takes a path, with paths that lead nowhere, or where nothing can be."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
import toy_chain

sys.path.pop(0)

READ = (
    "ingest {}", "ingest pusht {}", "ingest lerobot {}", "inspect {}", "inspect zarr {}",
    "run {} -q", "run {} --dry-run", "status {}", "show {}", "lineage {}", "verify {}",
    "show x --workspace {}", "encode --vae {}", "export policy --diffusion {} --output made",
    "export minari {} --id a/b/c-v0 --task push --output made", "export lerobot {} made",
    "report {}", "compare {}", "bench --show {}", "push {} a/b --dry-run --license mit",
    "track {} --to tensorboard", "compare --workspace {}", "encode --workspace {}",
)  # fmt: skip
"""Commands that read something at a path."""
WRITE = (
    "export policy --output {}", "export minari --id a/b/c-v0 --task push --output {}",
    "export lerobot toy {}", "inspect data.zarr --html {}", "bench flops --out {}",
    "download pusht --output {}", "encode -q --workspace {}",
)  # fmt: skip
"""Commands that would write something there."""
LISTED = (
    "list --workspace {}", "verify --workspace {}", "gc --workspace {}",
    "gc --delete --workspace {}",
)  # fmt: skip
"""Commands that may find nothing there: a workspace need not exist."""
KINDS = {
    "long": "v" * 5000, "deep": "d/" * 3000, "loop": "loop", "in a loop": "loop/x",
    "below a file": "file/x", "below a pipe": "pipe/x", "below a device": "/dev/zero/x",
}  # fmt: skip
NOT_READ = {"pipe": "pipe", "device": "/dev/zero", "dangling": "dangling"}
NOT_WRITTEN = {"bytes": os.fsdecode(b"\xff/x")}
SOON = {"long", "below a file", "pipe", "bytes"}


def table():
    for lines, kinds in (
        (READ, KINDS | NOT_READ), (WRITE, KINDS | NOT_WRITTEN), (LISTED, KINDS | NOT_READ),
    ):  # fmt: skip
        for line in lines:
            for kind in kinds:
                # A file takes the place of a link; most may have any name.
                written = (kind == "loop" and "--html" in line) or (
                    kind == "bytes" and "policy" not in line and "encode" not in line
                )
                if not written:
                    yield pytest.param(line, kind, marks=() if kind in SOON else pytest.mark.long)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain") / "runs"
    toy_chain.publish_chain(root, toy_chain.TOY)
    return root


@pytest.mark.slow
@pytest.mark.timeout(60)  # one that is waited for has no end
@pytest.mark.parametrize(("line", "kind"), list(table()))
def test_a_path_where_nothing_can_be_is_one_line(
    chain, recording, tmp_path, monkeypatch, capfd, line, kind
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(chain))
    Path("file").touch()
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere/x")
    Path("data.zarr").symlink_to(recording)
    os.mkfifo("pipe")
    path = {**KINDS, **NOT_READ, **NOT_WRITTEN}[kind]
    code = main([word.replace("{}", path) for word in line.split()])
    errors = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error:")]
    assert (code, len(errors)) in {(1, 1), (0, 0)}, (code, errors)
    assert code == 1 or line in LISTED
    assert sorted(item.name for item in Path.cwd().iterdir()) == [
        "dangling",
        "data.zarr",
        "file",
        "loop",
        "pipe",
    ]
    assert Path("file").read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [*WRITE[:4], *WRITE[5:], "run recipe.toml --slurm-script {}", "run {}", "bench --show {}"],
)
def test_a_tilde_is_the_home_directory(chain, recording, tmp_path, monkeypatch, capfd, line):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    (home / "file").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(chain))
    Path("data.zarr").symlink_to(recording)
    Path("recipe.toml").write_text("[stage.ingest]\npaths = ['data.zarr']\n")
    assert main(line.replace("{}", "~/file/x").split()) == 1
    assert str(home / "file") in capfd.readouterr().err
    assert sorted(item.name for item in here.iterdir()) == ["data.zarr", "recipe.toml"]


@pytest.mark.slow
def test_data_and_recipes_at_paths_of_other_bytes_than_text_are_used(
    recording, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    odd = [os.fsdecode(name) for name in (b"toy-\xff.zarr", b"toy-\xfe.zarr")]
    for path in odd:
        shutil.copytree(recording, path)
    assert main(["ingest", *odd, "--name", "toy", "-q"]) == 0
    assert main(["ingest", odd[0], "--name", "one", "--json"]) == 0
    assert main(["inspect", odd[0], "--html", "page.html", "-q"]) == 0
    for line in ("verify --deep", "list", "show snippets/toy", "lineage snippets/toy"):
        assert main(line.split()) == 0
    found = capfd.readouterr()
    assert r"toy-\udcff.zarr" in found.out
    for text in (found.out, found.err, Path("page.html").read_text()):
        assert "\udcff" not in text
    store = SnippetStore.open(next(Path("runs").glob("snippets/toy/v*")))
    assert {source.split(":")[0] for source in store.episodes.source} == {
        r"toy-\udcff", r"toy-\udcfe",
    }  # fmt: skip
    recipe = Path(os.fsdecode(b"\xff.toml"))
    recipe.write_text(f"[recipe]\nname = 'toy'\n[stage.ingest]\npaths = [{str(recording)!r}]\n")
    for line in ("run {} --dry-run", "run {} -q", "status {}"):
        assert main(line.replace("{}", str(recipe)).split()) == 0
    recipe.write_text(recipe.read_text().replace("[recipe]\nname = 'toy'\n", ""))
    assert main(["status", str(recipe)]) == 0
    assert main(["run", str(recipe), "-q"]) == 0
    assert "snippets/udcff:v1" in capfd.readouterr().out
