"""What `lwdctl.evaluate` makes of policies and environments of your own, sound and broken."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import lwdctl
from lwdctl.core.errors import ArtifactError, ConfigError, NotFiniteError, SimulatorError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import EnvSpec
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import Condition, ConditionResult, ResultRow, result_rows
from lwdctl.policies.policy import EpisodePlan


class _Broken(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, first: float = 0.0) -> None:
        self.first = first

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.full(2, self.first, dtype=np.float32), {}

    def step(self, action: object) -> Any:
        return np.zeros(2, dtype=np.float32), 0.0, False, False, {}


def test_an_environment_that_shows_no_number_at_first_loses_the_episode() -> None:
    with pytest.raises(SimulatorError, match=r"the first observation .* is not finite"):
        lwdctl.evaluate({"mine": _Constant(0.0)}, env=_Broken(np.nan), episodes=2, max_steps=2)


class _Grows(_Broken):
    """Shows one component more than it declares, from a step of an episode with an odd seed on."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.shown, self.seed = 2, seed or 0
        return super().reset()

    def step(self, action: object) -> Any:
        self.first += 1
        self.shown += int(self.first > 1) * self.seed % 2
        return np.zeros(self.shown), 0.0, False, False, {}


def test_an_environment_that_shows_more_than_it_declares_loses_the_episode() -> None:
    for first in (0, 1):
        table = lwdctl.evaluate(
            {"mine": _Constant(0.0)}, env=_Grows(first), episodes=2, max_steps=4
        )
        whole, lost = table.episodes["mine"]
        assert (whole.steps, whole.error) == (4, "")
        assert re.search(r"'observation' has the shape \(3,\).*declares 2", lost.error)


class _Constant:
    def __init__(self, value: float) -> None:
        self.value = value

    def reset(self) -> None:
        pass

    def act(self, observation: object) -> np.ndarray:
        return np.full(2, self.value)


