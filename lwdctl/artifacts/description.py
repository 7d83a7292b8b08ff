"""The description of a snippet store, which is read without zarr."""

from __future__ import annotations

from pathlib import Path

from lwdctl.artifacts.stored_files import read_stored
from lwdctl.artifacts.zarr_layout import METADATA
from lwdctl.core.errors import ArtifactError
from lwdctl.core.records import SourceSpec
from lwdctl.core.untrusted import parse_json

SNIPPETS_PAYLOAD = "snippets.zarr"
FORMAT = "lwdctl-snippets"
FORMAT_VERSION = 1


def read_description(artifact: Path) -> SourceSpec:
    """Read from the metadata of a snippet store what its data are.

    Args:
        artifact: Directory of the artifact that holds the store.

    Raises:
        ArtifactError: It is missing, damaged, or no description of a snippet store.
    """
    store = artifact / SNIPPETS_PAYLOAD
    where = store / METADATA
    metadata = parse_json(read_stored(store, METADATA), str(where))
    attributes = metadata.get("attributes") if isinstance(metadata, dict) else None
    if not isinstance(attributes, dict) or (
        attributes.get("format"), attributes.get("format_version"), attributes.get("complete")
    ) != (FORMAT, FORMAT_VERSION, True):  # fmt: skip
        raise ArtifactError(
            f"{where} does not describe a finished {FORMAT} store of version {FORMAT_VERSION}",
            "make the artifact again, or pull it again",
        )
    return SourceSpec.from_mapping(attributes.get("spec"), f"{where}: spec")  # type: ignore[arg-type]
