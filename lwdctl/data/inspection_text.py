"""The text that `lwdctl inspect` prints: facts, tables and findings of each file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lwdctl.core.plain_text import aligned, listed, plain_text, size_text
from lwdctl.core.records import SEVERITIES, ActionSpec, Finding, Severity

if TYPE_CHECKING:
    from lwdctl.data.files.contents_summary import ArrayFamily
    from lwdctl.data.inspection import Inspection, Inspections

MOST_ROWS = 24
"""Rows of a table; further ones are counted."""
LONGEST_CELL = 48
MOST_RECORDED = 6
_CONTAINERS = {
    "hdf5": "HDF5 file",
    "zarr": "zarr store",
    "npz": "npz file",
    "directory": "directory",
    "file": "file",
}
_NUMBER = re.compile(r"-|(-?[\d,.]+(e[+-]?\d+)?)?")
_HEADINGS: dict[Severity, str] = {"error": "Errors", "warning": "Warnings", "note": "Notes"}
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def describe(found: Inspections) -> str:
    """Return the whole text."""
    parts = ["\n".join(_file_lines(item)) for item in found.files]
    if len(found.files) > 1:
        parts.append("\n".join(_together_lines(found)))
    return "\n\n".join(parts)


def _together_lines(found: Inspections) -> Iterator[str]:
    count = len(found.files)
    if found.disagreement:
        yield f"These {count} files do not go into one store: {found.disagreement}"
    elif found.command:
        yield f"These {count} files agree; ingest them together:"
        yield f"  {found.command}"
    else:
        refused = [item.path for item in found.files if not item.can_be_ingested]
        yield f"These {count} files agree, but not all can be ingested: {listed(refused)}"


def _file_lines(found: Inspection) -> Iterator[str]:
    yield found.path
    yield from _indented(list(facts(found)))
    for title, table in tables(found):
        yield f"\n{title}"
        yield from _indented([table[0], *table[1]])
    for severity in SEVERITIES:
        those = [item for item in all_findings(found) if item.severity == severity]
        if those:
            yield f"\n{_HEADINGS[severity]}"
        for item in those:
            yield f"  {item.check}: {placed(item, found.path)}"
            if item.hint:
                yield f"    hint: {item.hint}"
    if found.command:
        yield f"\nIngest it with\n  {found.command}"


def all_findings(found: Inspection) -> list[Finding]:
    """Return what a reader should know, worst first: why the file is refused, then the findings."""
    nearest = [
        Finding("other-formats", "note", f"no {name} file: {reason}")
        for name, reason in found.not_recognized.items()
    ]
    refusal = found.errors if found.error else []
    return [*refusal, *found.findings, *nearest]


def placed(item: Finding, path: str) -> str:
    """Return a finding's message after its place in the file, where the message has none."""
    place = item.where.removeprefix(path).lstrip(": ")
    return item.message if place in item.message else f"{place}: {item.message}"


def facts(found: Inspection) -> Iterator[tuple[str, str]]:
    """Yield name and value of what is to be known first."""
    kind = f"{_CONTAINERS.get(found.container)}, {size_text(found.bytes)}"
    if not found.container:
        yield "format", f"unknown: it cannot be opened ({size_text(found.bytes)})"
    elif not found.format:
        yield "format", f"none that is known ({kind})"
    else:
        by = f", recognized by {found.recognized_by}" if found.recognized_by else ""
        yield "format", f"{found.format}{by} ({kind})"
    spec, numbers = found.spec, found.statistics
    if spec is not None:
        yield "episodes", f"{found.episodes:,} with {found.steps:,} steps"
        if numbers:
            yield "length", _length(numbers["length"])
        if any(found.splits.get(name) for name in ("train", "validation")):
            counts = {name or "in neither": count for name, count in found.splits.items()}
            yield "split", ", ".join(f"{count:,} {name}" for name, count in counts.items())
        yield "task", _counted(numbers.get("tasks", {}), "none")
        yield "environment", _environment(found)
        yield "action", action_text(spec.action)
        yield "also stored", ", ".join(found.stored) or "nothing"
    if found.files and spec is None:
        yield "files", listed(found.files)
    for index, (name, value) in enumerate(found.recorded.items()):
        if index < MOST_RECORDED:
            yield ("" if index else "recorded"), f"{name} = {plain_text(str(value), 80)}"
    if len(found.recorded) > MOST_RECORDED:
        yield "", f"and {len(found.recorded) - MOST_RECORDED} more"


def _length(length: Mapping[str, Any]) -> str:
    if length["minimum"] == length["maximum"]:
        text = f"{number(length['minimum'])} steps each"
    else:
        least, middle, most = (number(length[key]) for key in ("minimum", "median", "maximum"))
        text = f"{least} to {most} steps, median {middle}"
    limit = f"step limit {length['limit']:,}" if length["limit"] else "step limit unknown"
    return f"{text}; {limit}"


def _counted(counts: Mapping[str, int], nothing: str) -> str:
    if len(counts) < 2:
        return plain_text(next(iter(counts), "") or nothing, 80)
    return listed(f"{plain_text(name, 50) or nothing} ({n:,})" for name, n in counts.items())


