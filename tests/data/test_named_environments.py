"""What `--env` says about data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Finding, ObservationSpec, SourceSpec
from lwdctl.core.simulator_facts import PUSHT_ACTION
from lwdctl.data.named_environments import describe_requested
from lwdctl.data.reader import EpisodeOutline, MergedReader

UNKNOWN = ActionSpec(2, "absolute", "unknown", (), (), limits="")


class Reader:
    """A file that says nothing about its environment, and has one episode of 7 steps."""

    def __init__(self, path, config, action=UNKNOWN):
        self.path = path
        env = EnvSpec((config.env or "").partition("/")[0], ())
        self.spec = SourceSpec((ObservationSpec("obs", 3),), action, env, (), "toy")
        self.episodes = [EpisodeOutline("episode 0", 7)]
        self.findings = [Finding("semantics", "warning", "they are stored as targets")]

    def close(self):
        pass


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Walker2d-v5", "Walker2d-v5"),
        ("walker2d-v5", "Walker2d-v5"),
        ("Walker2d-v4", "Walker2d-v4"),
        ("walker2d", "Walker2d-v4"),
        ("walker2d-medium-v2", "Walker2d-v4"),
    ],
)
def test_a_requested_version_is_kept(name, expected):
    _, env, _ = describe_requested(IngestConfig(env=f"mujoco/{name}"), 6, "file")
    assert (env.tasks, env.settings["id"]) == ((expected,), expected)


@pytest.mark.parametrize("config", [IngestConfig(env="pusht/push_t"), IngestConfig(env="my:Own/x")])
def test_a_known_environment_fills_in_what_a_file_does_not_say(config, tmp_path):
    with MergedReader(Reader, [tmp_path], config) as source:
        spec, findings = source.spec, source.findings
    if config.env == "my:Own/x":
        assert (spec.action, spec.env.max_steps, len(findings)) == (UNKNOWN, 7, 1)
        return
    assert spec.action == replace(PUSHT_ACTION, reference="")
    assert spec.env.max_steps == 300
    assert not findings


def test_what_a_file_says_counts_more_than_a_known_environment(tmp_path):
    limits = {"low": (-2.0,) * 2, "high": (2.0,) * 2, "limits": "file"}
    for units, meaning in (("unknown", "pixels"), ("meters", "meters")):
        own = replace(UNKNOWN, units=units, **limits)
        config = IngestConfig(env="pusht/push_t")
        make = partial(Reader, action=own)
        with MergedReader(make, [tmp_path], config) as source:
            found = source.spec.action
        assert (found.low, found.limits, found.units) == (own.low, "file", meaning)


def test_what_robosuites_actions_mean_is_not_guessed(tmp_path):
    make = partial(Reader, action=replace(UNKNOWN, size=12))
    with MergedReader(make, [tmp_path], IngestConfig(env="robosuite/PnP")) as source:
        assert source.spec.action == replace(UNKNOWN, size=12)


@pytest.mark.parametrize(
    ("env", "takes"), [("metaworld/reach", "4"), ("robosuite/Lift", "at least 3")]
)
def test_a_known_environment_takes_actions_of_this_size(tmp_path, env, takes):
    with pytest.raises(DataError, match=f"actions have 2 components, '{env}' takes {takes}"):
        MergedReader(Reader, [tmp_path], IngestConfig(env=env))
