"""The document's promises and their tests belong together."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "ARCHITECTURE.md"


def test_every_promise_has_a_test_that_exists():
    rows = re.findall(r"^\| (.*) \| (`tests/.*`) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(rows) > 15
    for promise, cell in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cell)
        assert named, promise
        for path, name in named:
            tree = ast.parse((ROOT / path).read_text())
            found = {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}
            assert name in found, (promise, path, name)
