"""Artifacts that declare more in sum than memory or disk hold: refused, or read with flat memory.

Every single chunk and file is within its bounds; only their number is not.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import zarr

from lwdctl.analysis import evaluations
from lwdctl.artifacts import snippet_arrays
from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.manifest import MANIFEST_NAME, with_digest
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.artifacts.zarr_columns import EPISODE_CHUNK, Column
from lwdctl.cli.main import main
from lwdctl.core.errors import ArtifactError

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
import toy_chain
from chain import Forked
from foreign import edit, sign_all, store

sys.path.pop(0)
sys.path.pop(0)
sys.path.pop(0)

CHUNK_ROWS = 2**25
CONSUMERS = (
    "verify", "verify --deep snippets/toy", "encode", "list",
    "eval --latent oracle --episodes 1 --workers 0",
    "train-vae --updates 2 --snippet-length 4 --policy-width 4 --decoder xs --device cpu",
    "train-vae --updates 2 --snippet-length 4 --policy-width 4 --decoder xs --cache ram",
    "train-baseline mlp --updates 2", "analyze reconstruction --count 2 --workers 0",
    "export minari --id a/b/c-v0 --task push --output minari", "export lerobot toy lerobot --fps 9",
)  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    toy_chain.publish_chain(root, toy_chain.TOY)
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def swell(root: Path, gigabytes: int) -> None:
    """Give the steps of a store so many decoded bytes of zeros, in chunks of 256 MB."""
    group = zarr.open_group(store(root))
    names = {"action": 2, "observation/thing": 3, "observation/hand": 2, "observation/camera": 4}
    rows = gigabytes * 10**9 // (4 * sum(names.values()))
    for name, size in names.items():
        shutil.rmtree(store(root) / name)
        column = Column(group, name, (size,), "f4", CHUNK_ROWS)
        chunk = 2**28 // (4 * size)
        column.append(np.zeros((chunk, size), "f4"))
        column.close()
        first = store(root) / name / "c.0.0"
        count = -(-rows // chunk)
        for number in range(1, count):
            os.link(first, first.with_name(f"c.{number}.0"))
        edit(store(root) / name / "zarr.json", shape=[rows, size])
    count = group["episode/start"].shape[0]
    each = rows // count
    for name, values in (("start", np.arange(count) * each), ("length", [each] * count)):
        shutil.rmtree(store(root) / "episode" / name)
        # Not through the array: zarr leaves out chunks of zeros.
        column = Column(group, f"episode/{name}", (), "i8", EPISODE_CHUNK)
        column.append(np.asarray(values, "i8"))
        column.close()
    sign_all(root)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_consumer_takes_the_memory_that_a_store_declares(root, tmp_path):
    """60 GB in sum: one error line or a result, and never more than 2 GB of memory."""
    swell(root, 60)
    with Forked() as run:
        for line in CONSUMERS:
            done = run(root, [*line.split(), "-q"])
            assert done.returncode in {0, 1}, (line, done.stderr)
            assert len(done.stderr.splitlines()) <= 2, (line, done.stderr)
            assert run.peak < 2 * 10**9, (line, run.peak)


@pytest.mark.slow
@pytest.mark.parametrize("line", [CONSUMERS[2], CONSUMERS[5], CONSUMERS[7]])
def test_rows_that_do_not_fit_into_the_free_memory_are_refused(root, monkeypatch, capsys, line):
    monkeypatch.setattr("lwdctl.artifacts.zarr_columns.SURELY_FREE", 0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9, total=2**40))
    assert main([*line.split(), "-q"]) == 1
    errors = capsys.readouterr().err
    assert "GB of memory" in errors
    assert str(root) in errors
    assert len(errors.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("line", CONSUMERS[-2:])
def test_an_episode_whose_arrays_do_not_fit_together_is_refused(root, monkeypatch, capsys, line):
    """Each of them alone would fit."""
    store_ = SnippetStore.open(store(root))
    longest = int(store_.episodes.length.max()) * 4 * (3 + 2 + 4 + 2)
    memory = SimpleNamespace(available=2 * longest, total=2**40)
    monkeypatch.setattr("lwdctl.artifacts.zarr_columns.SURELY_FREE", 0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert main([*line.split(), "-q"]) == 1
    errors = capsys.readouterr().err
    assert "an episode of" in errors
    assert str(root) in errors
    assert len(errors.splitlines()) == 2
    with pytest.raises(ArtifactError, match="GB of memory"):
        store_.episode(0)
    memory.available = longest
    with pytest.raises(ArtifactError, match="steps take"):
        store_.features(("thing", "hand", "camera", "action"), 0, 20)


def test_more_episodes_than_can_be_held_are_refused_before_they_are_read(root, monkeypatch):
    SnippetStore.open(store(root))
    monkeypatch.setattr(snippet_arrays, "MOST_VALUES", 3)
    with pytest.raises(ArtifactError, match="declares 4 episodes"):
        SnippetStore.open(store(root))


@pytest.mark.slow
@pytest.mark.parametrize("line", ["list", "verify", "train-vae"])
def test_a_file_with_holes_larger_than_the_disk_is_not_read(root, monkeypatch, capsys, line):
    path = next(root.glob("snippets/*/v*"))
    with (path / "hole.bin").open("wb") as file:
        file.truncate(2**40)
    manifest = path / MANIFEST_NAME
    body = json.loads(manifest.read_text())
    body["files"].append({"path": "hole.bin", "size": 2**40, "sha256": "0" * 64})
    body.pop("digest")
    manifest.write_bytes(with_digest(body))
    usage = SimpleNamespace(total=2**39, used=0, free=0)
    monkeypatch.setattr("lwdctl.artifacts.artifact.shutil.disk_usage", lambda path: usage)
    code = main([line, "-q"])
    printed = capsys.readouterr()
    assert code == (line != "list")
    assert "declares files of 1,100 GB" in printed.err + printed.out or line == "list"
    assert line != "list" or "damaged" in printed.out


def test_records_that_are_too_large_in_sum_are_not_read(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "runs")
    for name in ("one", "two"):
        with workspace.begin("evaluation", name, config={}) as draft:
            (draft.path / "episodes").mkdir()
            (draft.path / "episodes" / "a.json").write_text(json.dumps({"x": "y" * 100}))
            draft.publish({"results": []})
    monkeypatch.setattr(evaluations, "MOST_RECORDS", 200)
    found = workspace.artifacts("evaluation")
    with pytest.raises(ArtifactError, match="the records of 2 evaluations"):
        evaluations.read_evaluations(found, workspace.root)
    assert sha256_of(found[0].path / "episodes" / "a.json")
