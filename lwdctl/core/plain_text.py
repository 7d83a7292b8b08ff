"""Texts of unknown origin as one line that a terminal or a page can show safely."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 2000
"""Most characters of a text that comes from a file."""


def plain_text(text: str, longest: int = LONGEST) -> str:
    r"""Return a text with control characters escaped (`\\x1b`), cut where it is too long.

    Line breaks, signs that turn the direction of writing, and undecodable bytes are escaped as
    well, so that a name in a file can neither move the cursor nor fake other output.
    """
    shown = text[: longest + 1]
    if not shown.isprintable():
        shown = "".join(
            sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown
        )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def listed(items: Iterable[str], most: int = 8, longest: int = 60) -> str:
    """Return texts joined by commas, each cut to `longest` characters, the first `most` of them."""
    texts = [plain_text(item, longest) for item in items]
    left = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {left:,} more" if left > 0 else "")
