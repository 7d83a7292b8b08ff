import os
import subprocess
import sys
import time

import pytest

from lwdctl.artifacts import leftovers as module
from lwdctl.artifacts.locks import working_in
from lwdctl.artifacts.run_in_progress import PARTS, PREFIX, RECORD_NAME, REMOVED

CONFIG = {"updates": 5}


def begun(workspace, *, checkpoint=False, kill=True, name="lift", config=CONFIG):
    """Leave what a killed process leaves: the directory, without its lock."""
    run = workspace.begin("vae", name, config=config)
    (run.path / "weights").write_bytes(b"x" * 1000)
    if checkpoint:
        (run.checkpoints / "step5").write_bytes(b"y" * 500)
    if kill:
        run._lock.close()
    return run


def reasons(workspace, **options):
    return {item.path.name: item.reason for item in workspace.leftovers(**options)}


def test_a_run_at_work_is_no_leftover(workspace):
    run = begun(workspace, kill=False)
    assert not workspace.leftovers(resumable=True)
    run.discard()


def test_a_run_without_checkpoint_is_one_and_can_be_removed(workspace):
    run = begun(workspace)
    (item,) = workspace.leftovers()
    assert item.path == run.path
    assert item.bytes == 1000 + (run.path / RECORD_NAME).stat().st_size
    assert item.remove()
    assert not (workspace.root / "vae").exists()


def test_an_unfinished_or_damaged_checkpoint_and_an_empty_folder_are_nothing_to_resume(workspace):
    run = begun(workspace)
    (run.checkpoints / ".update-000000005.safetensors.new").write_bytes(b"half")
    (run.checkpoints / "decoder" / "checkpoints").mkdir(parents=True)
    assert reasons(workspace) == {run.path.name: "ended before its first checkpoint"}
    (run.checkpoints / "decoder" / "checkpoints" / "update-000000005.safetensors").touch()
    assert not workspace.leftovers()


def test_a_resumable_run_is_one_when_asked_for_or_when_the_same_run_has_finished(workspace):
    with workspace.begin("vae", "lift", config=CONFIG) as earlier:
        earlier.publish({})
    run = begun(workspace, checkpoint=True)
    other = begun(workspace, checkpoint=True, config={"updates": 6})
    assert not workspace.leftovers()
    assert reasons(workspace, resumable=True) == dict.fromkeys(
        (run.path.name, other.path.name), "can be resumed"
    )
    with workspace.begin("vae", "lift", config=CONFIG) as again:
        again.publish({})
    assert reasons(workspace) == {run.path.name: "the same run has finished since"}


def test_a_run_killed_while_it_was_removed_is_found_and_swept(workspace, monkeypatch):
    run = begun(workspace, kill=False)
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: (path / RECORD_NAME).unlink())
    run.discard()
    monkeypatch.undo()
    (item,) = workspace.leftovers()
    assert item.path.name.startswith(REMOVED)
    with workspace.begin("vae", "lift", config=CONFIG) as again:  # sweeps what is left of its name
        again.publish({})
    assert not workspace.leftovers()


def test_a_directory_without_record_is_one_when_it_is_not_just_begun(workspace):
    path = workspace.root / "vae" / "lift" / f"{PREFIX}00"
    path.mkdir(parents=True)
    assert not workspace.leftovers()
    past = time.time() - 2 * module.SETTLED_SECONDS
    os.utime(path, (past, past))
    (item,) = workspace.leftovers()
    assert item.remove()


def test_a_refused_run_leaves_no_empty_directory(workspace):
    with pytest.raises(RuntimeError), workspace.begin("vae", "lift", config=CONFIG):
        raise RuntimeError
    assert not (workspace.root / "vae").exists()


def test_a_directory_that_an_older_version_left_empty_is_one(workspace):
    (workspace.root / "snippets" / "lift").mkdir(parents=True)
    assert reasons(workspace) == {"lift": "is empty"}
    (item,) = workspace.leftovers()
    with workspace.begin("snippets", "lift", config={}) as run:
        assert not item.remove()  # something was begun in it meanwhile
        assert run.path.exists()
    (workspace.root / "snippets" / "lift").mkdir(parents=True)
    assert item.remove()
    assert not (workspace.root / "snippets").exists()


def test_records_of_parts_that_are_being_measured_are_none(workspace):
    folder = workspace.root / "evaluation" / "lift" / f"{PARTS}1"
    with working_in(folder), working_in(folder):
        assert not workspace.leftovers(resumable=True)
    (item,) = workspace.leftovers(resumable=True)
    with working_in(folder):
        assert not item.remove()
    assert item.remove()
    assert not folder.exists()


@pytest.mark.slow
def test_beginning_beside_a_process_that_removes_the_parents_works(workspace):
    """Two processes begin and discard runs of one name; neither trips over the other."""
    code = (
        "import sys; from pathlib import Path\n"
        "from lwdctl.artifacts.workspace import Workspace\n"
        "place = Workspace(Path(sys.argv[1]))\n"
        "for _ in range(60):\n"
        "    with place.begin('vae', 'lift', config={}) as run: pass\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(workspace.root)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()
    assert not (workspace.root / "vae").exists()
