"""Names as a hostile file has them, and what must not come of them."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

NAMES = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" onerror='alert(1)' x=\"",
    "end of title": "</title></style></textarea><img src=x onerror=alert(1)>",
    "template": "{{ 7 * 7 }}{% include '/etc/passwd' %}${7*7}",
    "link": "javascript:alert(1)",
    "formula": "=cmd|' /C calc'!A0",
    "formula plus": "+1+1",
    "formula minus": "-2+3",
    "formula at": "@SUM(1,1)",
    "formula hidden": "\t=1+1",
    "wide formula": "\uff1d1+1",
    "new row": 'a",\n=1+1,"b\r\n@x',
    "upwards": "../../../../escaped",
    "absolute": "/tmp/lwdctl-escaped",
    "backslashes": "..\\..\\escaped",
    "dots": "..",
    "NUL": "a\0b",
    "new line": "a\nerror: forged\n",
    "terminal": "\x1b[2J\x1b]0;title\x07",
    "bidi": "abc\u202egnp.exe\u2066\u200f",
    "long": "v" * 5000,
    "math": "$\\frac{a$ \\input{/etc/passwd}",
    "half a character": "a\ud800",
    "option": "--output=/tmp/lwdctl-escaped",
    "empty": " ",
}
ACTIVE = {"script", "iframe", "object", "embed", "form", "base", "link", "foreignobject", "animate"}
LOADING = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "background"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ACTIVE:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            target = (value or "").strip()
            odd_style = name == "style" and not re.fullmatch(r"--width: \d+px", target)
            if name.startswith("on") or odd_style:
                self.wrong.append(f"{tag} {name}={value}"[:200])
            if name in LOADING and not target.startswith(("#", "data:")):
                self.wrong.append(f"{tag} loads {target[:100]}")
            if name == "http-equiv" and target.lower() == "refresh":
                self.wrong.append("refresh")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_page(markup: str) -> str:
    """Check that a page runs and loads nothing; return its texts."""
    page = _Page()
    page.feed(markup)
    page.close()
    assert not page.wrong, page.wrong
    assert "Content-Security-Policy" in markup
    odd = set(
        re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", markup)
    )
    assert not odd, odd
    return "".join(page.texts)


def check_csv(text: str) -> list[list[str]]:
    """Check that no cell of a CSV text is a formula or acts; return the rows."""
    rows = list(csv.reader(io.StringIO(text)))
    for cell in (cell for row in rows for cell in row):
        try:
            float(cell)
        except ValueError:
            start = cell.lstrip()[:1]
            assert start not in set("=+-@\uff1d\uff0b\uff0d\uff20") or cell == "–", cell[:100]
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", cell), cell[:100]
    assert len({len(row) for row in rows}) <= 1, "a cell began a new row"
    return rows


def everything_below(folder: Path) -> set[str]:
    """Return the paths of everything below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
