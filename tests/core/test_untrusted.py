"""JSON and TOML of others: what is not plain data of bounded size is one error, never a wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.untrusted import MOST_BYTES, parse_json, read_bytes, read_json, read_toml, typed


@dataclass(frozen=True)
class Part:
    name: str
    size: Annotated[int, Meta(ge=1)] = 1


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    layout: tuple[int, int]
    kind: Literal["a", "b"] = "a"
    rate: float = 0.0
    horizon: int | str | None = None
    extra: Mapping[str, Any] | None = None


WHOLE = {"parts": [{"name": "x", "size": 2}], "layout": [1, 2]}


def test_json_becomes_typed_values(tmp_path: Path) -> None:
    path = tmp_path / "whole.json"
    path.write_text(
        '{"parts": [{"name": "ü", "size": 2}], "layout": [1, 2], "rate": 3, "extra": {"k": [1]}}'
    )
    found = typed(Whole, read_json(path), str(path))
    assert found == Whole((Part("ü", 2),), (1, 2), rate=3.0, extra={"k": [1]})
    assert isinstance(found.rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": [{"name": "x", "size": 0}]}, r"parts\[0\].size: expected int >= 1"),
        ({"parts": [{"name": 3}]}, r"parts\[0\].name: expected str, got int"),
        ({"parts": [{}]}, r"parts\[0\]: missing required field name"),
        ({"parts": 3}, "parts: expected list, got int"),
        ({"layout": [1, 2, 3]}, "layout: expected list of length 2, got 3"),
        ({"layout": [1, True]}, r"layout\[1\]: expected int, got bool"),
        ({"kind": "c"}, "kind: invalid enum value 'c'"),
        ({"rate": "0.5"}, "rate: expected float, got str"),
        ({"extra": {"k": 1}, "more": 1}, "unknown key more"),
        ({"parts": [{"name": "x", "odd": 1}]}, r"unknown key parts\[0\].odd"),
    ],
)
def test_an_odd_value_is_named_by_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"^FILE: {message}"):
        typed(Whole, {**WHOLE, **change}, "FILE")


def test_a_record_is_no_list() -> None:
    with pytest.raises(ConfigError, match=r"^FILE: expected object, got list"):
        typed(Whole, [], "FILE", ConfigError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'["\\ud800"]', "not UTF-8"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b"[NaN]", "not finite"),
        (b"[1e999]", "not finite"),
        (b"9" * 30, "64 bits"),
        (b"9" * 5000, "digits"),
        (b"[" * 40 + b"]" * 40, "levels of nesting"),
        (b"[" * 100_000, "levels of nesting"),
        (b"[" + b"[]," * 1_000_001 + b"[]]", "more than 2,000,000 values"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_json_that_is_no_plain_data_of_bounded_size(text: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        parse_json(text, "file.json")
    assert len(caught.value.message) < 300
    assert caught.value.message.startswith("file.json")


def test_nan_only_where_it_is_meant() -> None:
    assert str(parse_json(b"[NaN, 1e999]", "log", allow_nan=True)) == "[nan, inf]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a = 1\na = 2", "not valid TOML"),
        (b"\xef\xbb\xbfa = 1", "not valid TOML"),
        (b"a = 1\0", "not valid TOML"),
        (b"\xff", "not UTF-8"),
        (b"a = 0x" + b"f" * 50_000, "64 bits"),
        (b"a = " + b"9" * 5000, "digits"),
        (b"a = " + b"[" * 5000, "levels of nesting"),
        (b".".join([b"a"] * 50) + b" = 1", "levels of nesting"),
        (b"a." * 100_000 + b"a = 1", "dots"),
        (b"# " + b"x" * 300_000, "bytes"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_toml_that_is_no_plain_data_of_bounded_size(
    text: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_toml(path, ConfigError)
    assert len(caught.value.message) < 300 + len(str(path))


def test_only_regular_files_of_bounded_size_are_opened(tmp_path: Path) -> None:
    pipe, place, link, large = (tmp_path / name for name in ("pipe", "socket", "link", "large"))
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    large.touch()
    os.truncate(large, MOST_BYTES + 1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        for path, message in {
            pipe: "it is a pipe", place: "it is a socket", link: "it is a device",
            tmp_path: "it is a directory", Path("/dev/zero"): "it is a device",
            large: "more than 67,108,864 bytes", tmp_path / "none": "No such file",
        }.items():  # fmt: skip
            with pytest.raises(ConfigError, match=message):
                read_bytes(path, ConfigError)
