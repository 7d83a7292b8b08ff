"""Checks before an evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec, EnvSpec, SourceSpec
from lwdctl.evaluation.checks import check_fresh_seeds, warn_of_seeds

ACTION = ActionSpec(1, "absolute", "meters", (), ())
SPEC = SourceSpec((), ACTION, EnvSpec("toyland", ("push",)), (), "made")
RECORDED = np.array([-1, 0, 99, 200_005])


@pytest.mark.parametrize(
    ("seed", "is_fresh"),
    [(1, True), (94, True), (95, False), (99, False), (100, True), (200_001, False)],
)
def test_no_episode_starts_where_a_demonstration_did(seed: int, is_fresh: bool) -> None:
    """Seeds between those of the demonstrations are fresh."""
    if is_fresh:
        check_fresh_seeds(RECORDED, seed, episodes=5)
    else:
        with pytest.raises(ConfigError, match="1 demonstrations were recorded from") as refused:
            check_fresh_seeds(RECORDED, seed, episodes=5)
        assert refused.value.hint == "--seed 200006"


@pytest.mark.parametrize(
    ("recorded", "seed", "warns"),
    [(None, 0, False), ((0, 99), 100, False), ((0, 99), 99, True), ((7, 9), 2, False)],
)
def test_seeds_among_those_of_the_demonstrations_are_a_warning(
    recorded: tuple[int, int] | None, seed: int, warns: bool
) -> None:
    assert bool(warn_of_seeds(replace(SPEC, collection_seeds=recorded), seed, 5)) == warns
