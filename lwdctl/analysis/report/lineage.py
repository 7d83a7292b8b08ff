"""Where the numbers come from: artifacts, settings, software, machines, data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from lwdctl.analysis.report.records import Describe, Grid, Lineage, Node
from lwdctl.analysis.words import NOTHING, exact, minute, show
from lwdctl.artifacts.artifact import Artifact

DIGEST = 12
"""Digits of a digest where it names something; the data's stand in full."""
COMMIT = 9


def lineage_of(
    artifacts: Sequence[Artifact], lost: Mapping[str, str], describe: Describe
) -> Lineage:
    """Describe artifacts, oldest first, and warn of what keeps them from being reproduced.

    Args:
        artifacts: Everything that was found.
        lost: Digest of an input that is gone or changed to what is wrong with it.
        describe: Tells how one was made.
    """
    alarms = list(_alarms(artifacts, lost))
    return Lineage(
        nodes=tuple(_node(item, describe) for item in artifacts),
        machines=_grouped("Machines", artifacts, _machine),
        software=_grouped("Software", artifacts, _software),
        data=_data(artifacts),
        alerts=tuple(f"{what} (see Lineage)" for what, _ in alarms),
        warnings=tuple(f"{what}: {'; '.join(which)}" for what, which in alarms),
    )


def _node(artifact: Artifact, describe: Describe) -> Node:
    manifest = artifact.manifest
    made, told = manifest.provenance, describe(artifact)
    settings = tuple((key, exact(value)) for key, value in sorted(manifest.config.items()))
    changed = tuple((key, exact(value)) for key, value in told.changed.items())
    return Node(
        reference=artifact.reference,
        anchor=f"artifact-{artifact.digest[:DIGEST]}",
        digest=artifact.digest[:DIGEST],
        finished=minute(made.get("finished")),
        seconds=_seconds(made),
        seed=show(made.get("seed")),
        commit=_commit(artifact),
        inputs=tuple(item.reference for item in manifest.inputs),
        line=told.line,
        changed=Grid("Settings that differ from the defaults", ("setting", "value"), changed)
        if changed
        else None,
        settings=Grid("All settings", ("setting", "value"), settings, folded=True),
    )


def _seconds(made: Mapping[str, Any]) -> str:
    try:
        span = datetime.fromisoformat(made["finished"]) - datetime.fromisoformat(made["started"])
    except (KeyError, TypeError, ValueError):
        return NOTHING
    return f"{span.total_seconds():,.0f} s"


def _git(artifact: Artifact) -> Mapping[str, Any]:
    return artifact.manifest.provenance.get("git") or {}


def _commit(artifact: Artifact) -> str:
    git = _git(artifact)
    if not git.get("commit"):
        return "unknown"
    return str(git["commit"])[:COMMIT] + (" + changes" if git.get("dirty") else "")


def _alarms(
    artifacts: Sequence[Artifact], lost: Mapping[str, str]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what is wrong, and the particulars."""
    commits: dict[str, list[str]] = {}
    for item in artifacts:
        commits.setdefault(str(_git(item).get("commit") or "")[:COMMIT], []).append(item.reference)
    if len(commits) > 1:
        listed = [f"{key or 'unknown'} ({', '.join(names)})" for key, names in commits.items()]
        yield f"the artifacts were made at {len(commits)} different commits", listed
    dirty = [item.reference for item in artifacts if _git(item).get("dirty")]
    if dirty:
        share = f"{len(dirty)} of {len(artifacts)} artifacts"
        why = "made with changes that no commit holds: the commit does not reproduce them"
        yield f"{share} were {why}", dirty
    if lost:
        yield "inputs are gone or were changed", list(lost.values())


def _grouped(caption: str, artifacts: Sequence[Artifact], tell: Callable[[Artifact], str]) -> Grid:
    """Return one row for each different answer, with the artifacts that gave it."""
    groups: dict[str, list[str]] = {}
    for item in artifacts:
        groups.setdefault(tell(item), []).append(item.reference)
    rows = tuple(
        ("all artifacts" if len(groups) == 1 else ", ".join(names), answer)
        for answer, names in groups.items()
    )
    return Grid(caption, ("artifacts", "made with"), rows, wraps=True)


def _machine(artifact: Artifact) -> str:
    made = artifact.manifest.provenance
    return show({**(made.get("host") or {}), "device": made.get("device")})


def _software(artifact: Artifact) -> str:
    made = artifact.manifest.provenance
    own = {"lwdctl": made.get("lwdctl"), "Python": made.get("python")}
    return show({**own, **(made.get("packages") or {})})


def _data(artifacts: Sequence[Artifact]) -> Grid | None:
    rows = [
        (item.reference, show(source.get("path")), show(source.get("bytes")),
         show(source.get("sha256")))
        for item in artifacts
        for source in item.manifest.summary.get("sources", [])
    ]  # fmt: skip
    if not rows:
        return None
    return Grid("Data files that were read", ("artifact", "file", "bytes", "SHA-256"), tuple(rows))
