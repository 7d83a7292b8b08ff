"""Strict configuration."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Literal

import pytest

from lwdctl.configs import EvalConfig, IngestConfig
from lwdctl.core.config import (
    from_mapping,
    list_text,
    option,
    parse_assignments,
    to_mapping,
)
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean


@dataclasses.dataclass(frozen=True)
class Settings:
    length: int | Literal["episode"] = option(64, "Steps", minimum=0)
    limit: int | None = option(7, "Limit")
    rate: float = option(0.1, "Rate", minimum=0, maximum=1)
    size: Literal["s", "m"] = option("s", "Size")
    tasks: tuple[str, ...] = option((), "Tasks")
    clock: bool = option(True, "Clock")


@dataclasses.dataclass(frozen=True)
class Colors:
    color: tuple[Literal["red", "none"], ...] = option((), "Colors")
    format: str = option("pusht", "Format", registry="lwdctl.data.formats:READERS")


def test_another_type_of_value_is_answered_with_an_example() -> None:
    with pytest.raises(ConfigError, match="'rename' takes str, not") as caught:
        IngestConfig(rename={"robot/pos": "pos"})
    assert caught.value.hint == 'example: rename=["robot/pos=pos"]'
    assert IngestConfig(rename=["robot/pos=pos"]).rename == ("robot/pos=pos",)
    with pytest.raises(ConfigError, match="'label' takes str") as caught:
        IngestConfig(label=3)
    assert not caught.value.hint


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
        ({"length": "long"}, "takes int or 'episode'"),
        ({"length": 2.5}, "takes int or 'episode'"),
        ({"length": True}, "takes int or 'episode'"),
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


def test_a_configuration_made_in_python_is_checked_too() -> None:
    from lwdctl.configs import VaeConfig

    assert VaeConfig(observation_keys=["a"]).observation_keys == ("a",)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'decoder' cannot be 'huge'"):
        VaeConfig(decoder="huge")  # type: ignore[arg-type]


def test_a_misspelled_setting_in_python_is_answered_with_the_closest() -> None:
    from lwdctl.configs import VaeConfig

    with pytest.raises(ConfigError, match="VaeConfig: unknown setting 'snippet_lenght'") as error:
        VaeConfig(snippet_lenght=8)  # type: ignore[call-arg]
    assert error.value.hint.startswith("did you mean 'snippet_length'")
    config = VaeConfig(snippet_length=8)
    for same in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert same == config
    assert dataclasses.replace(config, snippet_length=9).snippet_length == 9
    with pytest.raises(ConfigError, match="unknown setting 'snippet_lenght'"):
        dataclasses.replace(config, snippet_lenght=9)  # type: ignore[call-arg]
    assert "snippet_length" in inspect.signature(VaeConfig).parameters


def test_did_you_mean() -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping(Settings, {"lenght": 3})
    assert error.value.hint == "did you mean 'length'?"


def test_a_literal_beside_a_number() -> None:
    assert from_mapping(Settings, {"length": "episode"}).length == "episode"
    assert parse_assignments(Settings, ["length=episode"]) == {"length": "episode"}
    with pytest.raises(ConfigError, match="takes int or 'episode', not 'all'"):
        parse_assignments(Settings, ["length=all"])


def test_none_clears_an_optional_field_only() -> None:
    assert from_mapping(Settings, {"limit": "none"}).limit is None
    assert parse_assignments(Settings, ["limit=none"]) == {"limit": None}
    with pytest.raises(ConfigError, match="takes int or 'episode', not 'none'"):
        from_mapping(Settings, {"length": "none"})
    color = from_mapping(Colors, {"color": "none"}).color
    assert color == ("none",)
    assert from_mapping(Colors, parse_assignments(Colors, ["color=red, none"])).color[0] == "red"


def test_names_of_a_registry() -> None:
    assert from_mapping(Colors, {"format": "pusht"}).format == "pusht"
    with pytest.raises(ConfigError, match="no data format is called 'pushd'") as error:
        from_mapping(Colors, {"format": "pushd"})
    assert error.value.hint == "did you mean 'pusht'?"


def test_an_empty_text_is_no_missing_one() -> None:
    assert parse_assignments(IngestConfig, ["label="]) == {"label": ""}
    assert parse_assignments(IngestConfig, ["label=none"]) == {"label": None}


def test_values_on_the_command_line_are_parsed_by_type() -> None:
    values = parse_assignments(
        Settings, ["length=5", "tasks=a,b", "clock=no", "rate=1e-3", "limit="]
    )
    assert values == {"length": 5, "tasks": ("a", "b"), "clock": False, "rate": 1e-3, "limit": None}
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignments(Settings, ["length"])
    with pytest.raises(ConfigError, match="true or false"):
        parse_assignments(Settings, ["clock=maybe"])


def test_a_comma_within_a_value_of_a_list_follows_a_backslash() -> None:
    for tasks in (("pick it up, then place it", "push it"), ("a", "b")):
        text = list_text(tasks)
        assert parse_assignments(Settings, [f"tasks={text}"]) == {"tasks": tasks}
    assert text == "a,b"
    assert r"write \, for a comma" in did_you_mean("pick it up", ["pick it up, then place it"])
    assert r"\," not in did_you_mean("push", ["push it", "a, b"])


def test_nan_lies_in_no_range():
    with pytest.raises(ConfigError, match="'warm_start' must be at least 0"):
        EvalConfig(warm_start=float("nan"))


def test_sizes_that_no_machine_could_serve_are_refused_with_the_reason() -> None:
    from lwdctl.configs import DiffusionConfig, VaeConfig

    for config, name, value in (
        (DiffusionConfig, "width", 10**8), (VaeConfig, "snippet_length", 10**9),
        (VaeConfig, "batch_size", 10**9), (VaeConfig, "updates", 10**18),
        (EvalConfig, "episodes", 10**18), (EvalConfig, "num_envs", 10**9),
        (VaeConfig, "latent_size", 10**9), (EvalConfig, "horizon", [8, 10**9]),
        (VaeConfig, "seed", 2**64), (EvalConfig, "workers", 10**6),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"'{name}' must be at most") as caught:
            from_mapping(config, {name: value})
        assert caught.value.hint
    with pytest.raises(ConfigError, match="a longer integer"):
        from_mapping(VaeConfig, {"updates": 10**4000})


def test_texts_with_nul_and_values_of_other_shapes_are_refused() -> None:
    for values, message in (
        ({"tasks": ["a\0b"]}, "NUL"), ({"rate": float("inf")}, "at most 1"), ([], "a table"),
        ({"size": ["s"]}, "cannot be"), ({"limit": 10**30}, "at most"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            from_mapping(Settings, values)
