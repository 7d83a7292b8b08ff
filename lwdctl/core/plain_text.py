"""Texts of unknown origin as one line that a terminal or a page can show safely."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

LONGEST = 2000
"""Most characters of a text that comes from a file."""

_STEM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def visible(text: str) -> str:
    r"""Return a text as one line without characters that act on a terminal or cannot be encoded.

    Control characters and escape sequences (`\x1b`), line breaks, signs that turn the direction of
    writing, and undecodable bytes are escaped, so that a name in a file can neither move the cursor
    nor fake other output. Texts pass through here wherever they leave the program.
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def encodable(text: str) -> str:
    r"""Return a text as UTF-8 can hold it: other bytes of a path are escaped (`\udcff`)."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def visible_lines(text: str) -> str:
    """Return a text like `visible`, but keep its lines."""
    return "\n".join(visible(line) for line in text.split("\n"))


def plain_text(text: str, longest: int = LONGEST) -> str:
    """Return a text like `visible`, cut where it is too long."""
    shown = visible(text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def listed(items: Iterable[str], most: int = 8, longest: int = 60) -> str:
    """Return texts joined by commas, each cut to `longest` characters, the first `most` of them."""
    texts = [plain_text(item, longest) for item in items]
    left = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {left:,} more" if left > 0 else "")


def file_stem(text: str) -> str:
    """Return a text as the beginning of a file name, which leads into no other directory.

    A text of at most 100 ASCII letters, digits, `.`, `_` and `-` stays as it is; of any other one
    the odd characters are replaced, and a digest of it keeps names distinct.
    """
    if _STEM.fullmatch(text):
        return text
    import hashlib  # here, so that help texts do not wait for it

    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", text[:60], flags=re.ASCII).lstrip(".")
    return f"{plain}-{digest[:8]}" if plain else digest[:8]


def size_text(count: int) -> str:
    """Return a number of bytes for people."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> Iterator[str]:
    """Yield rows of equal length as lines, with their columns below each other.

    Args:
        rows: The cells of each row.
        right: Columns that are set flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:>{width}}" if index in right else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
