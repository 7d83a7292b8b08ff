"""Pushing and pulling: the same files, the same lineage, the same actions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import lwdctl
from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.manifest import MANIFEST_NAME
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.errors import ArtifactError, ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from sharing_steps import KINDS, actions, drop_logs, pull, push

sys.path.pop(0)


@pytest.mark.slow
def test_a_pulled_policy_acts_as_the_pushed_one(hub, ours, theirs):
    pushed = push(ours)
    expected = actions(ours, "diffusion/toy")
    np.testing.assert_array_equal(actions(theirs, "hf:me/toy"), expected)
    np.testing.assert_array_equal(actions(theirs, "diffusion/toy"), expected)
    hub.asked.clear()
    # A commit never changes: what was pulled of it serves without the Hub.
    np.testing.assert_array_equal(actions(theirs, f"hf:me/toy@{pushed.revision}"), expected)
    assert hub.asked == []


@pytest.mark.slow
def test_identity_and_lineage_are_the_original_ones(hub, ours, theirs, capsys):
    drop_logs(ours)
    pushed = push(ours)
    pulled = pull(theirs)
    assert pulled.revision == pushed.revision == hub.repositories["me/toy"].newest
    assert pulled.artifacts == {f"{kind}/toy:v1": "pulled" for kind in KINDS}
    for kind in KINDS:
        one, other = ours.resolve(kind), theirs.resolve(kind)
        assert one.digest == other.digest
        assert one.manifest == other.manifest
        origin = other.origin
        assert origin.address == f"me/toy@{pushed.revision}"
        assert (origin.reference, origin.pushed) == (one.reference, "diffusion/toy:v1")
    assert set(theirs.ancestors(theirs.resolve("diffusion"))) == set(KINDS[:-1])
    place = str(theirs.root)
    assert main(["verify", "--workspace", place, "-q"]) == 0
    assert (
        main(
            [
                "verify",
                "--deep",
                "--workspace",
                place,
                "-q",
                "snippets/toy",
                "vae/toy",
                "diffusion/toy",
            ]
        )
        == 0
    )
    assert main(["lineage", "diffusion/toy", "--workspace", place, "-q"]) == 0
    assert main(["list", "--workspace", place, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    assert len(listed["artifacts"]) == 4
    assert listed["damaged"] == []
    again = pull(theirs)
    assert set(again.artifacts.values()) == {"here already"}
    assert again.bytes == 0
    assert not (theirs.root / ".pulls").exists()


def test_only_safetensors_and_json_leave_the_machine(hub, ours):
    drop_logs(ours)
    pushed = push(ours)
    files = hub.repositories["me/toy"].commits[pushed.revision]
    ours_too = {"README.md", ".gitattributes"}
    assert all(name.endswith((".json", ".safetensors")) for name in files.keys() - ours_too)
    assert not any("c.0" in name for name in files)
    record = json.loads(files["lwdctl.json"])
    left_out = {file["path"] for item in record["artifacts"] for file in item["left_out"]}
    assert {"metrics.jsonl", "tensorboard/events.out.tfevents.1"} <= left_out
    for item in record["artifacts"]:
        for file in item["files"]:
            kind, name, version = item["reference"].replace(":v", "/").split("/")
            path = ours.root / kind / name / f"v{int(version):04d}" / file["path"]
            assert (file["size"], file["sha256"]) == (path.stat().st_size, sha256_of(path))
    assert hub.repositories["me/toy"].private


@pytest.mark.slow
def test_data_go_where_they_are_asked_for(hub, ours, theirs, capsys):
    push(ours, with_data=True)
    pulled = pull(theirs)
    assert pulled.has_more
    place = ["--workspace", str(theirs.root), "-q"]
    sizes = ["--updates", "1", "--snippet-length", "4", "--policy-width", "4", "--decoder", "xs"]
    assert main(["train-vae", *sizes, *place]) == 1
    printed = capsys.readouterr().err
    assert "was pulled without its data" in printed
    assert f"lwdctl pull me/toy@{pulled.revision} --with-data" in printed
    with pytest.raises(ArtifactError, match="without its data"):
        lwdctl.load_dataset(workspace=theirs)
    with pytest.raises(ArtifactError, match="without its data"):
        push(theirs, repository="me/other", with_data=True)
    more = pull(theirs, with_data=True)
    assert more.artifacts["snippets/toy:v1"] == "completed"
    assert more.artifacts["vae/toy:v1"] == "here already"
    assert theirs.resolve("snippets").origin.left_out == ()
    assert len(lwdctl.load_dataset(workspace=theirs)) == 4
    assert main(["verify", "--deep", "snippets/toy", *place]) == 0
    assert main(["train-vae", *sizes, *place]) == 0
    fresh = Workspace(theirs.root.parent / "fresh")
    assert set(pull(fresh, with_data=True).artifacts.values()) == {"pulled"}
    assert fresh.resolve("snippets").digest == ours.resolve("snippets").digest


@pytest.mark.slow
def test_another_artifact_of_the_name_is_left_alone(hub, ours, theirs, capsys):
    push(ours)
    with theirs.begin("vae", "toy", config={"mine": 1}) as draft:
        (draft.path / "model.json").write_text("{}")
        mine = draft.publish({})
    with pytest.raises(ArtifactError, match="vae/toy:v1 is another artifact") as caught:
        pull(theirs)
    assert "--name toy-hf" in caught.value.hint
    assert [item.type for item in theirs.artifacts()] == ["vae"]
    pulled = pull(theirs, name="hers")
    assert set(pulled.artifacts) == {
        "snippets/toy:v1", "vae/hers:v1", "latents/toy:v1", "diffusion/hers:v1",
    }  # fmt: skip
    assert theirs.resolve("vae", "toy").digest == mine.digest
    expected = actions(ours, "diffusion/toy")
    np.testing.assert_array_equal(actions(theirs, "diffusion/hers"), expected)
    assert main(["verify", "--workspace", str(theirs.root), "-q"]) == 0
    assert pulled.artifact.origin.digest == ours.resolve("diffusion").digest
    assert set(pull(theirs, name="hers").artifacts.values()) == {"here already"}
    with pytest.raises(ArtifactError, match="cannot name an artifact"):
        pull(theirs, name="../x")


@pytest.mark.slow
def test_a_new_version_replaces_the_old_one_and_revisions_stay(hub, ours, theirs):
    first = push(ours)
    old = ours.resolve("vae")
    with ours.begin("vae", "toy", config={}, inputs=[ours.resolve("snippets")]) as draft:
        for name in ("model.json", "ema.safetensors", "weights.safetensors"):
            (draft.path / name).write_bytes((old.path / name).read_bytes())
        draft.publish({})
    second = push(ours, "vae/toy:v2")
    files = hub.repositories["me/toy"].commits[second.revision]
    assert "vae/toy/v0002/model.json" in files
    assert not any(name.startswith(("diffusion", "latents", "vae/toy/v0001")) for name in files)
    hub.repositories["me/toy"].tags["paper"] = first.revision
    assert pull(theirs, "me/toy@paper").revision == first.revision
    assert pull(theirs, f"me/toy@{first.revision}").artifact.type == "diffusion"
    newest = pull(theirs)
    assert newest.artifact.reference == "vae/toy:v2"
    assert newest.artifacts["snippets/toy:v1"] == "here already"


def test_pushing_twice_sends_nothing_again(hub, ours):
    first = push(ours)
    sent = len(hub.requests("PUT"))
    assert sent
    second = push(ours)
    assert len(hub.requests("PUT")) == sent
    assert second.revision == first.revision


@pytest.mark.slow
def test_what_was_pulled_can_be_pushed_on(hub, ours, theirs):
    push(ours)
    pull(theirs)
    push(theirs, repository="you/toy")
    third = Workspace(theirs.root.parent / "third")
    pulled = pull(third, "you/toy")
    assert pulled.artifact.digest == ours.resolve("diffusion").digest
    np.testing.assert_array_equal(actions(third, "diffusion/toy"), actions(ours, "diffusion/toy"))


def test_what_acting_needs_must_be_there(hub, ours):
    vae = ours.resolve("vae").path
    vae.rename(vae.with_name("elsewhere"))
    with pytest.raises(ArtifactError, match=r"cannot act without its snippets and vae: .*gone"):
        push(ours)
    assert hub.asked == []


def test_a_damaged_file_is_not_pushed(hub, ours):
    weights = ours.resolve("vae").path / "ema.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        push(ours)
    assert hub.asked == []


def test_inputs_elsewhere_are_refused(hub, ours, tmp_path):
    other = Workspace(tmp_path / "other")
    with other.begin("vae", "far", config={}, inputs=[ours.resolve("snippets")]) as draft:
        (draft.path / "model.json").write_text("{}")
        draft.publish({})
    with pytest.raises(ArtifactError, match="a copy elsewhere would not find it"):
        push(other, "vae/far")


@pytest.mark.slow
@pytest.mark.parametrize("public", [False, True])
def test_repositories_are_private_unless_said(hub, ours, public):
    push(ours, public=public)
    assert hub.repositories["me/toy"].private is not public
    push(ours, public=public)
    with pytest.raises(ConfigError, match="is public" if public else "is private"):
        push(ours, public=not public)


def test_a_manifest_is_not_changed_by_the_trip(hub, ours, theirs):
    push(ours)
    pull(theirs)
    for kind in KINDS:
        one, other = (place.resolve(kind).path / MANIFEST_NAME for place in (ours, theirs))
        assert one.read_bytes() == other.read_bytes()
