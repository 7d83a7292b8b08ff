"""Which classes outside of lwdctl may be imported because the user has named them.

An import path (`package.module:Class`) that was read from a file is somebody else's text: what it
names is imported only inside `trusting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@contextmanager
def trusting(names: Iterable[str]) -> Iterator[None]:
    """Allow the import of what these import paths name, inside the block.

    Args:
        names: Import paths, exactly as the stored data have them; a string is one. What an outer
            block allows stays allowed.
    """
    named = [names] if isinstance(names, str) else names
    token = _TRUSTED.set(_TRUSTED.get() | frozenset(named))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def is_trusted(name: str) -> bool:
    """Tell whether what an import path from a file names may be imported."""
    return name in _TRUSTED.get()
