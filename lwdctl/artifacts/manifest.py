"""`manifest.json`: what an artifact is, what it derives from, its files and its provenance.

`config`, `summary` and `provenance` hold what a stage, also of a plug-in, writes. Listings,
comparisons and reports take some of their keys for granted, whatever made the artifact: where those
are there, they have the types that `check_known_values` asks for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

import lwdctl
from lwdctl.artifacts.files import write_durably
from lwdctl.artifacts.references import MAKERS, check_name, parse_reference
from lwdctl.artifacts.stored_files import is_inside, read_stored
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import encodable, listed
from lwdctl.core.untrusted import parse_json, typed

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"

PACKAGES = (
    "torch", "numpy", "zarr", "diffusers", "hypnettorch", "mujoco", "gymnasium", "metaworld",
    "gym-pusht", "pymunk", "robosuite", "gymnasium-robotics",
)  # fmt: skip
"""Distributions whose installed version is recorded, simulators among them."""

_AGAIN = "make the artifact again, or restore a copy of it"
_GIT_SECONDS = 10
_PARSED_ONCE = 1 << 16
"""Largest manifest, in bytes, that is kept in memory."""
_ORIGIN: ContextVar[Mapping[str, str]] = ContextVar("origin")


@dataclass(frozen=True)
class InputRef:
    """An artifact that another derives from.

    Attributes:
        type: Its artifact type.
        reference: `type/name:vN` in the same workspace, else its absolute path.
        digest: SHA-256 of its `manifest.json`.
    """

    type: str
    reference: str
    digest: str


@dataclass(frozen=True)
class PayloadFile:
    """One file of an artifact: POSIX path relative to its directory, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    The file also holds a digest of all the rest, so that a changed byte in it is noticed.

    Attributes:
        type: Artifact type (`"vae"`).
        schema_version: Version of this record's layout.
        name: Name that versions share.
        version: Number of this version, from 1.
        config: The stage's full configuration.
        inputs: The artifacts it derives from.
        files: Every payload file.
        summary: The numbers that `lwdctl show` prints.
        provenance: Command, stage, software, machine, seed and times.
    """

    type: str
    schema_version: int
    name: str
    version: int
    config: Mapping[str, Any]
    inputs: tuple[InputRef, ...]
    files: tuple[PayloadFile, ...]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, artifact_type: str = "") -> Manifest:
        """Read and check a manifest file.

        Args:
            path: The `manifest.json`.
            artifact_type: Type that is expected, or "" for any.

        Raises:
            ArtifactError: It is missing, not JSON, changed since it was written, of another
                schema version, or of another artifact type.
        """
        content = read_stored(path.parent, path.name)
        # A plan reads the same manifests again and again.
        parse = _parse_once if len(content) <= _PARSED_ONCE else _parse
        manifest = parse(content, path)
        if artifact_type and manifest.type != artifact_type:
            raise ArtifactError(
                f"{path.parent} is an artifact of type '{manifest.type}', not '{artifact_type}'",
                f"name one of type '{artifact_type}'; `lwdctl list` lists all artifacts",
            )
        return manifest

    def write(self, path: Path) -> None:
        """Write the manifest file as a whole and force it to the disk."""
        write_durably(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the content of the manifest file."""
        return with_digest(plain(asdict(self)))


def _parse(content: bytes, path: Path) -> Manifest:
    """Return what the content of a manifest file says, checked."""
    body = parse_json(content, str(path), hint=_AGAIN)
    if not isinstance(body, dict):
        raise ArtifactError(f"{path} is not an lwdctl manifest", _AGAIN)
    _check_schema(path, body)
    digest = body.pop("digest", None)
    if digest != digest_of(body):
        raise ArtifactError(f"{path} was changed after it was written", _AGAIN)
    manifest = typed(Manifest, body, str(path), hint=_AGAIN)
    check_known_values(body, str(path), _AGAIN)
    _check_names(path, manifest)
    return manifest


_parse_once = lru_cache(maxsize=256)(_parse)


def with_digest(body: Mapping[str, Any]) -> bytes:
    """Return JSON-ready values as the text of a file that holds their digest, too."""
    return _render({**body, "digest": digest_of(body)})


