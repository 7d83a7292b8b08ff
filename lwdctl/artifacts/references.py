"""Artifact types, names and references, as users write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lwdctl.core.errors import ArtifactError

HUB_PREFIX = "hf:"
"""Begins the name of a repository where a reference of an artifact could stand, too."""
MAKERS = {
    "demonstrations": "lwdctl collect metaworld",
    "snippets": "lwdctl ingest PATH",
    "vae": "lwdctl train-vae",
    "latents": "lwdctl encode",
    "diffusion": "lwdctl train-diffusion",
    "baseline": "lwdctl train-baseline dp|ldp|mlp",
    "evaluation": "lwdctl eval",
    "analysis": "lwdctl analyze latents",
}
"""Artifact type to the command that makes one."""
MADE_FROM = {"vae": "snippets", "latents": "vae", "diffusion": "latents", "baseline": "snippets"}
"""Artifact type to the type that its command reads first."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_REFERENCE = re.compile(
    r"(?:(?P<type>[^/:]+)/)?(?P<name>[^/:]+)(?::(?:v(?P<version>0*[1-9]\d*)|latest))?"
)
_VERSION_DIRECTORY = re.compile(r"v(\d{4,})")


@dataclass(frozen=True)
class Reference:
    """A parsed reference; version 0 means the latest, type "" any."""

    type: str
    name: str
    version: int


def parse_reference(text: str) -> Reference:
    """Parse `name`, `name:v2`, `name:latest` or any of these after `type/`.

    Raises:
        ArtifactError: The text has none of these forms.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ArtifactError(
            f"'{text}' is neither an artifact directory nor a reference",
            "write NAME, NAME:v2, NAME:latest, TYPE/NAME:v2, or a path to an artifact directory",
        )
    return Reference(match["type"] or "", match["name"], int(match["version"] or 0))


def format_reference(artifact_type: str, name: str, version: int) -> str:
    """Return `type/name:vN`."""
    return f"{artifact_type}/{name}:v{version}"


def sanitize_name(text: str) -> str:
    """Turn any text (a file's stem) into a valid artifact name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip("._+-") or "unnamed"


def check_name(name: str) -> None:
    """Check that a name can be a directory and part of a reference.

    Raises:
        ArtifactError: The name is empty or has a character that references use.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"'{name}' cannot name an artifact",
            f"use letters, digits and . _ + -, for example '{sanitize_name(name)}'",
        )


def version_directory(version: int) -> str:
    """Return the directory name of a version, `v0001`."""
    return f"v{version:04d}"


def version_of(directory: str) -> int:
    """Return the version that a directory name stands for, 0 for any other name."""
    match = _VERSION_DIRECTORY.fullmatch(directory)
    return int(match[1]) if match else 0


def how_to_make(artifact_type: str) -> str:
    """Return the hint that names the command that makes artifacts of this type."""
    return f"make one with: {MAKERS[artifact_type]}" if artifact_type in MAKERS else ""
