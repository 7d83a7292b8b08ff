"""What comes out of a repository decides nothing but numbers and texts."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import lwdctl
from lwdctl.artifacts.manifest import MANIFEST_NAME, InputRef, Manifest, digest_of
from lwdctl.artifacts.origin import ORIGIN_NAME
from lwdctl.cli.main import main
from lwdctl.core.errors import ArtifactError, ConfigError, DataError, LwdctlError
from lwdctl.sharing.shared_set import SET_NAME, SharedSet

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "artifacts"))
from foreign import ATTACKS, sign_all
from sharing_steps import pull, push

sys.path.pop(0)
sys.path.pop(0)


def files_of(hub):
    repository = hub.repositories["me/toy"]
    return repository.commits[repository.newest]


def changed(hub, change, *, sign=True):
    """Return a changed record of the set, whose own digest fits where `sign` is true."""
    body = json.loads(files_of(hub)[SET_NAME])
    body.pop("digest")
    change(body)
    return json.dumps({**body, "digest": digest_of(body) if sign else "0"}).encode()


def rewrite(hub, change, *, sign=True):
    """Push a changed record of the set."""
    files_of(hub)[SET_NAME] = changed(hub, change, sign=sign)


def entry(body, kind, path=None):
    """Return the record of an artifact, or of a file in it."""
    item = next(one for one in body["artifacts"] if one["reference"].startswith(f"{kind}/"))
    return item if path is None else next(one for one in item["files"] if one["path"] == path)


def nothing_came(theirs, tmp_path):
    assert theirs.artifacts() == []
    assert theirs.damaged() == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    "place", [40, pytest.param(0, marks=pytest.mark.long), pytest.param(-1, marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    "name",
    [
        "vae/toy/v0001/ema.safetensors", "vae/toy/v0001/model.json", "vae/toy/v0001/manifest.json",
        "snippets/toy/v0001/snippets.zarr/zarr.json", "lwdctl.json",
    ],
)  # fmt: skip
def test_one_changed_byte_is_refused(pushed, theirs, tmp_path, name, place):
    hub = pushed
    content = bytearray(files_of(hub)[name])
    content[place] ^= 1
    hub.instead[name] = bytes(content)
    with pytest.raises(LwdctlError) as caught:
        pull(theirs)
    assert name.rpartition("/")[2] in caught.value.message
    nothing_came(theirs, tmp_path)
    hub.instead.clear()
    pull(theirs)


def test_more_bytes_than_declared_are_not_written(pushed, theirs, tmp_path):
    hub = pushed
    name = "vae/toy/v0001/model.json"
    hub.instead[name] = files_of(hub)[name] + b" " * 10_000_000
    with pytest.raises(DataError, match="sends more than"):
        pull(theirs)
    kept = [path for path in theirs.root.rglob("model.json*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 1_000_000
    nothing_came(theirs, tmp_path)


def test_an_artifact_larger_than_the_disk_is_refused_first(pushed, theirs, monkeypatch):
    hub = pushed
    usage = shutil.disk_usage(theirs.root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    hub.asked.clear()
    with pytest.raises(ArtifactError, match=r"only 1\.0 kB are free"):
        pull(theirs)
    assert not [name for name in hub.requests("GET") if "/cdn/" in name]


NAMES = [
    "../x.json", "/etc/x.json", "a/../../x.json", "a\\x.json", "a//x.json", "./x.json", "x\n.json",
    "\u202ex.json", "model.json/x.json", ORIGIN_NAME, "run.py", "weights.pt", "weights.pkl", "",
    "manifest.json", "a\0.json", "a" * 250 + ".json", "a/" * 30 + "a.json",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_or_is_no_data_is_refused(pushed, theirs, tmp_path, name):
    hub = pushed
    content = b"{}"
    file = {"path": name, "size": 2, "sha256": hashlib.sha256(content).hexdigest()}
    record = changed(hub, lambda body: entry(body, "vae")["files"].append(file))
    with pytest.raises(ArtifactError):
        SharedSet.parse(record, "set")
    if name in NAMES[:2]:  # and so does the whole way
        files_of(hub).update({f"vae/toy/v0001/{name}": content, SET_NAME: record})
        with pytest.raises(ArtifactError):
            pull(theirs)
        nothing_came(theirs, tmp_path)


@pytest.mark.parametrize(
    "reference",
    ["../x/y:v1", "vae/..:v1", "vae/.x:v1", ".pulls/x:v1", "vae/toy", "vae/toy:latest", "toy:v1",
     "vae/toy:v0", "vae/a b:v1", "vae/toy:v01", "/vae/toy:v1", "run.json/toy:v1", "src/toy:v1",
     f"vae/{'a' * 250}:v1"],
)  # fmt: skip
def test_a_reference_that_is_no_place_of_a_workspace_is_refused(pushed, theirs, reference):
    hub = pushed
    record = changed(hub, lambda body: entry(body, "vae").update(reference=reference))
    with pytest.raises(ArtifactError):
        SharedSet.parse(record, "set")


CHANGES = {
    "another size": lambda body: entry(body, "vae", "model.json").update(size=1),
    "a negative size": lambda body: entry(body, "vae", "model.json").update(size=-1),
    "a text as a size": lambda body: entry(body, "vae", "model.json").update(size="1"),
    "another digest": lambda body: entry(body, "vae", "model.json").update(sha256="0" * 64),
    "no digest": lambda body: entry(body, "vae", "model.json").update(sha256=""),
    "a file twice": lambda body: entry(body, "vae")["files"].append(
        entry(body, "vae", "model.json")
    ),
    "no manifest": lambda body: entry(body, "vae")["files"].pop(0),
    "another manifest": lambda body: entry(body, "vae").update(digest="0" * 64),
    "a file too few": lambda body: entry(body, "vae")["files"].pop(),
    "a left out file too many": lambda body: entry(body, "vae")["left_out"].append(
        {"path": "log.txt", "size": 1}
    ),
    "an artifact twice": lambda body: body["artifacts"].append(entry(body, "vae")),
    "no main artifact": lambda body: body.update(artifact="vae/other:v1"),
    "an unknown key": lambda body: body.update(run="rm"),
    "another version": lambda body: body.update(schema_version=2),
    "no list": lambda body: body.update(artifacts={}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_does_not_fit_is_refused(pushed, theirs, tmp_path, change):
    hub = pushed
    rewrite(hub, CHANGES[change])
    with pytest.raises(LwdctlError):
        pull(theirs)
    nothing_came(theirs, tmp_path)


ODD = [
    None, True, -1, 2**70, 1e308, "", "x" * 10_000, "../..", "\x00", [], {}, [[]], {"a": 1},
    "a" * 64,
]  # fmt: skip


@pytest.mark.slow
def test_no_odd_value_anywhere_in_a_record_is_a_bug(pushed):
    """Every value of it, one after the other, is replaced, removed or doubled."""
    body = json.loads(files_of(pushed)[SET_NAME])
    body.pop("digest")

    def places(value, path=()):
        yield path
        if isinstance(value, dict | list):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                yield from places(one, (*path, key))

    refused = accepted = 0
    for number, path in enumerate(one for one in places(body) if one):
        for odd in ODD[number % 3 :: 3]:
            copy = json.loads(json.dumps(body))
            inner = copy
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = odd
            content = json.dumps({**copy, "digest": digest_of(copy)}).encode()
            try:
                SharedSet.parse(content, "set")
            except LwdctlError:
                refused += 1
            else:
                accepted += 1
                # Texts to show, numbers in range, and names that are compared with the manifest.
                shown = path[-1] in ("lwdctl", "license", "size", "sha256")
                assert shown or "left_out" in path, (path, odd)
    assert refused > accepted


def test_a_record_whose_digest_does_not_fit_was_changed(pushed, theirs):
    hub = pushed
    rewrite(hub, lambda body: body.update(license="mit"), sign=False)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        pull(theirs)


def test_an_input_outside_the_workspace_is_refused(pushed, theirs, tmp_path):
    hub = pushed
    files, name = files_of(hub), f"vae/toy/v0001/{MANIFEST_NAME}"
    path = tmp_path / MANIFEST_NAME
    path.write_bytes(files[name])
    far = InputRef("snippets", str(tmp_path / "outside"), "0" * 64)
    replace(Manifest.read(path), inputs=(far,)).write(path)
    content = files[name] = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()

    def change(body):
        entry(body, "vae", MANIFEST_NAME).update(size=len(content), sha256=sha256)
        entry(body, "vae").update(digest=sha256)

    rewrite(hub, change)
    with pytest.raises(ArtifactError, match="no version in the same workspace"):
        pull(theirs)


@pytest.mark.parametrize("name", ["model.json", "ema.safetensors"])
def test_a_file_that_is_not_what_its_name_says_is_refused(pushed, ours, theirs, tmp_path, name):
    """With all digests made to fit, as whoever pushes can do."""
    hub = pushed
    folder = ours.resolve("diffusion").path
    odd = b"\x80\x04pickle" if name.endswith("json") else (2**40).to_bytes(8, "little") + b"{}"
    (folder / name).write_bytes(odd)
    sign_all(ours.root)
    with pytest.raises(ArtifactError, match=name):
        push(ours)  # not even pushed; so it is put there by hand
    files = files_of(hub)
    for path in folder.iterdir():
        files[f"diffusion/toy/v0001/{path.name}"] = path.read_bytes()
    record = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.stored.update({hashlib.sha256(one).hexdigest(): one for one in record.values()})

    def change(body):
        for file in entry(body, "diffusion")["files"]:
            content = record[file["path"]]
            file.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        entry(body, "diffusion").update(digest=hashlib.sha256(record[MANIFEST_NAME]).hexdigest())

    rewrite(hub, change)
    with pytest.raises(ArtifactError, match=name):
        pull(theirs)
    nothing_came(theirs, tmp_path)


SOON = ("pickled_v3", "linked_chunk")


@pytest.mark.parametrize(
    "attack",
    [pytest.param(one, marks=() if one in SOON else pytest.mark.long) for one in ATTACKS],
)
def test_a_store_that_we_would_not_write_is_read_by_nothing(
    hub, ours, theirs, tmp_path, attack, capsys
):
    """Pushed by somebody whose lwdctl checks nothing: the pull or its first reader refuses it."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    ATTACKS[attack](ours.root, outside)
    sign_all(ours.root)
    try:
        push(ours, "snippets/toy", with_data=True)
        pull(theirs, with_data=True)
    except LwdctlError:
        assert theirs.artifacts() == []
    else:
        line = ["verify", "--deep", "snippets/toy", "-q", "--workspace", str(theirs.root)]
        assert main(line) == 1
        assert capsys.readouterr().err.startswith("error:")
        with pytest.raises(ArtifactError):
            lwdctl.load_dataset(workspace=theirs)
    assert not (outside / "executed").exists()
    assert not any(path.is_symlink() for path in theirs.root.rglob("*"))


