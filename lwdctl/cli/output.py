"""Printing results on stdout: as text, or as one JSON object."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.manifest import plain
from lwdctl.core.plain_text import aligned, visible
from lwdctl.pipeline.expected import Comparison

JSON_SCHEMA_VERSION = 2
_LENGTHS = ("snippet_length", "horizon")


def print_json(reference: str | None, path: object, summary: Mapping[str, Any]) -> None:
    """Print the JSON object that every command prints under `--json`."""
    answer = {
        "schema_version": JSON_SCHEMA_VERSION,
        "artifact": reference,
        "path": None if path is None else str(path),
        "summary": plain(summary),
    }
    # Everything but ASCII is escaped: what is printed is JSON in any encoding, and no character
    # acts on a terminal (DEL is the one that JSON lets through).
    text = json.dumps(answer, allow_nan=False).replace("\x7f", "\\u007f")
    sys.stdout.write(text + "\n")


def print_artifact(artifact: Artifact, *, as_json: bool) -> None:
    """Print a finished artifact's summary."""
    summary = artifact.manifest.summary
    if as_json:
        print_json(artifact.reference, artifact.path, summary)
        return
    print_text(f"{artifact.reference}  {artifact.path}")
    print_summary(summary)


def print_text(line: str = "") -> None:
    """Print one line, without characters that act on a terminal."""
    sys.stdout.write(visible(line) + "\n")


def print_lines(text: str) -> None:
    """Print a text of several lines, in which names have been escaped."""
    for line in text.removesuffix("\n").split("\n"):
        print_text(line)


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print numbers as `key  value` lines and result rows as a table."""
    pairs = [row for key, value in summary.items() if key != "results" for row in _flat(key, value)]
    width = max((len(key) for key, _ in pairs), default=0)
    for key, text in pairs:
        print_text(f"  {key:<{width}}  {text}")
    if summary.get("results"):
        print_result_rows(summary["results"])


def print_result_rows(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the result rows of evaluations, the columns in which they differ first.

    Rows over all tasks are left out where the only task has the same ones.
    """
    from lwdctl.evaluation.results import ALL_TASKS  # it loads NumPy

    tasks = list({row.get("task") for row in results} - {ALL_TASKS})
    if len(tasks) == 1:
        results = [
            row
            for row in results
            if row.get("task") != ALL_TASKS or {**row, "task": tasks[0]} not in results
        ]
    distinguishing = (
        "stage", "policy", "latent", "env", "train_seed", "snippet_length", "horizon",
        "perturbation", "sampler", "num_inference_steps", "guidance", "replan_beyond",
        "replan_after",
    )  # fmt: skip
    plain = {"guidance": 1.0}  # results of earlier versions do not say so
    varying = [
        key
        for key in distinguishing
        if len({str(row.get(key, plain.get(key))) for row in results}) > 1
        or (key in _LENGTHS and any(_differ(row) for row in results))
    ]
    lost = [name for name in ("errors", "policy_failures") if any(row.get(name) for row in results)]
    first = ["stage"] if "stage" in varying else []
    heads = list(dict.fromkeys([*first, "policy", "latent", *varying, "task", "episodes", *lost]))
    names = dict.fromkeys(key for row in results for key in row.get("metrics", {}))
    metrics = [key for key in names if key not in ("success", "score")]
    rows = [
        [
            *[format_value(row.get(key)) for key in heads],
            interval_text(row.get("success"), (row.get("success_low"), row.get("success_high"))),
            *[format_value(row.get("metrics", {}).get(key)) for key in metrics],
            format_value(row.get("replans_per_episode")),
        ]
        for row in results
    ]
    print_table([*heads, "success [95 %]", *metrics, "re-plans"], rows)


def _differ(row: Mapping[str, Any]) -> bool:
    """Tell whether a policy runs at another horizon than that of its training."""
    length, horizon = (row.get(key) for key in _LENGTHS)
    return None not in (length, horizon) and length != horizon


def interval_text(value: float | None, interval: Sequence[float | None] | None) -> str:
    """Format a number with its interval, where it has one."""
    low, high = interval or (None, None)
    known = low is not None and high is not None
    return format_value(value) + (f" [{low:.3f}, {high:.3f}]" if known else "")


def where_texts(item: Comparison) -> list[str]:
    """Format the keys and values of the result row that an expected number belongs to."""
    return [f"{key} {format_value(value)}" for key, value in item.expectation.where.items()]


def measured_text(item: Comparison) -> str:
    """Format a measured number with its interval, or say that several result rows match."""
    if item.rows > 1:
        return f"{item.rows} result rows match: add a key to 'where'"
    return interval_text(item.measured, item.interval)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn with rich on a terminal that is wide enough, else aligned columns."""
    lines = [[visible(cell) for cell in line] for line in (heads, *rows)]
    if sys.stdout.isatty() and _draw_table(lines[0], lines[1:]):
        return
    for line in aligned(lines):
        print_text(line)


def _draw_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Draw a table and return True; draw nothing where numbers would have to be cut off."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    console, table = Console(), Table(*[escape(head) for head in heads])
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    fits = console.measure(table, options=console.options.update(width=10_000)).maximum
    if fits > console.width:
        return False
    console.print(table)
    return True


def format_value(value: Any) -> str:
    """Format a value for people: numbers short, None and NaN as a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value) or "-"
    return str(value)


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{key}.{name or '-'}", item)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        yield key, f"{len(value)} entries"
    else:
        yield key, format_value(value)


@contextlib.contextmanager
def reserved_stdout() -> Iterator[None]:
    """Redirect all other output to stderr, so that stdout carries the result only.

    Simulators print banners, some of them from C: the file descriptor itself is redirected, and
    worker processes inherit it.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
