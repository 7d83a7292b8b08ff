"""Which artifact is meant, and what it was made from."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from lwdctl.artifacts.lineage import check_agreement, root_names
from lwdctl.artifacts.references import MAKERS, check_name, parse_reference, sanitize_name
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ArtifactError


@pytest.fixture
def chain(make):
    """Return a function that makes snippets, vae, latents and diffusion of one name."""

    def build(name: str):
        data = make("snippets", name)
        vae = make("vae", name, data)
        latents = make("latents", name, vae, data)
        return data, vae, latents, make("diffusion", name, latents, vae)

    return build


def test_the_workspace_is_the_one_named_then_the_variable_then_the_default(monkeypatch):
    assert Workspace.locate().root == Path("lwd-runs")
    monkeypatch.setenv("LWDCTL_WORKSPACE", "/var/there")
    assert Workspace.locate().root == Path("/var/there")
    assert Workspace.locate("here").root == Path("here")


def test_references_of_every_form(workspace, make):
    first, second = make("vae", "lift"), make("vae", "lift")
    wanted = {
        "lift": second,
        "lift:latest": second,
        "lift:v1": first,
        "vae/lift:v1": first,
        "vae/lift": second,
        str(first.path): first,
        str(second.path) + "/": second,
    }
    for reference, artifact in wanted.items():
        assert workspace.resolve("vae", reference) == artifact
        assert workspace.resolve("", reference) == artifact
    for reference in ("lift:v0", "vae/lift:v000"):
        with pytest.raises(ArtifactError, match="neither an artifact directory nor a reference"):
            workspace.resolve("vae", reference)


def test_the_name_of_a_method_is_answered_with_its_newest_artifact(workspace):
    for method in ("mlp", "mlp", "dp"):
        with workspace.begin("baseline", "lift", config={"method": method}, inputs=()) as draft:
            (draft.path / "payload.txt").write_text(method)
            draft.publish({}, seed=0)
    for kind, reference in (("baseline", "mlp"), ("", "baseline/mlp"), ("", "mlp")):
        with pytest.raises(ArtifactError, match="called 'mlp'") as error:
            workspace.resolve(kind, reference)
        assert error.value.hint == "'mlp' is a method: its newest is baseline/lift:v2"
    with pytest.raises(ArtifactError, match="called 'ldp'") as error:
        workspace.resolve("baseline", "ldp")
    assert error.value.hint == "known: lift"


def test_a_relative_path_is_found(workspace, make, monkeypatch):
    artifact = make("vae", "lift")
    monkeypatch.chdir(workspace.root.parent)
    assert workspace.resolve("vae", "runs/vae/lift/v0001").digest == artifact.digest
    monkeypatch.chdir(artifact.path)
    assert workspace.resolve("vae", ".").digest == artifact.digest


def test_the_newest_is_the_last_finished_of_any_name(workspace, chain, make):
    data, _, _, _ = chain("lift")
    again = make("vae", "wide", data)
    assert workspace.resolve("vae") == again
    assert [item.reference for item in workspace.artifacts("vae")] == ["vae/lift:v1", "vae/wide:v1"]


def test_versions_beyond_9999_are_ordered_by_number(workspace, make):
    first = make("vae", "lift")
    for path in (first.path.with_name("v10000"), first.path.with_name("v9999")):
        path.mkdir()
    assert make("vae", "lift").reference == "vae/lift:v10001"
    assert workspace.resolve("vae", "lift").version == 10001


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_nothing_found_says_which_command_makes_it(workspace, kind):
    with pytest.raises(ArtifactError, match=f"no finished {kind}") as caught:
        workspace.resolve(kind)
    assert MAKERS[kind] in caught.value.hint


def test_a_misspelt_name_and_a_missing_version_have_hints(workspace, make):
    make("vae", "lift_mh")
    with pytest.raises(ArtifactError) as caught:
        workspace.resolve("vae", "lift_hm")
    assert "lift_mh" in caught.value.hint
    with pytest.raises(ArtifactError, match="no version v7") as caught:
        workspace.resolve("vae", "lift_mh:v7")
    assert "v1" in caught.value.hint


def test_another_artifact_type_is_refused(workspace, make):
    artifact = make("vae", "lift")
    for reference in ("vae/lift", str(artifact.path)):
        with pytest.raises(ArtifactError, match="type 'vae', not 'latents'"):
            workspace.resolve("latents", reference)


def test_a_name_of_several_artifact_types_must_name_the_type(workspace, chain):
    chain("lift")
    with pytest.raises(ArtifactError, match="several types") as caught:
        workspace.resolve("", "lift")
    assert "diffusion/lift, latents/lift, snippets/lift, vae/lift" in caught.value.hint


@pytest.mark.parametrize("text", ["a:b", "a/b/c:v1", "a:v", ":v1", "/no/such"])
def test_what_is_no_reference_is_refused(workspace, text):
    with pytest.raises(ArtifactError):
        workspace.resolve("vae", text)


def test_unrelated_lineages_are_refused_and_listed_and_run_chooses(workspace, chain):
    lift, can = chain("lift"), chain("can")
    for index, kind in enumerate(("snippets", "vae", "latents", "diffusion")):
        with pytest.raises(ArtifactError, match="unrelated lineages") as caught:
            workspace.resolve(kind)
        assert f"{kind}/lift:v1" in caught.value.message
        assert f"{kind}/can:v1" in caught.value.message
        assert "--run" in caught.value.hint
        assert workspace.resolve(kind, run="lift") == lift[index]
        assert workspace.resolve(kind, run="can") == can[index]


def test_the_newest_that_derives_from_something_is_found_beside_changed_ones(workspace, chain):
    (_, vae, latents, diffusion), (data, other, *_) = chain("lift"), chain("can")
    for broken in (data, other):
        (broken.path / "manifest.json").write_text("{")
    assert workspace.resolve("latents", derived_from=[vae]) == latents
    assert workspace.resolve("diffusion", derived_from=[vae, latents]) == diffusion
    with pytest.raises(ArtifactError, match=r"no finished latents .* derives from diffusion/lift"):
        workspace.resolve("latents", derived_from=[diffusion])


def test_the_hint_begins_with_the_first_command_that_is_missing(workspace, chain, make):
    chain("lift")
    data = make("snippets", "lift")
    with pytest.raises(ArtifactError, match=r"derives from snippets/lift:v2") as caught:
        workspace.resolve("diffusion", derived_from=[data])
    assert caught.value.hint == (
        "make one with: lwdctl train-vae --snippets snippets/lift:v2, then lwdctl encode,"
        " then lwdctl train-diffusion"
    )
    vae = make("vae", "wide", data)
    with pytest.raises(ArtifactError) as caught:
        workspace.resolve("diffusion", derived_from=[data])
    assert caught.value.hint == (
        f"make one with: lwdctl encode --vae {vae.reference}, then lwdctl train-diffusion"
    )
    make("latents", "wide", vae)
    with pytest.raises(ArtifactError) as caught:
        workspace.resolve("diffusion", derived_from=[data])
    assert caught.value.hint == "make one with: lwdctl train-diffusion --latents latents/wide:v1"
    newer = make("vae", "wide", data)  # from which nothing is encoded
    for sources in ([data], [data, newer]):
        with pytest.raises(ArtifactError) as caught:
            workspace.resolve("diffusion", derived_from=sources)
        assert caught.value.hint == (
            f"make one with: lwdctl encode --vae {newer.reference}, then lwdctl train-diffusion"
        )


def test_run_follows_the_root_through_other_names(workspace, make):
    lift, can = make("snippets", "lift"), make("snippets", "can")
    wanted = make("diffusion", "big", make("vae", "wide", lift))
    make("diffusion", "small", make("vae", "narrow", can))
    assert workspace.resolve("diffusion", run="lift") == wanted
    assert workspace.resolve("diffusion", run="big") == wanted
    assert workspace.resolve("diffusion", run="wide") == wanted  # between the two
    with pytest.raises(ArtifactError, match="belongs to the run 'lfit'") as caught:
        workspace.resolve("diffusion", run="lfit")
    assert "lift" in caught.value.hint
    with pytest.raises(ArtifactError, match="does not belong to the run 'can'"):
        workspace.resolve("diffusion", "big", run="can")


def test_lineages_that_share_their_root_are_related(workspace, make):
    data = make("snippets", "lift")
    make("vae", "one", data)
    newest = make("vae", "two", make("snippets", "lift"))
    assert workspace.resolve("vae") == newest


def test_a_lineage_keeps_its_name_when_its_root_is_deleted(workspace, chain):
    data, *_, diffusion = chain("lift")
    shutil.rmtree(data.path)
    assert root_names(diffusion, workspace.root) == {"lift"}
    assert workspace.resolve("diffusion") == diffusion


def test_lineage_takes_the_vae_that_was_used_not_the_newest(workspace, chain, make):
    data, vae, latents, diffusion = chain("lift")
    make("vae", "lift", data)
    expected = {"latents": latents, "vae": vae, "snippets": data}
    assert workspace.ancestors(diffusion) == expected
    assert {item.type: item for item in workspace.inputs_of(diffusion)} == {
        "latents": latents, "vae": vae
    }  # fmt: skip
    assert workspace.ancestors(diffusion, ["vae"]) == {"vae": vae}


def test_an_input_that_is_gone_or_was_changed_is_named(workspace, chain, make):
    data, vae, latents, diffusion = chain("lift")
    shutil.rmtree(data.path)
    with pytest.raises(ArtifactError, match="input snippets/lift:v1 is gone"):
        workspace.ancestors(diffusion)
    assert workspace.ancestors(diffusion, ["vae", "latents"]) == {"vae": vae, "latents": latents}
    make("snippets", "lift", content="another under the same number")
    with pytest.raises(ArtifactError, match="input snippets/lift:v1 changed"):
        workspace.ancestors(diffusion)


def test_a_damaged_input_is_refused(workspace, chain):
    data, *_, diffusion = chain("lift")
    data.payload("deep/payload.txt").write_text("WEIGHTS")
    with pytest.raises(ArtifactError, match=r"snippets/lift:v1.*damaged"):
        workspace.ancestors(diffusion)


def test_inputs_of_different_lineage_are_refused_and_named(workspace, chain, make):
    data, vae, latents, _ = chain("lift")
    other = make("vae", "lift", data)
    with pytest.raises(ArtifactError, match="do not belong together") as caught:
        workspace.begin("diffusion", "lift", config={}, inputs=[latents, other])
    assert "latents/lift:v1 derives from vae/lift:v1" in caught.value.message
    assert "one is vae/lift:v2" in caught.value.message
    assert not list(workspace.root.glob("diffusion/lift/.*"))
    check_agreement([latents, vae, data], workspace.root)
    # Several of one type are a comparison, not a mistake.
    check_agreement([vae, other], workspace.root)


def test_an_evaluation_of_several_models_belongs_to_their_data(workspace, make):
    data = make("snippets", "lift")
    first, second = make("vae", "one", data), make("vae", "two", data)
    with workspace.begin("evaluation", "lift", config={}, inputs=[first, second]) as draft:
        evaluation = draft.publish({})
    assert workspace.inputs_of(evaluation) == [first, second]
    assert workspace.ancestors(evaluation, ["snippets"]) == {"snippets": data}
    with pytest.raises(ArtifactError, match="descends from two of type 'vae'"):
        workspace.ancestors(evaluation)
    check_agreement([data, second, evaluation], workspace.root)
    latents = make("latents", "one", first)
    for order in itertools.permutations([evaluation, second, latents]):
        with pytest.raises(ArtifactError, match="do not belong together"):
            check_agreement(order, workspace.root)
    for stranger in (make("vae", "three", data), make("snippets", "can")):
        with pytest.raises(ArtifactError, match="do not belong together"):
            check_agreement([stranger, evaluation], workspace.root)


def test_inputs_from_another_workspace_are_followed(workspace, make, tmp_path):
    vae = make("vae", "lift", make("snippets", "lift"))
    there = Workspace(tmp_path / "elsewhere")
    with there.begin("latents", "lift", config={}, inputs=[vae]) as draft:
        latents = draft.publish({})
    assert {kind: item.path for kind, item in there.ancestors(latents).items()} == {
        "vae": vae.path.resolve(),
        "snippets": workspace.root.resolve() / "snippets/lift/v0001",
    }
    assert root_names(latents, there.root) == {"lift"}


def test_a_moved_workspace_keeps_its_lineage(workspace, chain, tmp_path):
    *_, diffusion = chain("lift")
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))
    found = moved.ancestors(moved.resolve("diffusion", "lift"))
    assert {kind: item.reference for kind, item in found.items()} == {
        "latents": "latents/lift:v1",
        "vae": "vae/lift:v1",
        "snippets": "snippets/lift:v1",
    }
    assert moved.resolve("diffusion").digest == moved.resolve("", "diffusion/lift").digest
    assert diffusion.reference == "diffusion/lift:v1"


def test_a_damaged_manifest_is_listed_and_only_refused_when_asked_for(workspace, make):
    good, bad = make("vae", "lift"), make("vae", "lift")
    other = make("snippets", "lift")
    (bad.path / "manifest.json").write_text("{")
    assert workspace.artifacts() == [good, other]
    assert [item.reference for item in workspace.damaged()] == ["vae/lift:v2"]
    assert workspace.resolve("vae", "lift:v1") == good
    for reference in ("lift", "lift:v2", ""):
        with pytest.raises(ArtifactError, match=r"v0002/manifest\.json: not valid JSON"):
            workspace.resolve("vae", reference)


def test_a_renamed_directory_is_damaged(workspace, make):
    artifact = make("vae", "lift")
    artifact.path.parent.rename(artifact.path.parents[1] / "can")
    assert workspace.artifacts() == []
    with pytest.raises(ArtifactError, match="its manifest says vae/lift:v1"):
        workspace.resolve("vae", "can")


def test_hidden_and_foreign_directories_are_ignored(workspace, make):
    artifact = make("vae", "lift")
    for name in (".trash/lift/v0001", "vae/.old/v0001", "vae/lift/notes", "vae/lift/vx"):
        (workspace.root / name).mkdir(parents=True)
    assert workspace.artifacts() == [artifact]
    assert workspace.damaged() == []


@pytest.mark.parametrize("text", ["lift mh", "--x", "a/b:v1", "…", "", "ok_1.2"])
def test_sanitized_names_are_names(text):
    name = sanitize_name(text)
    check_name(name)
    assert parse_reference(name).name == name
