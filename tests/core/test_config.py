"""Strict configuration."""

from __future__ import annotations

import dataclasses

import pytest

from lwdctl.core.config import from_mapping, option, parse_words, to_mapping
from lwdctl.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    length: int = option(64, "Steps", minimum=0, words={"episode": 0})
    limit: int | None = option(None, "Limit", words={"none": 0})
    rate: float = option(0.1, "Rate", minimum=0, maximum=1)
    size: str = option("s", "Size", choices=("s", "m"))
    tasks: tuple[str, ...] = option((), "Tasks")
    clock: bool = option(True, "Clock")


def test_defaults_and_round_trip() -> None:
    settings = from_mapping(Settings, {"tasks": ["a", "b"], "rate": 1})
    assert settings == from_mapping(Settings, to_mapping(settings))
    assert settings.rate == 1.0
    assert isinstance(settings.rate, float)
    assert settings.tasks == ("a", "b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lenght": 3}, "unknown setting 'lenght'"),
        ({"length": "long"}, "takes int"),
        ({"length": 2.5}, "takes int"),
        ({"length": True}, "takes int"),
        ({"length": -1}, "at least 0"),
        ({"rate": 1.5}, "at most 1"),
        ({"size": "xl"}, "cannot be 'xl'"),
        ({"rate": None}, "may not be empty"),
        ({"clock": "yes"}, "takes bool"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Settings, values)


def test_did_you_mean() -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping(Settings, {"lenght": 3})
    assert error.value.hint == "did you mean 'length'?"


def test_words_stand_for_numbers() -> None:
    assert from_mapping(Settings, {"length": "episode"}).length == 0
    assert from_mapping(Settings, parse_words(Settings, ["length=episode"])).length == 0


def test_words_on_the_command_line_are_parsed_by_type() -> None:
    values = parse_words(Settings, ["length=5", "tasks=a,b", "clock=no", "rate=1e-3", "limit="])
    assert values == {"length": 5, "tasks": ("a", "b"), "clock": False, "rate": 1e-3, "limit": None}
    with pytest.raises(ConfigError, match="key=value"):
        parse_words(Settings, ["length"])
    with pytest.raises(ConfigError, match="true or false"):
        parse_words(Settings, ["clock=maybe"])