def digest_of(body: Mapping[str, Any]) -> str:
    """Return the digest that `with_digest` writes beside JSON-ready values."""
    return hashlib.sha256(_render(body)).hexdigest()


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it.

    NumPy scalars and arrays become numbers and lists, paths text, tuples lists; a number
    that JSON lacks (NaN, infinity) becomes null. Bytes of a path that are no UTF-8 are escaped.

    Raises:
        TypeError: A value of any other type.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {encodable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return encodable(str(value))
    if hasattr(value, "tolist"):  # NumPy arrays and scalars alike
        return plain(value.tolist())
    raise TypeError(f"a manifest cannot hold {type(value).__name__}: {value!r}")


@contextmanager
def recording(*, command: str = "", stage: str = "") -> Iterator[None]:
    """Record what makes the artifacts that are published inside the block.

    An outer command stands: what a recipe's stages make is recorded with `lwdctl run`.

    Args:
        command: The command line, or the Python call.
        stage: Name of the stage (`"train-vae"`).
    """
    outer = _ORIGIN.get({})
    origin = {
        "command": outer.get("command") or command,
        "stage": stage or outer.get("stage", ""),
    }
    token = _ORIGIN.set(origin)
    try:
        yield
    finally:
        _ORIGIN.reset(token)


def command_line() -> str:
    """Return the command line, or the Python call, that `recording` knows; "" outside of it."""
    return _ORIGIN.get({}).get("command", "")


def provenance(
    *, seed: int | None, device: str, started: str, code: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe the running program; nothing is imported to find out.

    Args:
        seed: The stage's seed, or None when it draws nothing.
        device: Where it computed (`"cpu"`, `"cuda:0"`).
        started: When it began, from `now`.
        code: What `software` returned then; None asks now.
    """
    return {
        "command": "",
        "stage": "",
        **_ORIGIN.get({}),
        **(software() if code is None else code),
        "seed": seed,
        "device": device,
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "machine": platform.machine(),
            "processors": os.cpu_count(),
        },
        "started": started,
        "finished": now(),
    }


def now() -> str:
    """Return the time as UTC ISO 8601 text with microseconds; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def software() -> dict[str, Any]:
    """Return the versions that decide what is computed; `git` is None outside a checkout."""
    return {
        "lwdctl": lwdctl.__version__,
        "git": _git_state(Path(lwdctl.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
    }


def software_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return what `software` returned before where it returns something else now, as text."""
    old, new = dict(_flat(before)), dict(_flat(after))
    changed = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    return listed(f"{key} {str(old.get(key))[:12]}" for key in sorted(changed))


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield from _flat(value) if isinstance(value, Mapping) else [(key, value)]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _git_state(checkout: Path) -> dict[str, Any] | None:
    # Only lwdctl's own checkout counts: an installed copy may stand inside another project.
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--", "lwdctl")
    # Where git gives no answer, nobody knows which code this is.
    dirty = commit is None or changes != ""
    code = {"code": _code_digest(checkout / "lwdctl")} if dirty else {}
    return {"commit": commit or "", "dirty": dirty, **code}


def _code_digest(package: Path) -> str:
    """Return a SHA-256 of the package's modules, which no commit says of changed ones."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(checkout: Path, *arguments: str) -> str | None:
    """Return the output of a git command, None where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            ["git", "-C", str(checkout), *arguments],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _render(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _check_schema(path: Path, body: Mapping[str, Any]) -> None:
    version = body.get("schema_version")
    if version == SCHEMA_VERSION:
        return
    origin = _mapping(body.get("provenance"))
    commit = str(_mapping(origin.get("git")).get("commit", ""))[:7]
    writer = f"lwdctl {origin.get('lwdctl', '(unknown)')}" + (
        f" (commit {commit})" if commit else ""
    )
    maker = MAKERS.get(str(body.get("kind") or body.get("type")))
    raise ArtifactError(
        f"{path} was written by {writer} with schema version {version}; this lwdctl reads schema"
        f" version {SCHEMA_VERSION}",
        (f"make it again with: {maker}" if maker else "make it again") + f", or use {writer}",
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _check_names(path: Path, manifest: Manifest) -> None:
    """Check what names directories and files: it must lead where a manifest's names belong.

    Raises:
        ArtifactError: A name that is none, or a file outside.
    """
    if not isinstance(manifest.provenance.get("finished"), str):
        raise ArtifactError(f"{path}: provenance.finished: expected str", _AGAIN)
    names = [manifest.type, manifest.name, *(item.type for item in manifest.inputs)]
    try:
        relative = (item for item in manifest.inputs if not Path(item.reference).is_absolute())
        names += [parse_reference(item.reference).name for item in relative]
        for name in names:
            check_name(name)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.message}", _AGAIN) from error
    for file in manifest.files:
        if not is_inside(file.path):
            raise ArtifactError(f"{path} names a file outside its artifact: {file.path}", _AGAIN)


_Count = Annotated[int, Meta(ge=0)]


class _Git(TypedDict, total=False):
    commit: str
    dirty: bool
    code: str


class _Host(TypedDict, total=False):
    name: str
    system: str
    machine: str
    processors: int | None


class _Provenance(TypedDict, total=False):
    command: str
    stage: str
    lwdctl: str
    python: str
    git: _Git | None
    packages: dict[str, str]
    host: _Host | None
    seed: int | None
    device: str
    started: str
    finished: str


class _ResultRow(TypedDict, total=False):
    policy: str
    latent: str
    env: str
    task: str
    train_seed: int | None
    horizon: int | str | None
    errors: _Count
    episodes: _Count
    success: float | None
    success_low: float | None
    success_high: float | None
    metrics: dict[str, float | None]
    replans_per_episode: float | None


class _Source(TypedDict, total=False):
    path: str
    bytes: _Count
    sha256: str


class _Summary(TypedDict, total=False):
    results: list[_ResultRow]
    sources: list[_Source]
    verdict: str


class _Data(_Summary, total=False):
    episodes: _Count
    validation_episodes: _Count
    steps: _Count
    episodes_by_label: dict[str, _Count]
    success: float | None
    format: str


class _Config(TypedDict, total=False):
    method: str
    snippet_length: int | str | None
    executed: int | None
    seed: int | None


class _Known(TypedDict, total=False):
    config: _Config
    provenance: _Provenance
    summary: _Summary


class _KnownOfData(TypedDict, total=False):
    config: _Config
    provenance: _Provenance
    summary: _Data


def check_known_values(body: dict[str, Any], where: str, hint: str) -> None:
    """Check the known keys of a manifest's free parts; other keys are not looked at.

    Raises:
        ArtifactError: A value is of another type.
    """
    kind: Any = _KnownOfData if body.get("type") == "snippets" else _Known
    typed(kind, body, where, hint=hint, only_known=False)
