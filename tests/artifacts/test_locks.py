"""Runs on file systems whose locks are missing, or seen by one machine alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from lwdctl.artifacts import run_in_progress
from lwdctl.artifacts.leftovers import Leftover
from lwdctl.artifacts.locks import Owner, claimed
from lwdctl.core.errors import ArtifactError


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has none, as Lustre and NFS may be mounted."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave(workspace, name="lift", checkpoint=True, **owner):
    """Leave an unfinished run, as if `owner` had begun it."""
    draft = workspace.begin("vae", name, config={})
    if checkpoint:
        (draft.checkpoints / "1").write_text("half way")
    record = draft.path / "run.json"
    body = json.loads(record.read_text())
    body["owner"] |= owner
    record.write_text(json.dumps(body))
    draft._lock.close()
    return draft.path


def dead_process():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_run_is_published_without_locks(workspace, make, without_locks):
    assert make("vae", "lift").reference == "vae/lift:v1"
    assert not list(workspace.root.glob("*/*/.*"))


def test_the_run_of_a_dead_process_is_resumed_without_locks(workspace, without_locks):
    path = leave(workspace, pid=dead_process())
    (record,) = workspace.unfinished()
    assert record.resumable
    assert not record.active
    with workspace.begin("vae", "lift", config={}, resume=True) as draft:
        assert draft.path == path


def test_a_run_that_was_taken_over_belongs_to_who_took_it(workspace, without_locks):
    """Else two would write into it, and `gc` would remove it while one works."""
    path = leave(workspace, pid=dead_process())
    with workspace.begin("vae", "lift", config={}, resume=True) as draft:
        (record,) = workspace.unfinished()
        assert record.owner == Owner.this()
        assert record.active
        with pytest.raises(ArtifactError, match="file system without locks"):
            workspace.begin("vae", "lift", config={}, resume=True)
        assert workspace.leftovers(resumable=True) == []
        assert not Leftover(path, "", 0).remove()
        assert (draft.path, draft.record) == (path, record)
        artifact = draft.publish({})
    assert [file.path for file in artifact.manifest.files] == []
    assert not path.exists()


def test_what_a_dead_process_left_without_locks_is_swept_and_removed_by_gc(
    workspace, without_locks
):
    swept = leave(workspace, checkpoint=False, pid=dead_process())
    kept = leave(workspace, pid=dead_process())
    living = leave(workspace, checkpoint=False, pid=1)
    with workspace.begin("vae", "lift", config={"other": 1}):
        assert not swept.exists()
        assert kept.exists()
    (found,) = workspace.leftovers(resumable=True)
    assert found.path == kept
    assert found.remove()
    assert living.exists()
    assert not Leftover(living, "", 0).remove()


@pytest.mark.parametrize("content", ["", "{"])
def test_who_works_on_a_run_without_a_record_and_locks_is_not_known(
    workspace, without_locks, content
):
    path = leave(workspace, pid=dead_process())
    (path / "run.json").write_text(content)
    assert not Leftover(path, "", 0).remove()
    (path / "run.json").unlink()
    assert Leftover(path, "", 0).remove()


@pytest.mark.parametrize("owner", [{"host": "another-machine"}, {"pid": 1}])
def test_what_may_still_run_is_left_alone_without_locks(workspace, without_locks, owner):
    path = leave(workspace, **owner)
    (record,) = workspace.unfinished()
    assert record.active
    with pytest.raises(ArtifactError, match="file system without locks") as caught:
        workspace.begin("vae", "lift", config={}, resume=True)
    assert f"rm -r {path}" in caught.value.hint
    with workspace.begin("vae", "lift", config={}):
        assert path.exists()
    assert workspace.leftovers() == []


def test_a_requeued_job_resumes_what_it_began_elsewhere(workspace, without_locks, monkeypatch):
    path = leave(workspace, host="another-machine", job="17")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert workspace.unfinished()[0].active
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert not workspace.unfinished()[0].active
    with workspace.begin("vae", "lift", config={}, resume=True) as draft:
        assert draft.path == path


def test_a_job_does_not_take_over_from_itself(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert not Owner.this().is_gone
    # Nor from a command that runs beside it in the same job.
    assert not Owner(Owner.this().host, pid=1, job="17").is_gone
    assert Owner(Owner.this().host, dead_process(), job="17").is_gone


def test_another_machines_run_is_not_removed_though_its_lock_is_free(workspace):
    """Locks may be seen by one machine alone; then a free lock tells nothing."""
    elsewhere = leave(workspace, checkpoint=False, host="another-machine")
    here = leave(workspace, checkpoint=False, pid=dead_process())
    with workspace.begin("vae", "lift", config={"other": 1}):
        assert elsewhere.exists()
        assert not here.exists()
    (leftover,) = workspace.leftovers()  # removed when somebody asks for it
    assert leftover.path == elsewhere


def test_records_of_earlier_versions_name_no_owner(workspace):
    path = leave(workspace)
    body = json.loads((path / "run.json").read_text())
    del body["owner"]
    (path / "run.json").write_text(json.dumps(body))
    (record,) = workspace.unfinished()
    assert record.owner == Owner()
    assert not record.active


def test_a_file_that_is_open_while_it_is_removed(workspace, make, monkeypatch):
    """NFS keeps it under another name, and with it its directory."""
    remove, held = shutil.rmtree, []

    def remove_on_nfs(path, **options):
        if ".removed-" in path.name and not held:
            held.append(path)
            (path / "run.json").rename(path / ".nfs0001")
            return
        remove(path, **options)

    monkeypatch.setattr(run_in_progress.shutil, "rmtree", remove_on_nfs)
    make("vae", "lift")
    assert held
    assert not list(workspace.root.glob("*/*/.*"))


def test_one_process_has_a_claim_at_a_time(tmp_path):
    path = tmp_path / "claim"
    with claimed(path) as ours:
        assert ours
        with claimed(path) as second:
            assert not second
    with claimed(path, wait=True) as ours:
        assert ours


def test_a_claim_without_locks_is_what_the_caller_says(tmp_path, without_locks):
    with claimed(tmp_path / "claim") as ours, claimed(tmp_path / "claim", wait=True) as second:
        assert ours
        assert second
    with claimed(tmp_path / "claim", without_locks=False) as ours:
        assert not ours


def test_a_claim_follows_no_link_and_waits_for_no_pipe(tmp_path):
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "elsewhere")
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="Too many levels"), claimed(link):
        pass
    assert not (tmp_path / "elsewhere").exists()
    with contextlib.suppress(OSError), claimed(pipe):
        pass
