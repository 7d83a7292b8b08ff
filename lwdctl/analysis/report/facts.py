"""What was run, in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lwdctl.analysis.words import minute, show
from lwdctl.artifacts.artifact import Artifact
from lwdctl.evaluation.results import ALL_TASKS


def facts_of(
    evaluations: Sequence[Artifact], artifacts: Sequence[Artifact]
) -> Iterator[tuple[str, str]]:
    """Yield name and value of what a reader asks first.

    Args:
        evaluations: What the report is about.
        artifacts: Everything that they were made from, themselves included.
    """
    cells = [cell for item in evaluations for cell in item.manifest.summary.get("results", [])]
    if cells:
        yield "Environment", _listed(cell.get("env") for cell in cells)
        tasks = dict.fromkeys(cell["task"] for cell in cells if cell["task"] != ALL_TASKS)
        yield f"Tasks ({len(tasks)})", _listed(tasks)
        yield "Policies", _listed(map(_policy, cells))
    for item in artifacts:
        if item.kind == "snippets":
            yield f"Data ({item.name})", _data(item.manifest.summary)
    for protocol in dict.fromkeys(item.manifest.summary.get("protocol") for item in evaluations):
        if protocol:
            yield "Protocol", str(protocol)
    yield "Made", _made(artifacts)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(show(value) for value in values))


def _policy(cell: Mapping[str, Any]) -> str:
    policy, latent = show(cell.get("policy")), cell.get("latent")
    return f"{policy} ({latent} latent)" if latent else policy


def _data(summary: Mapping[str, Any]) -> str:
    words = [f"{show(summary.get('episodes'))} demonstrations"]
    if summary.get("validation_episodes"):
        words[0] += f" ({summary['validation_episodes']} of them held out)"
    if summary.get("steps"):
        words.append(f"{summary['steps']:,} steps")
    labels = {key: count for key, count in summary.get("episodes_by_label", {}).items() if key}
    if labels:
        words.append("by label: " + show(labels))
    if summary.get("success") is not None:
        words.append(f"success of the demonstrations {show(summary['success'])}")
    if summary.get("format"):
        words.append(f"read as {summary['format']}")
    return ", ".join(words)


def _made(artifacts: Sequence[Artifact]) -> str:
    times = [str(item.manifest.provenance.get("finished") or "") for item in artifacts]
    hosts = [item.manifest.provenance.get("host") or {} for item in artifacts]
    machines = _listed(
        f"{show(host.get('name'))} ({show(host.get('processors'))} processors)" for host in hosts
    )
    devices = _listed(item.manifest.provenance.get("device") for item in artifacts)
    first, last = minute(min(times)), minute(max(times))
    span = first if first == last else f"{first} to {last}"
    return f"{span}, on {machines}, device {devices}"
