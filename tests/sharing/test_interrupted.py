"""Transfers that break off go on where they stopped, in both directions."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lwdctl.artifacts.leftovers import PULLS
from lwdctl.cli.main import main
from lwdctl.core.errors import ArtifactError, DataError, LwdctlError

sys.path.insert(0, str(Path(__file__).parent))
from sharing_steps import actions, pull, push

sys.path.pop(0)

WEIGHTS = "vae/toy/v0001/ema.safetensors"
MANY = 20
"""More breaks than the client retries."""


def content_of(hub, name):
    repository = hub.repositories["me/toy"]
    return repository.commits[repository.newest][name]


@pytest.mark.slow
def test_a_pull_goes_on_at_the_byte_where_it_broke_off(hub, ours, theirs):
    push(ours)
    content = content_of(hub, WEIGHTS)
    place = f"/cdn/{hashlib.sha256(content).hexdigest()}"
    # It sends a third and hangs up; after that, nothing at all.
    hub.breaks["GET", place] = [len(content) // 3, *[0] * MANY]
    with pytest.raises(DataError, match="they are kept") as caught:
        pull(theirs)
    assert "run the same command again" in caught.value.hint
    assert theirs.artifacts() == []
    parts = list((theirs.root / PULLS).rglob("*.part"))
    assert [path.name for path in parts] == ["ema.safetensors.part"]
    kept = parts[0].stat().st_size
    assert 0 < kept <= len(content) // 3
    hub.breaks.clear()
    hub.asked.clear()
    pull(theirs)
    ranges = [item[2] for item in hub.asked if item[1] == place]
    # The toy's last weights have the same bytes as its EMA weights, under a name of their own.
    assert ranges == [f"bytes={kept}-", ""]
    # What was complete is not asked for again.
    assert not [name for name in hub.requests("GET") if name.endswith("snippets.zarr/zarr.json")]
    np.testing.assert_array_equal(actions(theirs, "diffusion/toy"), actions(ours, "diffusion/toy"))
    assert not (theirs.root / PULLS).exists()


def test_a_pull_needs_no_locks(hub, ours, theirs, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    push(ours)
    monkeypatch.setattr(fcntl, "flock", refuse)
    pull(theirs)
    assert len(theirs.artifacts()) == 4


def test_room_is_needed_only_for_what_is_missing(hub, ours, theirs, monkeypatch):
    push(ours)
    content = content_of(hub, WEIGHTS)
    place = f"/cdn/{hashlib.sha256(content).hexdigest()}"
    hub.breaks["GET", place] = [len(content) // 2, *[0] * MANY]
    with pytest.raises(DataError):
        pull(theirs)
    hub.breaks.clear()
    (part,) = (theirs.root / PULLS).rglob("*.part")
    repository = hub.repositories["me/toy"]
    everything = sum(map(len, repository.commits[repository.newest].values()))
    usage = shutil.disk_usage(theirs.root)._replace(free=everything - part.stat().st_size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    pull(theirs)
    assert len(theirs.artifacts()) == 4


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_leaves_what_it_had(pushed, theirs, ours, number):
    content = content_of(pushed, WEIGHTS)
    place = f"/cdn/{hashlib.sha256(content).hexdigest()}"
    pushed.holds[place] = 1_000_000
    line = [sys.executable, "-m", "lwdctl", "pull", "me/toy", "-q", "--workspace", str(theirs.root)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            parts = list(theirs.root.rglob("ema.safetensors.part"))
            if parts and parts[0].stat().st_size >= 900_000:
                break
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    if number == signal.SIGINT:
        assert "what was downloaded is kept; continue with: lwdctl pull me/toy" in said
    pushed.released.set()
    pushed.holds.clear()
    pushed.asked.clear()
    assert theirs.artifacts() == []
    pull(theirs)
    first = next(item[2] for item in pushed.asked if item[1] == place)
    assert int(first.removeprefix("bytes=").removesuffix("-")) >= 900_000
    np.testing.assert_array_equal(actions(theirs, "diffusion/toy"), actions(ours, "diffusion/toy"))


def test_breaks_in_every_file_are_mended_within_one_pull(hub, ours, theirs):
    push(ours)
    repository = hub.repositories["me/toy"]
    for name in repository.commits[repository.newest]:
        digest = hashlib.sha256(content_of(hub, name)).hexdigest()
        hub.breaks["GET", f"/cdn/{digest}" if name in repository.large else name] = [100]
    pull(theirs)
    assert len(theirs.artifacts()) == 4


def test_an_interrupted_pull_can_be_cleared_away(hub, ours, theirs, capsys):
    push(ours)
    hub.breaks["GET", "model.json"] = [0] * MANY
    with pytest.raises(DataError):
        pull(theirs)
    place = ["--workspace", str(theirs.root)]
    assert main(["gc", "-q", *place]) == 0
    assert "nothing is left" in capsys.readouterr().out
    assert main(["gc", "--resumable", "--delete", "-q", *place]) == 0
    assert "can be pulled to its end" in capsys.readouterr().out
    assert not (theirs.root / PULLS).exists()


def test_a_kill_between_two_artifacts_leaves_whole_ones(hub, ours, theirs, monkeypatch):
    push(ours)
    from lwdctl.sharing import pull as module

    real, moved = module._move, []

    def move(staged, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        real(staged, target)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_move", move)
        with pytest.raises(KeyboardInterrupt):
            pull(theirs)
    assert len(theirs.artifacts()) == 2
    assert theirs.damaged() == []
    hub.asked.clear()
    pulled = pull(theirs)
    assert list(pulled.artifacts.values()).count("here already") == 2
    assert not [name for name in hub.requests("GET") if "/cdn/" in name]  # all was there
    assert len(theirs.artifacts()) == 4


def test_two_pulls_of_one_repository_do_not_meet(hub, ours, theirs):
    from lwdctl.sharing.pull import _locked

    pushed = push(ours)
    with (
        _locked(theirs.root / PULLS / f"me--toy@{pushed.revision}"),
        pytest.raises(ArtifactError, match="another process pulls"),
    ):
        pull(theirs)


@pytest.mark.slow
def test_a_push_goes_on_after_the_last_whole_file(hub, ours, monkeypatch):
    monkeypatch.setattr("lwdctl.sharing.push._BATCH_FILES", 1)
    content = (ours.resolve("diffusion").path / "ema.safetensors").read_bytes()
    last = hashlib.sha256(content).hexdigest()
    hub.breaks["PUT", last] = [1000] * MANY
    with pytest.raises(DataError, match="does not respond for me/toy") as caught:
        push(ours)
    assert "run the same command again: what was sent is kept" in caught.value.hint
    assert len(hub.repositories["me/toy"].commits) == 1  # nothing half is visible
    sent = len(hub.requests("PUT"))
    assert sent == 1  # both files of the VAE have one content
    hub.breaks.clear()
    push(ours)
    assert hub.requests("PUT")[sent:] == [f"/upload/{last}"]
    assert len(hub.repositories["me/toy"].commits) == 2


def test_a_push_does_not_undo_what_another_one_did(hub, ours):
    push(ours)
    repository = hub.repositories["me/toy"]

    def commit_meanwhile(method, path):
        if path.endswith("/preupload/main"):
            repository.commit({**repository.commits[repository.newest], "notes.json": b"{}"})
        return 0

    hub.refuses = commit_meanwhile
    with pytest.raises(LwdctlError, match="412"):
        push(ours, license="apache-2.0")
