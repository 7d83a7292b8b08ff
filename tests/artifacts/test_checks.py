"""A flipped byte anywhere is an error."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lwdctl.artifacts import artifact as artifact_module
from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.latents import LatentStore, LatentWriter
from lwdctl.core.errors import ArtifactError


def flip(path, position=-1, keep_time=False):
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.fixture
def stored(workspace):
    """An artifact with a zarr store."""
    random = np.random.default_rng(0)
    with workspace.begin("latents", "lift", config={}) as draft:
        writer = LatentWriter(draft.path / "latents.zarr", 4, 2)
        zero = np.zeros(50, int)
        writer.append(*(random.normal(size=(50, n)) for n in (4, 4, 2)), zero, zero, zero, zero)
        writer.close()
        return draft.publish({})


def test_check_refuses_a_flipped_byte_and_names_both_digests(make):
    artifact = make("vae", "lift")
    artifact.check()
    path = artifact.payload("deep/payload.txt")
    before = sha256_of(path)
    flip(path)
    with pytest.raises(ArtifactError) as caught:
        artifact.check()
    assert all(word in caught.value.message for word in (str(path), before, sha256_of(path)))


def test_resolving_checks_the_files(workspace, make):
    flip(make("vae", "lift").payload("deep/payload.txt"))
    with pytest.raises(ArtifactError, match="damaged"):
        workspace.resolve("vae")


def test_a_missing_and_a_shortened_file_are_refused(make):
    artifact = make("vae", "lift")
    path = artifact.payload("deep/payload.txt")
    path.write_text("weight")
    with pytest.raises(ArtifactError, match="has 6 bytes, the manifest says 7"):
        artifact.check()
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        artifact.check()
    with pytest.raises(ArtifactError, match=r"has no 'deep/payload\.txt'"):
        artifact.payload("deep/payload.txt")


def test_verify_refuses_a_file_that_is_not_in_the_manifest(make):
    artifact = make("vae", "lift")
    (artifact.path / "stranger").write_text("x")
    artifact.check()
    with pytest.raises(ArtifactError, match="not in the manifest"):
        artifact.verify()


def test_large_files_are_hashed_once_per_machine(make, monkeypatch):
    monkeypatch.setattr(artifact_module, "SMALL_FILE", 1)
    artifact = make("vae", "lift")
    hashed = []

    def count(path):
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(artifact_module, "sha256_of", count)
    artifact.check()
    artifact.check()
    assert hashed == ["payload.txt"]
    path = artifact.payload("deep/payload.txt")
    flip(path, keep_time=True)  # damage on the disk does not change the time
    artifact.check()
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.verify()
    flip(path)
    path.write_text("changed")
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.check()


def test_without_a_writable_cache_large_files_are_hashed_again(make, monkeypatch, tmp_path):
    monkeypatch.setattr(artifact_module, "SMALL_FILE", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    artifact = make("vae", "lift")
    artifact.check()
    artifact.check()


def test_any_flipped_byte_of_a_zarr_chunk_is_refused_by_reading_and_verifying(stored):
    stored.check()
    assert stored.verify() > 0
    chunk = stored.payload("latents.zarr/mean/c.0.0")
    for position in range(0, chunk.stat().st_size, 97):
        flip(chunk, position)
        with pytest.raises(ArtifactError):
            stored.verify()
        with pytest.raises(ArtifactError, match="damaged"):
            LatentStore.open(stored.path).read("mean")
        flip(chunk, position)
    stored.verify()


def test_verify_finds_a_bad_chunk_even_when_the_manifest_agrees_with_it(stored, workspace):
    chunk = stored.payload("latents.zarr/state/c.0.0")
    flip(chunk)
    with workspace.begin("latents", "copy", config={}) as draft:
        (stored.path / "latents.zarr").rename(draft.path / "latents.zarr")
        copy = draft.publish({})
    with pytest.raises(ArtifactError, match=r"state.*damaged"):
        copy.verify()


def test_check_refuses_changed_zarr_metadata_and_a_lost_chunk(stored):
    metadata = stored.payload("latents.zarr/mean/zarr.json")
    flip(metadata, 20)
    with pytest.raises(ArtifactError, match="damaged"):
        stored.check()
    flip(metadata, 20)
    stored.payload("latents.zarr/mean/c.0.0").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        stored.check()
