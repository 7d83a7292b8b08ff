"""Where a pulled artifact came from, and which of its files were not shared.

`pulled.json` stands beside the manifest of an artifact that `lwdctl pull` published. The manifest
is the original one, so that digests and lineage stay what they were; files that it lists and that
were not shared (logs, videos, the data) are named here and are not missed.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from lwdctl.artifacts.files import write_durably
from lwdctl.artifacts.stored_files import is_inside, read_stored
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text
from lwdctl.core.untrusted import parse_json, typed

ORIGIN_NAME = "pulled.json"
ORIGIN_VERSION = 1
_AGAIN = "pull the artifact again"


@dataclass(frozen=True)
class Origin:
    """The content of `pulled.json`.

    Attributes:
        schema_version: Version of this record's layout.
        endpoint: Address of the Hub.
        repository: `user/name`.
        revision: Commit that was pulled.
        pushed: Reference of the artifact that was pushed: this one, or what derives from it.
        reference: Reference of this artifact where it was made.
        digest: SHA-256 of its manifest where it was made.
        pulled: When, UTC ISO 8601.
        left_out: Payload files that were not shared or not pulled.
    """

    schema_version: int
    endpoint: str
    repository: str
    revision: str
    pushed: str
    reference: str
    digest: str
    pulled: str
    left_out: tuple[str, ...]

    def write(self, directory: Path) -> None:
        """Write the record into an artifact's directory."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_durably(directory / ORIGIN_NAME, text.encode())

    @property
    def address(self) -> str:
        """`user/name@commit`."""
        return f"{self.repository}@{self.revision}"


def read_origin(directory: Path) -> Origin | None:
    """Return where the artifact in a directory was pulled from, None for one that was made here.

    Raises:
        ArtifactError: The record is damaged or not a regular file.
    """
    path = directory / ORIGIN_NAME
    if not os.path.lexists(path):
        return None
    values = parse_json(read_stored(directory, ORIGIN_NAME), str(path), hint=_AGAIN)
    origin = typed(Origin, values, str(path), hint=_AGAIN)
    if origin.schema_version != ORIGIN_VERSION:
        raise ArtifactError(
            f"{path} has schema version {origin.schema_version}, not {ORIGIN_VERSION}", _AGAIN
        )
    if not all(map(is_inside, origin.left_out)):
        raise ArtifactError(f"{path} names a file outside its artifact", _AGAIN)
    return origin


def lacks_files(directory: Path, folder: str) -> Origin | None:
    """Return the origin of an artifact that was pulled without files of one of its folders.

    Args:
        directory: The artifact's directory.
        folder: Name of a folder in it (`"snippets.zarr"`).

    Returns:
        None where all files of the folder were pulled, or the artifact was made here.
    """
    origin = read_origin(directory)
    if origin is None:
        return None
    inside = (name for name in origin.left_out if name.startswith(f"{folder}/"))
    return origin if any(not os.path.lexists(directory / name) for name in inside) else None


def check_pulled_whole(store: Path) -> None:
    """Check that the files of a store were not left out when its artifact was pulled.

    Raises:
        ArtifactError: They were.
    """
    origin = lacks_files(store.parent, store.name)
    if origin is not None:
        address = plain_text(origin.address, 200)
        raise ArtifactError(
            f"{store} was pulled without its data, which this needs",
            f"lwdctl pull {address} --with-data, if it was pushed with them",
        )
