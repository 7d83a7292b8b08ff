"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the closest known names, or all of them when none is close."""
    known = sorted(known)
    folded = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)
    shown = [folded[item] for item in close] or known
    hint = "known: " + ", ".join(shown) if shown else ""
    if close:
        hint = "did you mean " + " or ".join(f"'{item}'" for item in shown) + "?"
    if any("," in item for item in shown):
        hint += r" (on the command line, write \, for a comma within a name)"
    return hint
