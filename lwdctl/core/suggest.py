"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the closest known names, or all of them when none is close."""
    known = sorted(known)
    folded = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{folded[item]}'" for item in close) + "?"
    return "known: " + ", ".join(known) if known else ""
