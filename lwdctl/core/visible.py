r"""Text from outside as it may stand on a terminal or in a log.

Names and messages come from data files and from artifacts of others. A newline in one would forge
a line, an escape sequence would command the terminal, and a bidirectional override would show the
text in another order. They are printed as their escapes (`\n`, `\x1b`, `\u202e`) instead.
"""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates
    "\u2028\u2029"  # line and paragraph separator
    "\ud800-\udfff]"  # halves of surrogate pairs: bytes that are not UTF-8; no encoding has them
)


def visible(text: str) -> str:
    """Return `text` as one line without characters that act on a terminal."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_lines(text: str) -> str:
    """Return `text` like `visible`, but keep its lines."""
    return "\n".join(visible(line) for line in text.split("\n"))