def _environment(found: Inspection) -> str:
    assert found.spec is not None
    env = found.spec.env
    if not env.adapter:
        return "unknown; name it with --env to evaluate there"
    rate = found.spec.action.control_rate
    return env.adapter + (f", {rate:g} actions per second" if rate else ", control rate unknown")


def action_text(action: ActionSpec) -> str:
    """Return what an action is in one line."""
    sources = {
        "environment": "the environment's",
        "file": "recorded in the file",
        "option": "from --action-limits",
        "data": "the recorded range with a margin",
    }
    limits = sources.get(action.limits, "unknown") if action.low else "unknown"
    numbers = f"{action.size} number{'s' if action.size != 1 else ''}"
    return f"{numbers}, {action.semantics} ({action.units}); limits: {limits}"


def tables(found: Inspection, most: int = MOST_ROWS) -> Iterator[tuple[str, Table]]:
    """Yield title and cells, at most so many rows, of every table that there are numbers for."""
    labels = found.statistics.get("labels", {})
    if any(name or item["return"] for name, item in labels.items()):
        yield "Episodes by label", _cut(labels_table(labels), most)
    if found.statistics:
        yield "What ingest takes", _cut(ranges_table(found.statistics), most)
    if found.arrays:
        yield _arrays_title(found), _cut(arrays_table(found.arrays, found.spec is not None), most)


def labels_table(labels: Mapping[str, Any]) -> Table:
    """Return episodes, returns and successes per label."""
    heads = ["label", "episodes", "steps", "return: lowest", "median", "highest", "successful"]
    rows = []
    for name, item in labels.items():
        returns = item["return"] or {}
        spread = [number(returns.get(key)) for key in ("minimum", "median", "maximum")]
        solved = f"{item['successful']:,} of {item['success_known']:,}"
        counts = [f"{item['episodes']:,}", f"{item['steps']:,}"]
        rows.append(
            [_cell(name or "-"), *counts, *spread, solved if item["success_known"] else "-"]
        )
    return heads, rows


def ranges_table(numbers: Mapping[str, Any]) -> Table:
    """Return sizes and ranges of observations and action, and the limits of the action."""
    rows = []
    for name, item in numbers["observations"].items():
        use = "network input" if item["network"] else "stored only"
        rows.append([_cell(name), use, *_ranges(item), ""])
    action = numbers["action"]
    limits = ""
    if action["low"]:
        limits = f"{number(min(action['low']))} to {number(max(action['high']))}"
    rows.append(["action", "action", *_ranges(action), limits])
    heads = ["name", "use", "size", "lowest", "highest", "constant", "limits"]
    return heads, rows


def _ranges(item: Mapping[str, Any]) -> list[str]:
    """Return size, smallest and largest value, and the number of constant components."""
    constant = sum(item["constant"])
    return [
        str(item["size"]),
        number(min(item["minimum"])),
        number(max(item["maximum"])),
        f"{constant:,}" if constant else "-",
    ]


def arrays_table(arrays: Sequence[ArrayFamily], is_read: bool) -> Table:
    """Return the arrays of the file, and what the store keeps of them where it can be read."""
    heads = ["key", "shape", "type", "kind", "in the store" if is_read else ""]
    rows = []
    for item in arrays:
        use = item.use or ("may be actions" if item.is_action else "-" if is_read else "")
        rows.append([_cell(item.key), shape_text(item), item.dtype, item.kind, use])
    return heads, rows


def _arrays_title(found: Inspection) -> str:
    most = max(item.count for item in found.arrays)
    title = "Arrays in the file"
    if most > 1:
        title += f" (* is the number of an episode; {most:,} were looked at)"
    elif found.arrays_left_out:
        title += f" ({found.arrays_left_out:,} more are not listed)"
    return title


def shape_text(item: ArrayFamily) -> str:
    """Return a shape as `T x 7`; T is an axis whose length differs between episodes."""
    return " x ".join("T" if size is None else str(size) for size in item.shape) or "one value"


def number(value: float | None) -> str:
    """Return a number in four digits, whole ones in full; a dash for None."""
    if value is None:
        return "-"
    if 1e4 <= abs(value) < 1e9 or (float(value).is_integer() and abs(value) < 1e9):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _cell(text: str) -> str:
    return plain_text(text, LONGEST_CELL)


def _cut(table: Table, most: int) -> Table:
    heads, rows = table
    left = len(rows) - most
    if left <= 0:
        return table
    return heads, [*rows[:most], [f"... and {left:,} more", *[""] * (len(heads) - 1)]]


def _indented(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; columns of numbers, but for the first one, are flush right."""
    columns = list(enumerate(zip(*rows, strict=True)))[1:]
    right = {
        index
        for index, (_, *cells) in columns
        if all(_NUMBER.fullmatch(cell) for cell in cells) and any(map(str.isdigit, "".join(cells)))
    }
    for line in aligned(rows, right):
        yield f"  {line}"
