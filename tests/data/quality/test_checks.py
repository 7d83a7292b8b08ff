"""Checks on the numbers: what they notice, with the right numbers, and what they leave in peace."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, Finding, ObservationSpec, SourceSpec
from lwdctl.data.quality.checks import DataChecks, with_checks, without_zero_tail
from lwdctl.data.quality.episode_statistics import CANDIDATES, FEWEST, TIMES, JumpSearch

GRIPPER = 3
TARGETS = ActionSpec(4, "absolute", "meters", (), (), 20.0, gripper=(GRIPPER,), limits="")
MOTIONS = ActionSpec(4, "delta", "normalized", (-1.0,) * 4, (1.0,) * 4, 20.0, gripper=(GRIPPER,))


def spec_of(action: ActionSpec = MOTIONS, adapter: str = "", task: str = "reach", limit: int = 80):
    observations = (ObservationSpec("object", 3), ObservationSpec("eef_pos", 3))
    return SourceSpec(observations, action, EnvSpec(adapter, (task,), {}, limit), (), "made")


def reaching(seed: int, semantics: str = "delta", steps: int = 60, **fields) -> Episode:
    """An arm that reaches for an object with a lag, as people's demonstrations do."""
    rng = np.random.default_rng(seed)
    target, position = rng.normal(0, 0.5, 3), rng.normal(0, 0.5, 3)
    drift, motion = rng.normal(0, 0.02, 3), np.zeros(3)
    positions, motions, targets, objects = [], [], [], []
    for _ in range(steps):
        drift += rng.normal(0, 0.003, 3)
        wanted = np.clip(4 * (target - position) + 6 * drift, -1, 1)
        positions.append(position.copy())
        motions.append(wanted)
        targets.append(position + 0.05 * wanted)
        objects.append(target + 0.01 * rng.normal(size=3))
        motion = 0.4 * motion + 0.6 * 0.05 * wanted + 0.001 * rng.normal(size=3)
        position = position + motion
    arm = np.array(targets if semantics == "absolute" else motions)
    hand = np.where(np.arange(steps) > steps // 2, 1.0, -1.0)[:, None]
    observations = {"eef_pos": np.array(positions, np.float32), "object": np.array(objects)}
    return Episode(
        source=f"demo_{seed}",
        observations={key: rows.astype(np.float32) for key, rows in observations.items()},
        actions=np.concatenate([arm, hand], axis=1).astype(np.float32),
        **fields,
    )


def checked(episodes, spec=None, **config) -> DataChecks:
    checks = DataChecks(spec or spec_of(), IngestConfig(**config))
    for episode in episodes:
        checks.add(episode)
    return checks


def of_check(checks: DataChecks, name: str):
    return [item for item in checks.findings() if item.check == name]


def demos(semantics: str = "delta", count: int = 10, **fields) -> list[Episode]:
    return [reaching(seed, semantics, **fields) for seed in range(count)]


@pytest.mark.parametrize(("semantics", "action"), [("delta", MOTIONS), ("absolute", TARGETS)])
def test_clean_demonstrations_give_no_warning(semantics, action):
    checks = checked(demos(semantics), spec_of(action))
    assert [item.severity for item in checks.findings()].count("note") == len(checks.findings())
    evidence = checks.statistics()["action"]["evidence"]
    assert evidence["verdict"] == semantics
    assert [item["component"] for item in evidence["components"]] == [0, 1, 2]  # no gripper
    key = "position_of" if semantics == "absolute" else "motion_of"
    assert [item[key] for item in evidence["components"]] == [f"eef_pos[{i}]" for i in range(3)]


def test_targets_in_a_file_that_says_motions_are_an_error_whose_hint_works():
    checks = checked(demos("absolute"))
    error = checks.findings()[0]
    assert (error.check, error.severity) == ("semantics", "error")
    assert error.hint == "--actions recorded-absolute"
    followed = checked(demos("absolute"), actions="recorded-absolute")
    assert {item.severity for item in followed.findings()} == {"note"}
    action = followed.action()
    assert (action.semantics, action.limits) == ("absolute", "data")
    lowest = min(episode.actions[:, 0].min() for episode in demos("absolute"))
    highest = max(episode.actions[:, 0].max() for episode in demos("absolute"))
    assert action.low[0] == pytest.approx(lowest - 0.05 * (highest - lowest))
    assert action.high[0] == pytest.approx(highest + 0.05 * (highest - lowest))


@pytest.mark.parametrize("semantics", ["delta", "absolute"])
def test_two_short_demonstrations_suffice_for_targets_and_give_no_false_alarm(semantics):
    episodes = demos(semantics, count=2, steps=25)
    found = checked(episodes, spec_of(replace(MOTIONS, low=(-3.0,) * 4, high=(3.0,) * 4)))
    worst = found.findings()[0].severity
    assert worst == ("note" if semantics == "delta" else "error")


def test_motions_in_a_file_that_says_targets_are_an_error_whose_hint_works():
    checks = checked(demos("delta"), spec_of(TARGETS))
    error = checks.findings()[0]
    assert (error.check, error.severity, error.hint) == ("semantics", "error", "--actions delta")
    followed = checked(demos("delta"), spec_of(TARGETS), actions="delta")
    assert {item.severity for item in followed.findings()} == {"note"}
    assert followed.action().semantics == "delta"


def test_motions_declared_by_the_user_against_the_source_need_the_data_to_agree():
    noise = [replace(one, actions=np.random.default_rng(7).normal(size=one.actions.shape)
                     .astype(np.float32)) for one in demos()]  # fmt: skip
    error = checked(noise, spec_of(TARGETS), actions="delta").findings()[0]
    assert (error.severity, error.hint) == ("error", "leave --actions out")


@pytest.mark.parametrize("semantics", ["delta", "absolute"])
def test_what_a_source_does_not_say_the_data_decide(semantics):
    silent = replace(TARGETS, units="unknown")
    checks = checked(demos(semantics), spec_of(silent))
    assert checks.action().semantics == semantics
    (note,) = of_check(checks, "semantics")
    assert note.severity == "note"
    assert f"stored as {semantics}" in note.message


def test_what_nobody_says_is_a_warning_that_names_both_options():
    rng = np.random.default_rng(0)
    noise = [replace(one, actions=rng.normal(size=one.actions.shape).astype(np.float32))
             for one in demos()]  # fmt: skip
    silent = spec_of(replace(TARGETS, units="unknown"))
    (warning,) = of_check(checked(noise, silent), "semantics")
    assert warning.severity == "warning"
    assert "--actions recorded-absolute" in warning.hint
    assert "--actions delta" in warning.hint
    for option in ("recorded-absolute", "delta"):
        (note,) = of_check(checked(noise, silent, actions=option), "semantics")
        assert note.severity == "note"


def test_what_names_tell_or_a_reader_doubts_is_settled_once():
    silent = spec_of(replace(TARGETS, units="unknown"))
    told = Finding("semantics", "note", "the key's name says targets")
    doubt = Finding("semantics", "warning", "nothing says what actions are", hint="--actions delta")
    checks = DataChecks(silent, IngestConfig(), [told])
    for episode in demos("delta"):
        checks.add(episode)
    assert checks.findings()[0].severity == "error"  # names and data contradict each other
    assert checks.action().semantics == "absolute"
    answered = with_checks([doubt], checked(demos("absolute"), silent))
    assert [item.severity for item in answered if item.check == "semantics"] == ["note"]


def test_the_previous_action_in_an_observation_is_no_position():
    def with_previous(episode: Episode) -> Episode:
        previous = np.zeros_like(episode.actions)
        previous[1:] = episode.actions[:-1]
        joined = np.concatenate([*episode.observations.values(), previous], axis=1)
        return replace(episode, observations={"observation": joined})

    spec = replace(spec_of(), observations=(ObservationSpec("observation", 10),))
    checks = checked(map(with_previous, demos()), spec)
    assert checks.statistics()["action"]["evidence"]["verdict"] == "delta"
    assert {item.severity for item in checks.findings()} == {"note"}


def test_torques_are_not_tested():
    torque = replace(MOTIONS, semantics="torque")
    assert not of_check(checked(demos("absolute"), spec_of(torque)), "semantics")


def exceeding(values: dict[tuple[int, int], float]) -> list[Episode]:
    first, *others = demos()
    actions = first.actions.copy()
    for place, value in values.items():
        actions[place] = value
    return [replace(first, actions=actions), *others]


def test_values_outside_the_limits_are_counted_and_both_hints_work():
    episodes = exceeding({(3, 1): 7.5, (4, 1): -2.0, (9, 0): 1.25})
    (error,) = of_check(checked(episodes), "outside-limits")
    assert error.severity == "error"
    assert error.values["fraction"] == pytest.approx(3 / (10 * 60 * 4))
    assert error.values["components"] == [1, 2, 0, 0]
    assert error.values["largest_excess"] == pytest.approx(6.5)
    assert (error.values["episodes"], error.values["first"]) == (1, ["demo_0"])
    assert error.message.endswith("episodes with such values: demo_0")
    assert "--clip-actions" in error.hint
    assert "--action-limits data" in error.hint

    clipping = DataChecks(spec_of(), IngestConfig(clip_actions=True))
    kept = [clipping.add(episode) for episode in episodes]
    assert kept[0].actions[[3, 4], 1].tolist() == [1.0, -1.0]
    assert kept[0].actions[9, 0] == 1
    np.testing.assert_array_equal(kept[1].actions, episodes[1].actions)
    assert [item.severity for item in of_check(clipping, "clipped")] == ["note"]
    assert not of_check(clipping, "outside-limits")

    widened = checked(episodes, action_limits="data")
    assert not of_check(widened, "outside-limits")
    action = widened.action()
    assert action.limits == "data"
    assert (action.low[1], action.high[1]) == pytest.approx((-2 - 0.475, 7.5 + 0.475))


def test_the_first_episodes_with_values_outside_are_named_and_few_values_are_not_none():
    checks = checked(replace(one, actions=one.actions + 9) for one in demos(count=12))
    (error,) = of_check(checks, "outside-limits")
    assert "such values: demo_0, demo_1, demo_2, demo_3, demo_4, demo_5, demo_6, demo_7 and 4 more"\
        in error.message  # fmt: skip
    (error,) = of_check(checked([*exceeding({(3, 1): 7.5}), *demos(count=50)]), "outside-limits")
    assert error.message.startswith("less than 0.01% of the action values (component 1) are")


@pytest.mark.parametrize("bound", [np.inf, np.finfo(np.float32).max])
def test_infinite_limits_are_none(bound):
    boundless = replace(MOTIONS, low=(-bound, -1.0, -1.0, -1.0), high=(bound, 1.0, 1.0, 1.0))
    action = checked(demos(), spec_of(boundless)).action()
    assert action == checked(demos(), spec_of(replace(MOTIONS, low=(), high=()))).action()
    assert action.limits == "data"


def test_an_environment_that_clips_anyway_is_named():
    (error,) = of_check(checked(exceeding({(0, 0): 3}), spec_of(adapter="metaworld")),
                        "outside-limits")  # fmt: skip
    assert "--clip-actions clips them, as the environment does" in error.hint


def test_an_excess_of_rounding_is_nothing():
    assert not of_check(checked(exceeding({(0, 0): 1.0039, (1, 1): -1.00001})), "outside-limits")


def test_limits_of_the_option_go_before_those_of_the_environment():
    checks = checked(demos(), action_limits="-2,3")
    assert checks.limits() == ((-2.0,) * 4, (3.0,) * 4, "option")
    assert checks.action().limits == "option"
    assert of_check(checked(demos(), action_limits="-0.5,0.5"), "outside-limits")


@pytest.mark.parametrize("text", ["1", "1,-1", "a,b", "0,inf", "1,2,3", ""])
def test_limits_that_are_no_pair_are_refused(text):
    with pytest.raises(ConfigError, match="LOW,HIGH"):
        DataChecks(spec_of(), IngestConfig(action_limits=text))


def test_nothing_is_clipped_to_limits_that_are_not_known():
    with pytest.raises(ConfigError) as error:
        DataChecks(spec_of(TARGETS), IngestConfig(clip_actions=True))
    assert "--action-limits LOW,HIGH" in error.value.hint
    DataChecks(spec_of(TARGETS), IngestConfig(clip_actions=True, action_limits="-1,1"))


def test_limits_of_constant_components_have_a_width():
    still = [replace(one, actions=np.full_like(one.actions, 3.0)) for one in demos()]
    low, high, source = checked(still, spec_of(TARGETS)).limits()
    assert source == "data"
    assert (low[0], high[0]) == pytest.approx((2.85, 3.15))


def joined(first: Episode, second: Episode) -> Episode:
    return replace(
        first,
        observations={
            key: np.concatenate([rows, second.observations[key]])
            for key, rows in first.observations.items()
        },
        actions=np.concatenate([first.actions, second.actions]),
    )


def test_two_episodes_without_an_end_between_them_are_found():
    episodes = demos()
    glued = [joined(episodes[0], episodes[1]), *episodes[2:]]
    (warning,) = of_check(checked(glued, spec_of(limit=200)), "jumps")
    assert warning.severity == "warning"
    assert warning.values == {"count": 1, "places": ["demo_0 row 60"]}


def test_more_jumps_than_are_kept_are_counted_as_at_least_so_many(monkeypatch):
    episodes = demos(count=80)
    glued = [joined(*episodes[i : i + 2]) for i in range(0, 80, 2)]
    (whole,) = of_check(checked(glued, spec_of(limit=200)), "jumps")
    assert "at least" not in whole.message
    monkeypatch.setattr("lwdctl.data.quality.episode_statistics.CANDIDATES", 16)
    (cut,) = of_check(checked(glued, spec_of(limit=200)), "jumps")
    assert cut.message.startswith("in at least ")


def test_angles_that_wrap_and_quaternions_that_turn_their_sign_are_no_jumps():
    def turning(seed: int) -> Episode:
        angle = np.cumsum(np.full((80, 3), 0.2), axis=0) + seed
        wrapped = np.mod(angle + np.pi, 2 * np.pi) - np.pi
        half = np.stack([np.cos(wrapped[:, 0] / 2), np.sin(wrapped[:, 0] / 2), wrapped[:, 0] * 0],
                        axis=1)  # fmt: skip
        observations = {"object": wrapped.astype(np.float32), "eef_pos": half.astype(np.float32)}
        noise = np.random.default_rng(seed).uniform(-1, 1, (80, 4))
        return Episode(f"demo_{seed}", observations, noise.astype(np.float32))

    assert not of_check(checked(map(turning, range(10)), spec_of(limit=100)), "jumps")


def padded(episode: Episode, rows: int) -> Episode:
    zeros = {key: np.zeros((rows, 3), np.float32) for key in episode.observations}
    blank = replace(episode, observations=zeros, actions=np.zeros((rows, 4), np.float32))
    both = joined(episode, blank)
    rewards = np.ones(both.length, np.float32)
    rewards[episode.length :] = 0
    return replace(both, rewards=rewards)


def test_rows_of_zeros_at_the_end_are_cut():
    checks = DataChecks(spec_of(), IngestConfig())
    kept = checks.add(padded(reaching(0), 7))
    assert kept.length == len(kept.rewards) == 60
    np.testing.assert_array_equal(kept.actions, reaching(0).actions)
    (note,) = of_check(checks, "zero-tail")
    assert note.values == {"rows": 7, "episodes": 1}
    assert checks.steps == 60


def test_a_single_row_of_zeros_is_kept_and_zeros_alone_are_left_out():
    assert without_zero_tail(padded(reaching(0), 1)).length == 61
    nothing = replace(
        reaching(0),
        observations={key: np.zeros((0, 3), np.float32) for key in ("object", "eef_pos")},
        actions=np.zeros((0, 4), np.float32),
    )
    blank = replace(padded(nothing, 9), source="rows 60:69")
    checks = DataChecks(spec_of(), IngestConfig())
    assert checks.add(blank) is None
    (note,) = checks.findings()
    assert (note.check, note.severity) == ("zero-episodes", "note")
    assert checks.statistics() == {}


def test_a_recorded_episode_of_zeros_is_kept_with_a_warning():
    still = reaching(0)
    zeros = {key: np.zeros_like(rows) for key, rows in still.observations.items()}
    still = replace(still, observations=zeros, actions=np.zeros_like(still.actions))
    checks = DataChecks(spec_of(), IngestConfig())
    assert checks.add(still) is still
    (warning,) = of_check(checks, "zero-episodes")
    assert (warning.severity, warning.values) == ("warning", {"episodes": 1})


def test_episodes_beyond_the_step_limit_and_of_one_step_are_reported():
    episodes = [reaching(0, steps=100), reaching(1, steps=1), *demos()[2:]]
    checks = checked(episodes)
    (warning,) = of_check(checks, "too-long")
    assert warning.severity == "warning"
    assert warning.values == {"episodes": 1, "longest": 100, "limit": 80}
    assert "--max-steps 100" in warning.hint
    assert not of_check(checked(episodes, max_steps=100), "too-long")
    (single,) = of_check(checks, "single-step")
    assert single.values == {"episodes": 1}


@pytest.mark.parametrize(
    ("label", "total", "suspicious"),
    [("expert", 11000, False), ("expert", -200, True), ("random", -280, False),
     ("random", 9000, True), ("medium", 5000, False), ("medium", 0, True), ("", 0, False),
     ("medium-replay", 0, False)],
)  # fmt: skip
def test_a_label_that_its_returns_contradict_is_a_warning(label, total, suspicious):
    rewards = np.full(60, total / 60, np.float32)
    checks = checked(demos(label=label, rewards=rewards), spec_of(task="HalfCheetah-v4"))
    found = of_check(checks, "returns")
    assert bool(found) == suspicious
    if suspicious:
        assert found[0].severity == "warning"
        assert found[0].values["mean"] == pytest.approx(total, abs=1)


def test_constant_and_equal_components_are_notes():
    def odd(episode: Episode) -> Episode:
        object_ = episode.observations["object"].copy()
        object_[:, 1] = 5
        object_[:, 2] = episode.observations["eef_pos"][:, 0]
        return replace(episode, observations={**episode.observations, "object": object_})

    checks = checked(map(odd, demos()))
    (constant,), (equal,) = of_check(checks, "constant"), of_check(checks, "duplicated")
    assert constant.values == {"components": ["object[1]"]}
    assert equal.values == {"pairs": [["object[2]", "eef_pos[0]"]]}
    assert {constant.severity, equal.severity} == {"note"}


def test_statistics_are_right_and_json_ready():
    episodes = [
        reaching(0, steps=30, label="good", task="reach", success=True,
                 rewards=np.full(30, 0.5, np.float32)),
        reaching(1, steps=50, label="good", task="reach", success=False,
                 rewards=np.full(50, 0.5, np.float32)),
        reaching(2, steps=10, label="bad", task="reach", rewards=np.zeros(10, np.float32)),
    ]  # fmt: skip
    found = json.loads(json.dumps(checked(episodes).statistics()))
    assert (found["episodes"], found["steps"], found["action"]["control_rate"]) == (3, 90, 20.0)
    assert {**found["length"], "histogram": None} == {
        "minimum": 10, "median": 30, "mean": 30, "maximum": 50, "limit": 80, "histogram": None,
    }  # fmt: skip
    assert sum(found["length"]["histogram"]["counts"]) == 3
    assert found["labels"]["good"] == {
        "episodes": 2, "steps": 80, "successful": 1, "success_known": 2,
        "return": {"minimum": 15, "median": 20, "mean": 20, "maximum": 25},
    }  # fmt: skip
    assert found["labels"]["bad"]["success_known"] == 0
    assert sum(found["returns"]["counts"]["good"]) == 2
    assert found["tasks"] == {"reach": 3}
    rows = np.concatenate([episode.observations["eef_pos"] for episode in episodes])
    described = found["observations"]["eef_pos"]
    np.testing.assert_allclose(described["mean"], rows.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(described["std"], rows.std(axis=0), rtol=1e-4)
    assert described["minimum"] == rows.min(axis=0).tolist()
    actions = np.concatenate([episode.actions for episode in episodes])
    assert found["action"]["maximum"] == actions.max(axis=0).tolist()
    assert found["action"]["constant"] == [False] * 4
    example = found["example"]
    assert example["source"] == "demo_0"
    np.testing.assert_allclose(example["actions"][1], episodes[0].actions[:, 1], rtol=1e-4)
    assert example["observation_names"] == ["eef_pos[0]", "eef_pos[1]", "eef_pos[2]", ""]


def test_what_is_found_does_not_depend_on_how_many_steps_are_sampled(monkeypatch):
    monkeypatch.setattr("lwdctl.data.quality.episode_statistics.SAMPLED_STEPS", 50)
    checks = checked(demos(count=40))
    steps = checks._sample.steps()
    assert len(steps.actions) == 50
    assert len(np.unique(steps.before[:, 0])) == 50
    assert checks.statistics()["action"]["evidence"]["verdict"] == "delta"


def test_steps_that_stand_out_are_those_of_a_plain_search():
    """The places are found without counting every step; a plain count finds the same."""
    rng = np.random.default_rng(5)
    search, plain = JumpSearch(6), []
    total, count = np.zeros(6), 0
    for number in range(30):
        rows = rng.normal(0, 0.01, (40, 6)).cumsum(axis=0).astype(np.float32)
        for start in rng.integers(1, 40, 2):
            rows[start:] += rng.normal(0, 0.5, 6).astype(np.float32)
        search.add(f"demo_{number}", rows)
        step = np.abs(np.diff(rows, axis=0))
        total, count = total + step.sum(axis=0), count + len(step)
        usual = (total / count).astype(np.float32)
        near = np.maximum(np.pad(step, ((1, 0), (0, 0)))[:-1], np.pad(step, ((0, 1), (0, 0)))[1:])
        large = (step > TIMES * usual).sum(axis=1) >= FEWEST
        alone = (step > TIMES * np.maximum(near, usual)).sum(axis=1) >= FEWEST
        found = np.flatnonzero(large & alone)
        assert np.count_nonzero(large) <= CANDIDATES // 16
        plain += [(f"demo_{number}", int(row) + 1) for row in found]
    assert len(plain) > 10
    assert sorted((jump.source, jump.row) for _, jump in search._found) == sorted(plain)
