"""Artifacts as somebody else might have made them: changed, and their digests made to fit.

pickle is imported to write what an attacker would write: a chunk that runs code where it is
unpickled. Nothing here, and nothing in lwdctl, unpickles it.
"""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

from lwdctl.artifacts.files import sha256_of
from lwdctl.artifacts.manifest import MANIFEST_NAME, Manifest, PayloadFile

TYPES = ("snippets", "vae", "latents", "diffusion", "baseline", "evaluation", "analysis")


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def sign(path: Path, inputs: dict[str, str] | None = None) -> None:
    """Make a manifest fit the files that are there, and the inputs that were changed."""
    manifest = Manifest.read(path / MANIFEST_NAME)
    files = [
        PayloadFile(item.relative_to(path).as_posix(), item.stat().st_size, sha256_of(item))
        for item in sorted(path.rglob("*"))
        if item.is_file() and not item.is_symlink() and item.name != MANIFEST_NAME
    ]
    known = {file.path: file for file in manifest.files}
    links = [
        known[item.relative_to(path).as_posix()]
        for item in path.rglob("*")
        if item.is_symlink() and item.relative_to(path).as_posix() in known
    ]
    derived = tuple(
        replace(item, digest=(inputs or {}).get(item.reference, item.digest))
        for item in manifest.inputs
    )
    replace(manifest, files=(*files, *links), inputs=derived).write(path / MANIFEST_NAME)


def sign_all(root: Path) -> None:
    """Sign every artifact of a workspace, parents first."""
    digests: dict[str, str] = {}
    for kind in TYPES:
        for path in sorted(root.glob(f"{kind}/*/v*")):
            sign(path, digests)
            reference = f"{kind}/{path.parent.name}:v{int(path.name[1:])}"
            digests[reference] = sha256_of(path / MANIFEST_NAME)


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def store(root: Path) -> Path:
    return next(root.glob("snippets/*/v*")) / "snippets.zarr"


def pickled_v2(root, outside):
    array = store(root) / "action"
    for path in array.iterdir():
        path.unlink()
    (array / ".zarray").write_text(json.dumps({
        "zarr_format": 2, "shape": [86, 2], "chunks": [86, 2], "dtype": "|O", "order": "C",
        "compressor": None, "fill_value": None, "filters": [{"id": "pickle", "protocol": 5}],
    }))  # fmt: skip
    (array / "0.0").write_bytes(pickle.dumps(Canary(outside / "executed")))


def pickled_v3(root, outside):
    array = store(root) / "action"
    (array / "c.0.0").write_bytes(pickle.dumps(Canary(outside / "executed")))
    edit(array / "zarr.json", codecs=[{"name": "numcodecs.pickle", "configuration": {}}])


def consolidated(root, outside):
    inner = json.loads((store(root) / "action" / "zarr.json").read_text())
    inner["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    (store(root) / "action" / "c.0.0").write_bytes(pickle.dumps(Canary(outside / "executed")))
    listed = {"kind": "inline", "must_understand": False, "metadata": {"action": inner}}
    edit(store(root) / "zarr.json", consolidated_metadata=listed)


def other_type(root, outside):
    edit(store(root) / "action" / "zarr.json", data_type="variable_length_bytes")


def huge_chunks(root, outside):
    grid = {"name": "regular", "configuration": {"chunk_shape": [2**40, 2]}}
    edit(store(root) / "action" / "zarr.json", chunk_grid=grid)


def bomb(root, outside):
    chunk = store(root) / "action" / "c.0.0"
    content = bytearray(chunk.read_bytes())
    content[4:8] = (2**31 - 1).to_bytes(4, "little")
    chunk.write_bytes(content)


def more_rows(root, outside):
    edit(store(root) / "action" / "zarr.json", shape=[10**15, 2])


def lost_chunk(root, outside):
    (store(root) / "action" / "c.0.0").unlink()


def transformer(root, outside):
    edit(store(root) / "action" / "zarr.json", storage_transformers=[{"name": "x"}])


def stranger(root, outside):
    (store(root) / "action" / ".zattrs").write_text("{}")


def linked_chunk(root, outside):
    _link(store(root) / "action" / "c.0.0", outside)


def linked_metadata(root, outside):
    _link(store(root) / "action" / "zarr.json", outside)


def linked_array(root, outside):
    _link(store(root) / "action", outside)


def linked_store(root, outside):
    _link(store(root), outside)


def piped_chunk(root, outside):
    path = store(root) / "action" / "c.0.0"
    path.unlink()
    os.mkfifo(path)


def unlisted_pipe(root, outside):
    os.mkfifo(store(root) / "pipe")


def _link(path: Path, outside: Path) -> None:
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


ATTACKS = {
    attack.__name__: attack
    for attack in (
        pickled_v2, pickled_v3, consolidated, other_type, huge_chunks, bomb, more_rows, lost_chunk,
        transformer, stranger, linked_chunk, linked_metadata, linked_array, linked_store,
        piped_chunk, unlisted_pipe,
    )
}  # fmt: skip
