"""What an ONNX file may hold, checked before ONNX Runtime opens it.

A policy that somebody else made decides numbers, nothing else. A tensor's values may lie in another
file, anywhere on this machine, and a node may belong to a domain of custom operators or hold graphs
that loop for ever. None of our graphs has these, so the file is walked through here, field by field
of its protocol buffers, and refused where it has one. The package `onnx`, which could parse it, is
not needed on a robot.

Source of the field numbers: onnx/onnx.proto of ONNX 1.23.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import plain_text

_AGAIN = "export the policy again"
_DOMAINS = (b"", b"ai.onnx")
"""The operators of ONNX itself."""
_MOST_LEVELS = 16
_MOST_FIELDS = 2_000_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_KEY = 2**32 - 1
"""Of a field: some parsers, ONNX Runtime's among them, drop the bits above these."""

_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "operators"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor"},
}
"""Message to those of its fields that hold messages which are walked through."""
_REFUSED: Mapping[str, Mapping[int, str]] = {
    "model": {20: "training", 25: "functions"},
    "graph": {15: "sparse tensors"},
    "node": {8: "overloaded functions"},
    "attribute": {6: "a graph inside a node", 11: "graphs inside a node", 21: "references",
                  22: "sparse tensors", 23: "sparse tensors"},
    "tensor": {13: "values in another file"},
}  # fmt: skip
"""Message to those of its fields that no graph of ours has."""
_DOMAIN_FIELDS = {"node": 7, "operators": 1}
_LOCATION = 14
"""Of a tensor: 0 where its values are in it."""


def check_graph(path: Path) -> None:
    """Check that an ONNX file is one graph of standard operators with all values in it.

    Raises:
        ArtifactError: It reads other files, uses custom operators, functions or nested graphs, or
            is no ONNX file.
    """
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        _Walk().check(content, "model", _MOST_LEVELS)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArtifactError(
            f"{path} is no graph of an exported policy: {reason}", _AGAIN
        ) from error


class _Walk:
    """Walks through messages; counts their fields."""

    def __init__(self) -> None:
        self._fields = 0

    def check(self, content: memoryview, message: str, levels: int) -> None:
        """Check a message and those in it.

        Raises:
            ValueError: It holds what no graph of ours has, or is cut off.
        """
        inner, refused = _MESSAGES.get(message, {}), _REFUSED.get(message, {})
        for number, value in _fields(content):
            self._fields += 1
            if self._fields > _MOST_FIELDS or not levels:
                raise ValueError("it has too many parts")
            if number in refused:
                raise ValueError(f"it has {refused[number]}")
            if number == _DOMAIN_FIELDS.get(message):
                _check_domain(value)
            elif message == "tensor" and number == _LOCATION and value != 0:
                raise ValueError(f"it has {refused[13]}")
            elif number in inner:
                if not isinstance(value, memoryview):
                    raise ValueError("it is damaged")
                self.check(value, inner[number], levels - 1)


def _check_domain(value: int | memoryview) -> None:
    name = bytes(value[:200]) if isinstance(value, memoryview) else b"?"
    if name not in _DOMAINS:
        shown = plain_text(name.decode(errors="replace"), 60)
        raise ValueError(f"it uses operators of '{shown}', which are not ONNX's own")


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of every field: a number, or bytes without a copy.

    Raises:
        ValueError: The message is cut off or has a group, which ONNX does not use.
    """
    place = 0
    while place < len(content):
        key, place = _number(content, place)
        if key > _MOST_KEY:
            raise ValueError("it is damaged")
        number, kind = key >> 3, key & 7
        value: int | memoryview = 0
        if kind == _VARINT:
            value, place = _number(content, place)
        elif kind == _BYTES:
            size, place = _number(content, place)
            value, place = content[place : place + size], place + size
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("it is damaged")
        if place > len(content):
            raise ValueError("it is cut off")
        yield number, value


def _number(content: memoryview, place: int) -> tuple[int, int]:
    """Return a number of variable length, at most 64 bits, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise ValueError("it is cut off")
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("it is damaged")
