"""Texts of unknown origin in Markdown: nothing in them becomes markup, a link or another line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lwdctl.core.plain_text import LONGEST, plain_text

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!&~$^@]|:(?=/|[\w+-]+:))")
_WEB = re.compile(r"(?i)(www)\.")
_LIST = re.compile(r"^(\d*)([.)](?=\s|$)|(?<!\d)[-+=])")


class Raw(str):
    """Markdown that is not escaped: made here, of parts that are."""

    __slots__ = ()


def escape(text: str, longest: int = LONGEST) -> str:
    """Return a text as one line of Markdown that shows exactly its characters."""
    shown = _MARKUP.sub(r"\\\1", plain_text(text, longest).strip())
    return _LIST.sub(r"\1\\\2", _WEB.sub(r"\1\\.", shown))


def finish(value: object) -> str:
    """Return what a template shows for a value: escaped, unless it is `Raw`."""
    return value if isinstance(value, Raw) else escape(str(value))


def code_line(text: str) -> Raw:
    """Return a text as one line of a fenced block, which no text can end."""
    return Raw(plain_text(text).replace("```", "` ` `").replace("~~~", "~ ~ ~"))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Raw:
    """Return a Markdown table with escaped cells."""
    lines = [[escape(cell) for cell in line] for line in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return Raw("\n".join(f"| {' | '.join(line)} |" for line in lines))
