"""A version exists whole or does not exist, whatever happens to its maker."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from lwdctl.artifacts import run_in_progress
from lwdctl.artifacts.manifest import Manifest, recording
from lwdctl.core.errors import ArtifactError

HEAD = """
import os, signal, sys
from pathlib import Path
from lwdctl.artifacts import run_in_progress as module
from lwdctl.artifacts.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
"""


def start(workspace, body: str, **streams) -> subprocess.Popen:
    code = HEAD + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code, str(workspace.root)], text=True, **streams)


def hidden(workspace) -> list:
    return list(workspace.root.glob("*/*/.*"))


def test_a_version_holds_payload_manifest_and_nothing_else(workspace, make):
    artifact = make("vae", "lift")
    assert artifact.path == workspace.root / "vae" / "lift" / "v0001"
    files = {path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*")}
    assert files == {"deep", "deep/payload.txt", "manifest.json"}
    assert hidden(workspace) == []
    manifest = artifact.manifest
    assert manifest.config == {"updates": 5}
    assert manifest.provenance["seed"] == 3
    assert manifest.provenance["started"] <= manifest.provenance["finished"]
    assert manifest == Manifest.read(artifact.path / "manifest.json")


def test_an_artifact_names_the_code_that_its_run_began_with(workspace, monkeypatch):
    code = {"lwdctl": "1", "git": {"commit": "c0", "dirty": False}}
    monkeypatch.setattr(run_in_progress, "software", lambda: dict(code))
    with workspace.begin("vae", "lift", config={}, inputs=[]) as run:
        (run.path / "payload").write_text("x")
        code["git"] = {"commit": "c1", "dirty": False}  # someone commits meanwhile
        found = run.publish({}).manifest.provenance
    assert found["git"]["commit"] == "c0"


def test_versions_count_up_and_are_never_overwritten(make):
    first, second = make("vae", "lift", content="one"), make("vae", "lift", content="two")
    assert (first.reference, second.reference) == ("vae/lift:v1", "vae/lift:v2")
    assert first.payload("deep/payload.txt").read_text() == "one"


def test_an_exception_leaves_nothing_behind(workspace):
    def fail():
        with workspace.begin("vae", "lift", config={}) as draft:
            (draft.path / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert hidden(workspace) == []
    assert workspace.artifacts() == []


@pytest.mark.parametrize("kept", ["", "the last checkpoint is kept", "what is finished is kept"])
def test_a_full_disk_names_the_path_and_what_is_kept(workspace, kept):
    draft = workspace.begin("vae", "lift", config={})

    def fail():
        with draft:
            if "checkpoint" in kept:
                (draft.checkpoints / "1").write_text("half way")
            draft.keep = "finished" in kept
            raise OSError(errno.ENOSPC, "No space left on device", str(draft.path / "weights"))

    with pytest.raises(ArtifactError, match=r"cannot write .*: No space left") as caught:
        fail()
    assert f"{draft.path}/weights" in caught.value.message
    assert kept in caught.value.hint
    assert draft.path.exists() == bool(kept)


def test_an_error_that_is_no_refused_write_of_the_run_stays_what_it_is(workspace):
    for error in (OSError(errno.ENOSPC, "full", "/elsewhere"), OSError(errno.EBADF, "bad")):
        with (
            pytest.raises(OSError, match=r"full|bad") as caught,
            workspace.begin("vae", "lift", config={}),
        ):
            raise error
        assert caught.value is error


def test_a_kept_run_in_progress_survives_an_exception_and_stays_out_of_the_artifact(workspace):
    def fail():
        with workspace.begin("vae", "lift", config={}) as draft:
            (draft.checkpoints / "last").write_text("state")
            draft.keep = True
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [item.resumable for item in workspace.unfinished()] == [True]
    with workspace.begin("vae", "lift", config={}, resume=True) as draft:
        assert draft.resumed
        assert (draft.checkpoints / "last").read_text() == "state"
        (draft.path / "weights").write_text("w")
        artifact = draft.publish({})
    assert [file.path for file in artifact.manifest.files] == ["weights"]
    assert hidden(workspace) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["_stage", "sync", "provenance", "_claim_version", "os.rename"])
def test_a_kill_while_publishing_leaves_no_version_and_a_whole_run_in_progress(workspace, moment):
    target = "os, 'rename'" if moment == "os.rename" else f"module, {moment!r}"
    body = f"""
    draft = workspace.begin("vae", "lift", config={{"a": 1}})
    (draft.checkpoints / "last").write_text("state")
    (draft.path / "weights").write_text("w")
    setattr({target}, die)
    draft.publish({{}})
    """
    assert start(workspace, body).wait(60) == -signal.SIGKILL
    assert workspace.artifacts() == []
    assert workspace.damaged() == []
    with workspace.begin("vae", "lift", config={"a": 1}, resume=True) as draft:
        artifact = draft.publish({})
    artifact.verify()
    assert [file.path for file in artifact.manifest.files] == ["weights"]


def test_a_kill_after_the_rename_leaves_a_whole_version(workspace):
    body = """
    draft = workspace.begin("vae", "lift", config={"a": 1})
    (draft.path / "weights").write_text("w")
    module.RunInProgress.discard = die
    draft.publish({})
    """
    assert start(workspace, body).wait(60) == -signal.SIGKILL
    (artifact,) = workspace.artifacts()
    assert artifact.verify() == 1


def test_a_run_in_progress_that_was_published_already_is_not_written_on(workspace):
    body = """
    draft = workspace.begin("vae", "lift", config={})
    (draft.checkpoints / "last").write_text("state")
    (draft.path / "metrics").write_text("1")
    module.RunInProgress.discard = die
    draft.publish({})
    """
    assert start(workspace, body).wait(60) == -signal.SIGKILL
    (left,) = workspace.unfinished()
    assert not left.resumable
    with pytest.raises(ArtifactError, match="no unfinished vae/lift"):
        workspace.begin("vae", "lift", config={}, resume=True)
    assert workspace.unfinished() == []
    workspace.resolve("vae").verify()


def test_links_of_a_backup_do_not_cost_a_checkpoint(workspace, tmp_path):
    body = """
    draft = workspace.begin("vae", "lift", config={})
    (draft.checkpoints / "last").write_text("state")
    die()
    """
    start(workspace, body).wait(60)
    shutil.copytree(workspace.root, tmp_path / "backup", copy_function=os.link)
    with workspace.begin("vae", "lift", config={}, resume=True) as draft:
        assert (draft.checkpoints / "last").read_text() == "state"


def test_what_a_killed_process_left_is_removed_unless_it_can_be_resumed(workspace):
    body = """
    draft = workspace.begin("vae", "lift", config={})
    CHECKPOINT
    die()
    """
    for line in ("pass", "(draft.checkpoints / 'last').write_text('state')"):
        start(workspace, body.replace("CHECKPOINT", line)).wait(60)
    assert [item.resumable for item in workspace.unfinished()] == [True]
    with workspace.begin("vae", "lift", config={}):
        states = [(item.resumable, item.active) for item in workspace.unfinished()]
    assert states == [(True, False), (False, True)]


def test_two_processes_publish_one_name_at_once(workspace):
    body = """
    made = []
    for number in range(8):
        with workspace.begin("vae", "lift", config={}) as draft:
            (draft.path / "weights").write_text(f"{os.getpid()} {number}")
            made.append(draft.publish({"text": f"{os.getpid()} {number}"}).version)
    print(*made)
    """
    processes = [start(workspace, body, stdout=subprocess.PIPE) for _ in range(2)]
    versions = [int(word) for one in processes for word in one.communicate(timeout=60)[0].split()]
    assert sorted(versions) == list(range(1, 17))
    for artifact in workspace.artifacts():
        artifact.verify()
        assert artifact.payload("weights").read_text() == artifact.manifest.summary["text"]


def test_the_second_of_two_that_want_a_number_takes_the_next(workspace, make, monkeypatch):
    make("vae", "lift")
    monkeypatch.setattr(run_in_progress, "version_of", lambda name: 0)
    assert make("vae", "lift").reference == "vae/lift:v2"


def test_a_run_in_progress_of_another_process_cannot_be_resumed(workspace):
    with (
        workspace.begin("vae", "lift", config={}),
        pytest.raises(ArtifactError, match="another process"),
    ):
        workspace.begin("vae", "lift", config={}, resume=True)


def test_nothing_to_resume_has_a_hint(workspace):
    with pytest.raises(ArtifactError, match="no unfinished vae/lift") as caught:
        workspace.begin("vae", "lift", config={}, resume=True)
    assert "--resume (resume=True in Python)" in caught.value.hint


def test_resuming_names_the_settings_and_inputs_that_differ(workspace, make):
    data, other = make("snippets", "lift"), make("snippets", "lift", content="other")
    with workspace.begin("vae", "lift", config={"rate": 0.1, "seed": 0}, inputs=[data]) as draft:
        draft.keep = True
    with pytest.raises(ArtifactError, match=r"differs in rate \(0.1, now 0.2\)\n") as caught:
        workspace.begin("vae", "lift", config={"rate": 0.2, "seed": 0}, inputs=[data], resume=True)
    assert caught.value.hint.endswith("or give the same settings and inputs")
    with pytest.raises(ArtifactError, match="its inputs: snippets/lift:v1"):
        workspace.begin("vae", "lift", config={"rate": 0.1, "seed": 0}, inputs=[other], resume=True)


def test_the_hint_names_the_inputs_of_the_run_where_others_would_be_taken(workspace, make):
    data, other = make("snippets", "lift"), make("snippets", "lift", content="other")
    for command in ("lwdctl train-vae --seed 0", "lwdctl train-vae --seed 0 --snippets lift:v1"):
        with (
            recording(command=command),
            workspace.begin("vae", "lift", config={}, inputs=[data]) as draft,
        ):
            draft.keep = True
        with pytest.raises(ArtifactError, match="its inputs") as caught:
            workspace.begin("vae", "lift", config={}, inputs=[other], resume=True)
        again = "lwdctl train-vae --seed 0 --snippets lift:v1 --resume"
        assert caught.value.hint.endswith(f"resume this one: {again}")


@pytest.mark.parametrize(
    ("command", "again"),
    [("lwdctl train-vae --seed 0", "lwdctl train-vae --seed 0 --resume"),
     ("lwdctl run all.toml", "lwdctl run all.toml"), ("run_stage('train-vae')", "")],
)  # fmt: skip
def test_the_hint_resumes_with_the_command_that_began_the_run(workspace, command, again):
    with recording(command=command), workspace.begin("vae", "lift", config={"rate": 1}) as draft:
        draft.keep = True
    assert workspace.unfinished()[0].command == command
    with pytest.raises(ArtifactError, match="differs in rate") as caught:
        workspace.begin("vae", "lift", config={"rate": 2}, resume=True)
    assert caught.value.hint.endswith(again or "give the same settings and inputs")


def test_the_newest_matching_run_in_progress_is_resumed(workspace):
    paths = []
    for rate in (1, 2, 1, 3):
        with workspace.begin("vae", "lift", config={"rate": rate}) as draft:
            (draft.checkpoints / "last").write_text("state")
            draft.keep = True
        paths.append(draft.path)
    with workspace.begin("vae", "lift", config={"rate": 1}, resume=True) as draft:
        assert draft.path == paths[2]


def test_a_run_that_nobody_works_on_is_resumed_beside_one_at_work(workspace):
    with workspace.begin("vae", "lift", config={}) as free:
        (free.checkpoints / "last").write_text("state")
    with workspace.begin("vae", "lift", config={}) as at_work:
        (at_work.checkpoints / "last").write_text("state")
        with workspace.begin("vae", "lift", config={}, resume=True) as draft:
            assert draft.path == free.path
            with pytest.raises(ArtifactError, match="another process works on"):
                workspace.begin("vae", "lift", config={}, resume=True)


def test_a_link_in_the_payload_is_refused(workspace):
    with workspace.begin("vae", "lift", config={}) as draft:
        (draft.path / "link").symlink_to("/etc/passwd")
        with pytest.raises(ArtifactError, match="neither a file nor a directory"):
            draft.publish({})
    assert workspace.artifacts() == []


def test_without_hard_links_files_are_copied(workspace, make, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    assert make("vae", "lift").verify() == len("weights")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a:v2", "a b", ".."])
def test_a_name_that_cannot_be_a_reference_is_refused(workspace, name):
    with pytest.raises(ArtifactError, match="cannot name"):
        workspace.begin("vae", name, config={})


def test_a_workspace_that_cannot_be_written_is_an_error_of_ours(workspace):
    workspace.root.write_text("a file")
    with pytest.raises(ArtifactError, match="cannot write in the workspace"):
        workspace.begin("vae", "lift", config={})


def test_listing_a_workspace_makes_no_directory(workspace):
    assert workspace.artifacts() == workspace.unfinished() == workspace.damaged() == []
    assert not workspace.root.exists()