@pytest.mark.slow
def test_a_pulled_policy_names_no_module_to_import(hub, theirs, tmp_path, monkeypatch):
    import toy_chain

    from lwdctl.artifacts.workspace import Workspace

    env = replace(toy_chain.SOURCE.env, adapter="somebodys_module:Robot")
    monkeypatch.setattr(toy_chain, "SOURCE", replace(toy_chain.SOURCE, env=env))
    toy_chain.publish_chain(tmp_path / "odd", toy_chain.TOY)
    (tmp_path / "somebodys_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    push(Workspace(tmp_path / "odd"))
    readme = files_of(hub)["README.md"].decode()
    assert "--trust" in readme
    policy = lwdctl.load_policy("hf:me/toy", workspace=theirs, device="cpu")
    with pytest.raises(ConfigError, match="import the module"):
        lwdctl.evaluate(policy, episodes=1)
    line = "eval --policy random --episodes 1 --workers 0 -q --workspace"
    assert main([*line.split(), str(theirs.root)]) == 1
    assert not (tmp_path / "imported").exists()


def test_a_record_of_origin_hides_nothing_but_what_was_left_out(pushed, theirs, capsys):
    """Whoever copies an artifact by hand may add a `pulled.json`: files in use are still missed."""
    pull(theirs)
    folder = theirs.resolve("vae").path
    origin = json.loads((folder / ORIGIN_NAME).read_text())
    (folder / ORIGIN_NAME).write_text(
        json.dumps({**origin, "left_out": ["model.json", "ema.safetensors"]})
    )
    (folder / "model.json").unlink()
    with pytest.raises(ArtifactError, match=r"model\.json"):
        lwdctl.load_policy("diffusion/toy", workspace=theirs, device="cpu")
    for odd in ("[]", "{}", "[" * 100, json.dumps({**origin, "left_out": ["../x"]})):
        (folder / ORIGIN_NAME).write_text(odd)
        assert main(["verify", "vae/toy", "-q", "--workspace", str(theirs.root)]) == 1
        assert len(capsys.readouterr().err.splitlines()) <= 2
    (folder / ORIGIN_NAME).unlink()
    (folder / ORIGIN_NAME).symlink_to("/dev/zero")
    assert main(["verify", "vae/toy", "-q", "--workspace", str(theirs.root)]) == 1
