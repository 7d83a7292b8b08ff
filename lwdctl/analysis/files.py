"""The files of a comparison: tables as CSV, everything as JSON, figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lwdctl.analysis.results import Cell, Comparison, Control, CostRatio, PairedTest
from lwdctl.artifacts.durable import write_durably
from lwdctl.artifacts.manifest import plain


def to_csv(kind: type, rows: Sequence[Any]) -> str:
    """Return records of one dataclass as CSV with a header; lists are joined with spaces."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(kind)]
    writer.writerow(names)
    for row in rows:
        writer.writerow([_field(getattr(row, name)) for name in names])
    return buffer.getvalue()


def cells_csv(comparison: Comparison) -> str:
    """Return the cells as CSV."""
    return to_csv(Cell, comparison.cells)


def write_files(comparison: Comparison, document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write all files of a comparison, each as a whole; those of the same name are replaced.

    Args:
        comparison: What to write.
        document: Content of `comparison.json`.
        directory: Where to; made if missing.

    Returns:
        The files, in the order they were written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "comparison.csv": cells_csv(comparison).encode(),
        "comparison-tests.csv": to_csv(PairedTest, comparison.pairs).encode(),
        "comparison-controls.csv": to_csv(Control, comparison.controls).encode(),
        "comparison-costs.csv": to_csv(CostRatio, comparison.costs).encode(),
        "comparison.json": (json.dumps(plain(document), indent=1) + "\n").encode(),
    }
    contents |= _drawn(comparison)
    for name, content in contents.items():
        write_durably(directory / name, content)
    return [directory / name for name in contents]


def _drawn(comparison: Comparison) -> dict[str, bytes]:
    from lwdctl.analysis.figures import draw_figures
    from lwdctl.analysis.plotting import FORMATS, render

    return {
        f"{name}.{ending}": render(figure, ending)
        for name, figure in draw_figures(comparison)
        for ending in FORMATS
    }


def _field(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value if item is not None)
    return value
