"""Finished demonstrations come back as they were, or not at all."""

import dataclasses

import numpy as np
import pytest

from lwdctl.core.records import Episode
from lwdctl.evaluation.finished_demonstrations import (
    Attempt,
    Demonstration,
    FinishedDemonstrations,
)

SOFTWARE = {"lwdctl": "1"}
ATTEMPT = Attempt("reach", 7, "better_operator_1")


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    rows = {key: rng.normal(size=(5, 3)).astype(np.float32) for key in ("b", "a")}
    episode = Episode(
        source="reach seed 7",
        observations=rows,
        actions=rng.normal(size=(5, 2)).astype(np.float32),
        rewards=np.array([0, 1, np.nan, -np.inf, 2], np.float32),
        final_observation={key: values[-1] for key, values in rows.items()},
        initial_state=rng.normal(size=4),
        model="<mujoco/>\n\u00fc",
        task="reach",
        label="better_operator_1",
        success=False,
        seed=7,
    )
    return Demonstration(episode, rng.normal(size=(5, 9)))


def assert_same(one, other):
    for field in dataclasses.fields(Episode):
        left, right = (getattr(item.episode, field.name) for item in (one, other))
        if isinstance(left, dict):
            assert list(left) == list(right)
        for a, b in zip(*[x.values() if isinstance(x, dict) else [x] for x in (left, right)],
                        strict=True):  # fmt: skip
            assert type(a) is type(b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.states, other.states)


def test_what_was_saved_comes_back(made, tmp_path):
    kept = FinishedDemonstrations(tmp_path, SOFTWARE)
    assert kept.load(ATTEMPT) is None
    kept.save(ATTEMPT, made)
    assert_same(kept.load(ATTEMPT), made)
    bare = Demonstration(dataclasses.replace(made.episode, rewards=None, initial_state=None), None)
    kept.save(ATTEMPT, bare)
    found = kept.load(ATTEMPT)
    assert found.states is found.episode.rewards is found.episode.initial_state is None


def test_other_software_and_other_attempts_do_not_count(made, tmp_path):
    FinishedDemonstrations(tmp_path, SOFTWARE).save(ATTEMPT, made)
    assert FinishedDemonstrations(tmp_path, {"lwdctl": "2"}).load(ATTEMPT) is None
    (path,) = tmp_path.iterdir()
    other = Attempt("reach", 8, "better_operator_1")
    path.rename(path.with_name(path.name.replace("7", "8")))
    assert FinishedDemonstrations(tmp_path, SOFTWARE).load(other) is None


def test_damage_is_noticed(made, tmp_path):
    kept = FinishedDemonstrations(tmp_path, SOFTWARE)
    kept.save(ATTEMPT, made)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for position in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[position] ^= 16
        path.write_bytes(damaged)
        assert kept.load(ATTEMPT) is None
        path.write_bytes(content[:position])
        assert kept.load(ATTEMPT) is None


def test_without_a_folder_nothing_is_kept(made):
    kept = FinishedDemonstrations(None, SOFTWARE)
    kept.save(ATTEMPT, made)
    kept.remove()
    assert kept.load(ATTEMPT) is None
