from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwdctl.artifacts import manifest as provenance
from lwdctl.artifacts.manifest import InputRef, Manifest, PayloadFile, plain
from lwdctl.core.errors import ArtifactError

MANIFEST = Manifest(
    type="vae",
    schema_version=2,
    name="lift",
    version=2,
    config={"rate": 3e-4, "layers": [256, 256], "limit": None},
    inputs=(InputRef("snippets", "snippets/lift:v1", "ab" * 32),),
    files=(PayloadFile("deep/weights.safetensors", 12, "cd" * 32),),
    summary={"error": 0.1 + 0.2, "note": "naïve"},
    provenance={"finished": "2026-11-22T00:00:00.000000+00:00"},
)


def test_what_is_written_is_read_back(tmp_path):
    MANIFEST.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json", "vae") == MANIFEST


def test_another_artifact_type_is_refused_with_a_hint(tmp_path):
    MANIFEST.write(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match="type 'vae', not 'latents'") as caught:
        Manifest.read(tmp_path / "manifest.json", "latents")
    assert "lwdctl list" in caught.value.hint


def test_an_unknown_schema_version_is_refused(tmp_path):
    dataclasses.replace(MANIFEST, schema_version=99).write(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match="schema version 99"):
        Manifest.read(tmp_path / "manifest.json")


def test_an_artifact_of_0_1_is_refused_with_what_made_it(tmp_path):
    body = {"kind": "vae", "schema_version": 1, "provenance": {"lwdctl": "0.1.0", "git": None}}
    (tmp_path / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(ArtifactError, match=r"written by lwdctl 0\.1\.0 with schema") as caught:
        Manifest.read(tmp_path / "manifest.json")
    assert caught.value.hint == "make it again with: lwdctl train-vae, or use lwdctl 0.1.0"


def test_the_outermost_command_is_recorded():
    with provenance.recording(command="lwdctl run a.toml"):
        with provenance.recording(command="lwdctl.run()", stage="encode"):
            found = provenance.provenance(seed=0, device="cpu", started="")
        assert (found["command"], found["stage"]) == ("lwdctl run a.toml", "encode")
    assert provenance.provenance(seed=0, device="cpu", started="")["command"] == ""


def test_any_changed_number_is_noticed(tmp_path):
    path = tmp_path / "manifest.json"
    MANIFEST.write(path)
    path.write_text(path.read_text().replace('"size": 12', '"size": 13'))
    with pytest.raises(ArtifactError, match="changed after it was written"):
        Manifest.read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2}', "\x00"])
def test_damaged_text_is_an_error_of_ours(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ArtifactError):
        Manifest.read(path)


@pytest.mark.parametrize("outside", ["/etc/passwd", "../other/file"])
def test_a_file_outside_the_artifact_is_refused(tmp_path, outside):
    files = (PayloadFile(outside, 1, "0"),)
    dataclasses.replace(MANIFEST, files=files).write(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match="outside"):
        Manifest.read(tmp_path / "manifest.json")


def test_plain_turns_numpy_and_paths_into_json():
    values = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": (1, Path("x")),
        "d": float("nan"),
        "e": np.bool_(True),
    }
    assert plain(values) == {"a": 0.5, "b": [0, 1], "c": [1, "x"], "d": None, "e": True}
    with pytest.raises(TypeError, match="object"):
        plain({"a": object()})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.slow
@given(JSON)
def test_plain_is_stable_through_json(value):
    once = plain(value)
    assert plain(json.loads(json.dumps(once, allow_nan=False))) == once


@pytest.mark.parametrize("answer", [None, "words"])
def test_code_that_git_does_not_know_is_nobodys(tmp_path, monkeypatch, answer):
    """Without an answer a checkout counts as changed: no result is taken over from it."""
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(
        provenance, "_git", lambda _, word, *rest: answer if word == "status" else "c0ffee"
    )
    state = {"commit": "c0ffee", "dirty": True}
    assert state.items() <= provenance._git_state(tmp_path).items()
    monkeypatch.setattr(provenance, "_git", lambda *words: None)
    state = {"commit": "", "dirty": True}
    assert state.items() <= provenance._git_state(tmp_path).items()
    monkeypatch.setattr(provenance, "_git", lambda _, word, *rest: "" if word == "status" else "c0")
    assert provenance._git_state(tmp_path) == {"commit": "c0", "dirty": False}
    assert provenance._git_state(tmp_path / "elsewhere") is None


def test_two_changes_of_one_commit_are_two_softwares(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "lwdctl").mkdir()
    module = tmp_path / "lwdctl/module.py"
    answers = {"rev-parse": "c0ffee", "status": " M lwdctl/module.py"}
    monkeypatch.setattr(provenance, "_git", lambda _, word, *rest: answers[word])
    found = []
    for text in ("x = 1", "x = 2", "x = 1"):
        module.write_text(text)
        found.append(provenance._git_state(tmp_path))
    assert found[0] == found[2] != found[1]
