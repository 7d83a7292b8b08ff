"""What commands take for granted about the free parts of a manifest, whatever made the artifact.

`config`, `summary` and `provenance` hold what a stage, also of a plug-in, writes. The keys below
are read by listings, comparisons and reports: where they are there, they have these types.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from msgspec import Meta

from lwdctl.core.untrusted import typed

_Count = Annotated[int, Meta(ge=0)]


class _Git(TypedDict, total=False):
    commit: str
    dirty: bool


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