class _Heard(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


class _Drawn(_Broken):
    """Draws where an episode begins, from the seed or from a generator that it never seeds."""

    def __init__(self, seeded: bool) -> None:
        self.seeded, self.rng = seeded, np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        rng = np.random.default_rng(seed) if self.seeded else self.rng
        return rng.uniform(-1, 1, 2).astype(np.float32), {}


def test_an_environment_that_ignores_its_seed_is_named() -> None:
    for seeded in (True, False):
        heard, env = _Heard(), partial(_Drawn, seeded)
        options: dict[str, Any] = {"episodes": 2, "max_steps": 2, "workers": 0}
        lwdctl.evaluate({"mine": _Constant(0.0)}, env=env, progress=heard, **options)
        assert len(heard.said) == (not seeded)
        assert all("with the same seed began differently" in text for text in heard.said)


def test_the_environment_that_is_given_is_reset_once_per_episode() -> None:
    env = _Drawn(True)
    resets: list[int | None] = []
    plain = env.reset

    def counted(*, seed: int | None = None, options: Any = None) -> Any:
        resets.append(seed)
        return plain(seed=seed)

    env.reset = counted  # type: ignore[method-assign]
    policies = {"mine": _Constant(0.0), "other": _Constant(0.0)}
    lwdctl.evaluate(policies, env=env, episodes=2, max_steps=2, progress=_Heard())
    assert len(resets) == 4


class _Quits(_Broken):
    def step(self, action: object) -> Any:
        raise SystemExit("no power")


def test_an_environment_that_ends_the_program_loses_the_episode() -> None:
    with pytest.raises(SimulatorError, match=r"SystemExit: no power \(in step of"):
        lwdctl.evaluate({"mine": _Constant(0.0)}, env=_Quits(), episodes=1, max_steps=2)


def test_episodes_that_a_policy_fails_are_said_to_have_failed() -> None:
    heard = _Heard()
    policies = {"mine": _Constant(np.nan), "other": _Constant(0.0)}
    lwdctl.evaluate(policies, env=_Broken(), episodes=2, max_steps=3, progress=heard)
    (failures,) = heard.said
    assert failures == (
        "mine: 2 of 2 episodes ended because an action is not finite;"
        " they count as failures of the policy: unsolved, with the worst value of every"
        " metric; a mean return is not given"
    )


class _Costly(_Broken):
    def step(self, action: Any) -> Any:
        return np.zeros(2, dtype=np.float32), -1.0, False, False, {}


class _GivingUp(_Constant):
    """Acts once and then gives up."""

    def reset(self) -> None:
        self.value = 0.0

    def act(self, observation: object) -> np.ndarray:
        action, self.value = super().act(observation), np.nan
        return action


def test_a_policy_that_gives_up_does_not_have_the_better_return(tmp_path: Path) -> None:
    policies = {"mine": _GivingUp(0.0), "other": _Constant(0.0)}
    table = lwdctl.evaluate(policies, env=_Costly(), episodes=12, max_steps=5)
    mine, other = table.conditions[0].overall, table.conditions[1].overall
    assert (mine.policy_failures, other.policy_failures) == (12, 0)
    assert mine.score is not None
    assert np.isnan(mine.score)
    assert other.score == -5.0
    assert np.isnan(mine.metrics["return"])
    assert "12" in repr(table).splitlines()[-2]
    again = ResultRow.from_json(json.loads(json.dumps(mine.to_json(), allow_nan=False)))
    assert again.policy_failures == 12
    assert np.isnan(again.metrics["return"])
    compared = lwdctl.compare(table, against="other", metric="return")
    (test,) = compared.tests
    assert np.isnan(test.score_difference.value)
    assert np.isnan(test.score_p)
    assert np.isnan(test.score_p_holm)
    assert 0 <= test.success_p_holm <= 1
    assert any("aborted an episode" in note for note in compared.notes)
    compared.save(tmp_path)
    text = (tmp_path / "comparison.csv").read_text() + repr(compared)
    assert "aborted" in text or "policy_failures" in text


class _Learning(_Constant):
    """Returns a tensor, as a network in a notebook does."""

    def act(self, observation: object) -> Any:
        return torch.full((2,), self.value, dtype=torch.bfloat16, requires_grad=True)


class _Paid(_Broken):
    def step(self, action: Any) -> Any:
        return np.zeros(2, dtype=np.float32), float(np.sum(action)), False, False, {}


def test_a_policy_may_return_tensors_with_gradients() -> None:
    table = lwdctl.evaluate({"mine": _Learning(0.5)}, env=_Paid(), episodes=2, max_steps=3)
    assert [one.return_ for one in table.episodes["mine"]] == [3.0, 3.0]


class _Refusing(_Constant):
    """Refuses its second action, as an exported policy refuses one that is not finite."""

    def reset(self) -> None:
        self.acted = 0

    def act(self, observation: object) -> np.ndarray:
        self.acted += 1
        if self.acted > 1:
            raise NotFiniteError("the policy's action is not finite")
        return super().act(observation)


class _WithMethodReplans(_Constant):
    def replans(self) -> int:
        return 7


def test_an_attribute_replans_that_is_no_count_is_none() -> None:
    for own in (_WithMethodReplans(0.0), _Constant(0.0)):
        own.__dict__.update({"replans": None} if type(own) is _Constant else {})
        table = lwdctl.evaluate({"mine": own}, env=_Broken(), episodes=1, max_steps=2)
        assert table.rows[-1].replans_per_episode == 0


def test_counts_of_replans_of_any_number_type_count() -> None:
    for count in (3, 3.0, np.float64(3), np.array(3), torch.tensor(3)):
        own = _Constant(0.0)
        own.__dict__["replans"] = count
        table = lwdctl.evaluate({"mine": own}, env=_Broken(), episodes=1, max_steps=2)
        assert table.rows[-1].replans_per_episode == 3


def test_an_action_that_a_policy_refuses_is_its_failure() -> None:
    table = lwdctl.evaluate({"mine": _Refusing(0.0)}, env=_Broken(), episodes=2, max_steps=3)
    for item in table.episodes["mine"]:
        assert (item.steps, item.policy_failure) == (1, "an action is not finite")


def test_one_task_and_one_label_are_not_taken_letter_by_letter() -> None:
    table = lwdctl.evaluate(
        {"mine": _Constant(0.0)}, env=_Broken, tasks="push", labels="slow", episodes=1, max_steps=1
    )
    (episode,) = table.episodes["mine"]
    assert (episode.plan.task, episode.plan.label) == ("push", "slow")


def test_results_of_two_protocols_are_not_compared() -> None:
    tables = [
        lwdctl.evaluate({name: _Constant(0.0)}, env=_Broken, episodes=2, max_steps=steps)
        for name, steps in (("lwd", 3), ("mine", 3), ("other", 2))
    ]
    lwd, mine, other = (table.conditions for table in tables)
    assert lwdctl.compare(lwdctl.ResultTable((*lwd, *mine))).tests
    with pytest.raises(ArtifactError, match="differ in their step limit: 3 and 2"):
        lwdctl.compare(lwdctl.ResultTable((*lwd, *other)))


def test_a_policy_of_arrays_without_an_environment_needs_one() -> None:
    rng = np.random.default_rng(0)
    walks = [rng.normal(size=(9, 2)) for _ in range(6)]
    data = lwdctl.Dataset.from_arrays(observations=walks, actions=walks)
    small = {"device": "cpu", "updates": 1, "batch_size": 2, "threads": 1}
    mlp = lwdctl.train_baseline(
        "mlp", data, lwdctl.BaselineConfig(**small, snippet_length=4), progress=SilentProgress()
    )
    policy = lwdctl.load_policy(mlp)
    with pytest.raises(ConfigError, match="the data of no policy name an environment"):
        lwdctl.evaluate(policy, episodes=2)
    table = lwdctl.evaluate(policy, env=_Broken(), episodes=2, max_steps=2)
    assert not any(row.cost == {} for row in table.rows)
    assert [row.episodes for row in table.rows if row.task == "all"] == [2]


@pytest.mark.sim
def test_an_environment_without_tasks_has_those_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env, short = EnvSpec("pusht", ()), {"episodes": 1, "max_steps": 1, "progress": SilentProgress()}
    table = lwdctl.evaluate({"mine": _Constant(0.0)}, env=env, **short)
    assert {row.task for row in table.rows} == {"push_t", "all"}
    monkeypatch.setattr("lwdctl.api.evaluation.environment_named", lambda name: env)
    with pytest.raises(ConfigError, match="there is no episode to run: 'pusht' names no task"):
        lwdctl.evaluate({"mine": _Constant(0.0)}, env=env, **short)


def test_numbers_out_of_range_are_refused() -> None:
    for values in ({"horizon": 0}, {"num_inference_steps": 0}, {"warm_start": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            lwdctl.Acting(**values)
    wrong = {"episodes": 0, "max_steps": -1, "perturbation": -1, "perturbation_probability": 2}
    wrong |= {"num_envs": -1, "workers": -1, "timeout": -1}
    nothing = dict.fromkeys(wrong, np.nan) | {"timeout": np.inf, "perturbation": (0, 25)}
    for name, value in [*wrong.items(), *nothing.items(), ("workers", None)]:
        with pytest.raises(ConfigError, match=f"'{name}'"):
            lwdctl.evaluate({"mine": _Constant(0.0)}, env=_Broken, **{"max_steps": 2, name: value})
    counted = {"episodes": np.int64(1), "max_steps": np.int64(2)}
    (row, _) = lwdctl.evaluate({"mine": _Constant(0.0)}, env=_Broken, **counted).rows
    assert row.episodes == 1


class _Old(_Broken):
    """Answers as environments of gym did before version 0.26."""

    def step(self, action: object) -> Any:
        return np.zeros(2, dtype=np.float32), 0.0, False, {}


class _WithoutInfo(_Broken):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, dtype=np.float32)


class _Forgetful(_Broken):
    observation_space = gymnasium.spaces.Dict(
        {name: gymnasium.spaces.Box(-1, 1, (1,)) for name in ("place", "speed")}
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return {"place": np.zeros(1, dtype=np.float32)}, {}


class _Misspelt(_Broken):
    def step(self, action: object) -> Any:
        return np.clp(action, 0, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (_Old, "step of .* returned 4 values, expected observation, reward, terminated, trunc"),
        (_WithoutInfo, "reset of .* returned ndarray, expected observation, info"),
        (_Forgetful, "returned no observation speed, but place"),
        (_Misspelt, r"no attribute 'clp' \(in step of test_evaluation.py, line \d+\)"),
    ],
)
def test_an_error_of_an_environment_says_what_was_expected_or_where(env: Any, message: str) -> None:
    with pytest.raises(SimulatorError, match=message):
        lwdctl.evaluate({"mine": _Constant(0.0)}, env=env, episodes=1, max_steps=2)


def test_what_is_no_environment_and_no_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env is 3, expected a name, a gymnasium.Env, or"):
        lwdctl.evaluate({"mine": _Constant(0.0)}, env=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is no policy to run"):
        lwdctl.evaluate({}, env=_Broken)
    with pytest.raises(ConfigError, match="one environment in this process") as caught:
        lwdctl.evaluate({"mine": _Constant(0.0)}, env=_Broken(), workers=2)
    assert "pass what makes it: its class" in caught.value.hint


def test_a_task_in_which_a_policy_gives_up_leaves_the_returns_of_the_others() -> None:
    conditions = []
    for name, failure in (("mine", "an action is not finite"), ("other", "")):
        episodes = tuple(
            EpisodeResult(
                EpisodePlan(index=index, seed=100_000 + index, task=task),
                steps=5,
                return_=-float(index),
                policy_failure=failure if task == "a" else "",
            )
            for index, task in enumerate("aabb")
        )
        rows = result_rows(episodes, "return", Condition(name, "", "toy"))
        conditions.append(ConditionResult(tuple(rows), episodes))
    compared = lwdctl.compare(lwdctl.ResultTable(tuple(conditions)), "other", metric="return")
    found = {(row.label, row.task): row.score.value for row in compared.results}
    assert np.isnan([found["mine", "a"], found["mine", "all"]]).all()
    assert found["mine", "b"] == found["other", "b"] == -2.5
    assert found["other", "a"] == -0.5
