"""Checks before an evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec, EnvSpec, SourceSpec
from lwdctl.evaluation.checks import check_fresh_seeds

SPEC = SourceSpec(
    (), ActionSpec(1, "absolute", "meters", (), ()), EnvSpec("toyland", ("push",)), (), "made"
)


@pytest.mark.parametrize(
    ("recorded", "seed", "is_fresh"),
    [
        (None, 0, True),
        ((0, 99), 100, True),
        ((0, 99), 99, False),
        ((200_005, 200_009), 200_000, True),
        ((200_005, 200_009), 200_001, False),
    ],
)
def test_no_episode_starts_where_a_demonstration_did(
    recorded: tuple[int, int] | None, seed: int, is_fresh: bool
) -> None:
    spec = replace(SPEC, collection_seeds=recorded)
    if is_fresh:
        check_fresh_seeds(spec, seed, episodes=5)
    else:
        with pytest.raises(ConfigError, match="start where they were trained to"):
            check_fresh_seeds(spec, seed, episodes=5)
