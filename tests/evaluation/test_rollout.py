import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ActionSpec
from lwdctl.core.seeding import generator
from lwdctl.evaluation import environment
from lwdctl.evaluation.rollout import PARTS, rollout
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.random import RandomPolicy


@pytest.fixture
def run(env, feedback_policy):
    def run(plans, *, num_envs=4, policy=None, **options):
        policy = policy or feedback_policy(num_envs)
        return rollout(policy, env, plans, num_envs=num_envs, **options)

    return run


def facts(result):
    """Everything about an episode but its wall time."""
    return (
        result.plan.index, result.steps, result.success, result.final_success, result.return_,
        dict(result.metrics), result.num_replans, result.error, result.policy_failure,
    )  # fmt: skip


class Shown:
    """Keeps what a progress bar would show."""

    def __init__(self):
        self.shown, self.done = [], 0

    @contextmanager
    def task(self, title, total, unit="it", start=0):
        yield self

    def advance(self, amount=1, **fields):
        self.done += amount
        self.shown.append((self.done, fields))


def test_progress_moves_with_every_step_of_a_batch(run, plans_of):
    progress = Shown()
    run(plans_of("walk", "short", "walk"), num_envs=2, progress=progress)
    steps = [fields["step"] for _, fields in progress.shown if "step" in fields]
    assert steps == [*range(1, 11), *range(1, 11)]
    assert [done for done, fields in progress.shown if "step" not in fields] == [2, 3]
    assert progress.shown[-1] == (3, {"solved": 1})
    assert progress.shown[-2] == (2, {"solved": 1, "step": 10})


MIXED = ("walk", "short", "walk", "walk", "short", "walk", "walk", "walk", "short", "walk")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_results_do_not_depend_on_the_number_of_workers(run, plans_of, workers):
    expected = run(plans_of(*MIXED), perturbation=0.3)
    got = run(plans_of(*MIXED), workers=workers, perturbation=0.3)
    assert [facts(item) for item in got.episodes] == [facts(item) for item in expected.episodes]


def test_results_do_not_depend_on_num_envs_or_neighbors(run, plans_of):
    plans = plans_of(*MIXED)
    expected = [facts(item) for item in run(plans).episodes]
    assert [facts(item) for item in run(plans, num_envs=3).episodes] == expected
    alone = [facts(run([plan]).episodes[0]) for plan in plans]
    assert alone == expected


def test_an_early_end_does_not_change_anothers_start(run, plans_of):
    walking = run(plans_of(*["walk"] * 10)).episodes
    mixed = run(plans_of(*MIXED)).episodes
    for index, task in enumerate(MIXED):
        if task == "walk":
            assert facts(mixed[index]) == facts(walking[index])
        else:
            assert mixed[index].steps == 3


def test_finished_environments_idle_and_the_others_step_as_one_batch(
    run, plans_of, feedback_policy
):
    policy = feedback_policy(4)
    run(plans_of("walk", "short", "walk", "short", "walk"), policy=policy)
    assert policy.batches == [4] * 3 + [2] * 7 + [1] * 10


def test_metrics_return_and_success_follow_the_steps(run, plans_of):
    walk, short, blink = run(plans_of("walk", "short", "blink")).episodes
    assert (walk.success, walk.final_success, walk.steps) == (False, False, 10)
    assert (short.success, short.final_success, short.steps) == (True, True, 3)
    assert (blink.success, blink.final_success, blink.steps) == (True, False, 10)
    assert walk.return_ == pytest.approx(walk.metrics["sum_gain"])
    assert walk.metrics["mean_gain"] == pytest.approx(walk.return_ / 10)
    assert walk.metrics["max_gain"] >= walk.metrics["last_gain"]
    assert walk.num_replans == 1


def test_max_steps_shortens_episodes(run, plans_of):
    assert [item.steps for item in run(plans_of("walk", "short"), max_steps=5).episodes] == [5, 3]


def test_recorded_initial_states_are_restored(run):
    start = np.array([0.5, -0.25])
    plan = EpisodePlan(index=0, seed=100_000, task="walk", initial_state=start)
    other = EpisodePlan(index=0, seed=100_000, task="walk", initial_state=start, model="xx")
    plain = EpisodePlan(index=0, seed=100_000, task="walk")
    returns = {run([item]).episodes[0].return_ for item in (plan, other, plain)}
    assert len(returns) == 3


def test_results_come_in_the_order_of_the_plans(run, plans_of):
    plans = plans_of(*["walk"] * 6)[::-1]
    assert [item.plan.index for item in run(plans).episodes] == [5, 4, 3, 2, 1, 0]


def test_no_perturbation_draws_nothing_and_a_zero_chance_changes_nothing(run, plans_of):
    plans = plans_of("walk", "walk")
    plain = [facts(item) for item in run(plans).episodes]
    assert [facts(item) for item in run(plans, perturbation=0.0).episodes] == plain
    never = run(plans, perturbation=0.5, perturbation_probability=0.0).episodes
    assert [facts(item) for item in never] == plain
    always = run(plans, perturbation=0.5, perturbation_probability=1.0).episodes
    assert all(facts(item) != other for item, other in zip(always, plain, strict=True))


def test_perturbations_come_from_the_episodes_seed(env, feedback_policy, plans_of):
    class Still(feedback_policy):
        def act(self, observations, active):
            return np.zeros((self.num_envs, 2), dtype=np.float32)

    (plan,) = plans_of("walk")
    result = rollout(Still(1), env, [plan], num_envs=1, workers=0, perturbation=2.0)
    place = np.random.default_rng(plan.seed).uniform(-1, 1, 2)
    rng = generator("perturbation", plan.task, plan.seed)
    expected = 0.0
    for _ in range(10):
        if rng.random() < 0.1:
            place = place + 2.0 * rng.normal(size=2)
        expected += place.sum()
    assert result.episodes[0].return_ == pytest.approx(expected)


@pytest.mark.slow
def test_a_non_finite_action_is_the_policys_failure(run, plans_of, feedback_policy):
    plans = plans_of("walk", "blink", "walk", "walk")
    expected = run(plans).episodes
    for workers in (0, 2):
        policy = feedback_policy(4, nan_at={100_001: 5})
        got = run(plans, policy=policy, workers=workers).episodes
        failed = got[1]
        assert failed.policy_failure == "an action is not finite"
        assert failed.error == ""
        assert failed.steps == 5
        assert failed.success is False
        assert failed.metrics == {"max_gain": 0, "last_gain": 0, "mean_gain": 0, "sum_gain": 7}
        for index in (0, 2, 3):
            assert facts(got[index]) == facts(expected[index])


@pytest.mark.parametrize("task", ["unstable", "not-finite", "no-reward"])
def test_diverged_physics_are_the_policys_failure(run, plans_of, task):
    other, failed = run(plans_of("walk", task)).episodes
    assert failed.policy_failure
    assert not failed.error
    assert not failed.success
    assert math.isfinite(failed.return_)
    assert failed.metrics["sum_gain"] == 7.0
    assert other.steps == 10


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", ["raise", "broken-start"])
def test_a_simulator_that_raises_twice_is_an_error(run, plans_of, task, workers):
    plans = plans_of("walk", task, "walk")
    got = run(plans, workers=workers).episodes
    assert got[1].error.startswith("RuntimeError")
    assert got[1].attempts == 2
    assert facts(got[0]) == facts(run(plans_of("walk")).episodes[0])
    assert got[2].error == ""


def test_a_worker_with_nothing_started_says_what_went_wrong(run, plans_of):
    (got,) = run(plans_of("broken-start"), workers=1).episodes
    assert got.error.startswith("RuntimeError: will not start (in restore of fake_simulator.py, ")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_simulator_that_raises_once_is_run_again_from_its_seed(run, plans_of, workers):
    got = run(plans_of("walk", "raise-once"), workers=workers).episodes
    same = run(plans_of("walk", "walk")).episodes
    assert got[1].attempts == 2
    assert facts(got[1]) == facts(same[1])


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_episodes_run_again(run, plans_of):
    plans = plans_of("walk", "walk", "die-once", "walk", "short", "walk")
    expected = run(plans_of("walk", "walk", "walk", "walk", "short", "walk")).episodes
    got = run(plans, workers=2).episodes
    assert [facts(item) for item in got] == [facts(item) for item in expected]
    # Environments 0 and 2 shared the worker.
    assert [item.attempts for item in got] == [2, 1, 2, 1, 1, 1]


@pytest.mark.slow
def test_a_worker_that_dies_again_is_an_error_of_its_episode_only(run, plans_of):
    plans = plans_of("walk", "walk", "die", "walk", "walk", "walk")
    expected = run(plans_of(*["walk"] * 6)).episodes
    got = run(plans, workers=2).episodes
    assert "died" in got[2].error
    assert got[2].attempts == 2
    for index in (0, 1, 3, 4, 5):
        assert facts(got[index]) == facts(expected[index])


@pytest.mark.slow
def test_a_worker_killed_from_outside_changes_no_result(run, plans_of, feedback_policy):
    class KillOnce(feedback_policy):
        killed = False

        def act(self, observations, active):
            if not self.killed and len(self.batches) == 5:
                self.killed = True
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            return super().act(observations, active)

    plans = plans_of(*MIXED)
    expected = [facts(item) for item in run(plans).episodes]
    got = run(plans, workers=2, policy=KillOnce(4)).episodes
    assert [facts(item) for item in got] == expected
    assert any(item.attempts == 2 for item in got)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "attempts"), [("hang-once", ""), ("hang", "in time")])
def test_a_hanging_simulator_runs_into_the_timeout(run, plans_of, task, attempts, monkeypatch):
    monkeypatch.setattr(environment, "START_TIMEOUT", 30.0)
    begun = time.monotonic()
    got = run(plans_of("walk", task), workers=2, timeout=1.0).episodes
    assert time.monotonic() - begun < 30
    assert attempts in got[1].error
    assert bool(got[1].error) == bool(attempts)
    assert got[1].attempts == 2
    assert got[0].attempts == 1


def test_an_unknown_task_is_the_users_error_not_the_episodes(run, plans_of):
    for workers in (0, 1):
        with pytest.raises(ConfigError, match="no-such") as caught:
            run(plans_of("no-such"), workers=workers)
        assert caught.value.hint == "did you mean 'walk'?"


def test_no_process_stays_behind(run, plans_of):
    run(plans_of("walk", "die"), workers=2)
    assert multiprocessing.active_children() == []
    assert not [item for item in threading.enumerate() if "lwdctl" in item.name]


@pytest.mark.slow
def test_an_interrupted_rollout_leaves_no_process(run, plans_of, feedback_policy):
    class Interrupted(feedback_policy):
        def act(self, observations, active):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plans_of("walk", "walk"), workers=2, policy=Interrupted(4))
    assert multiprocessing.active_children() == []


def test_wall_time_is_split_and_shared_out(run, plans_of):
    result = run(plans_of("walk", "short"))
    assert tuple(result.seconds) == PARTS
    for part in PARTS:
        shared = sum(item.seconds[part] for item in result.episodes)
        assert shared == pytest.approx(result.seconds[part])
    parts = sum(result.seconds[part] for part in PARTS if part != "total")
    assert 0 < parts <= result.seconds["total"]


class InParts:
    """Makes a policy of tests act in parts, but for every fourth step; keeps what was asked."""

    def __init__(self, policy):
        self._policy, self.calls, self._step = policy, [], 0

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def act(self, observations, active):
        self.calls.append(np.flatnonzero(active).tolist())
        return self._policy.act(observations, active)

    def acts_in_parts(self, running):
        self._step += 1
        return self._step % 4 != 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_do_not_depend_on_the_parts_that_a_policy_acts_for(
    run, plans_of, feedback_policy, workers
):
    expected = run(plans_of(*MIXED), num_envs=5, perturbation=0.3)
    policy = InParts(feedback_policy(5, nan_at={100_006: 2}))
    got = run(plans_of(*MIXED), num_envs=5, policy=policy, workers=workers, perturbation=0.3)
    assert got.episodes[6].policy_failure == "an action is not finite"
    assert got.episodes[6].steps == 2
    for one, other in zip(got.episodes, expected.episodes, strict=True):
        assert one.plan.index == 6 or facts(one) == facts(other)
    first = {1: [0, 1], 2: [0, 2, 4], 3: [0, 2, 3]}[workers]
    second = [index for index in range(5) if index not in first]
    assert policy.calls[:4] == [[0, 1, 2, 3, 4], first, second, first]


def test_a_part_is_acted_for_while_the_other_parts_simulators_step(env, plans_of, tmp_path):
    class Meeting(RandomPolicy):
        acted = 0

        def act(self, observations, active):
            self.acted += int(active[0])
            if self.acted == 4:  # while environment 1 takes its third step, which waits for this
                (tmp_path / "marker").touch()
            return super().act(observations, active)

    policy = Meeting(ActionSpec(2, "delta", "units", (-1.0,) * 2, (1.0,) * 2), 2)
    got = rollout(policy, env, plans_of("walk", "wait"), num_envs=2, workers=2)
    assert [item.error for item in got.episodes] == ["", ""]
    assert [item.attempts for item in got.episodes] == [1, 1]
    assert policy.acted == 10


@pytest.mark.slow
@pytest.mark.parametrize("task", ["die-once", "hang-once", "raise-once", "stop-once"])
def test_an_episode_lost_in_one_part_runs_again(run, plans_of, feedback_policy, task, monkeypatch):
    monkeypatch.setattr(environment, "START_TIMEOUT", 30.0)
    tasks = ["walk", "walk", "walk", "short", "walk", "walk"]
    expected = run(plans_of(*tasks)).episodes
    tasks[1] = task
    policy = InParts(feedback_policy(4))
    got = run(plans_of(*tasks), policy=policy, workers=2, timeout=2.0).episodes
    assert [facts(item) for item in got] == [facts(item) for item in expected]
    assert got[1].attempts == 2


@pytest.mark.slow
def test_shared_memory_is_gone_after_a_rollout(run, plans_of, feedback_policy):
    def mappings():
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line for line in lines if "memfd:lwdctl" in line]

    def descriptors():
        gc.collect()
        return Counter(
            str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
        )

    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux's /proc")
    run(plans_of("walk"), workers=1)
    before = descriptors()

    class Looking(InParts):
        seen = 0

        def act(self, observations, active):
            self.seen = max(self.seen, len(mappings()))
            return super().act(observations, active)

    policy = Looking(feedback_policy(4))
    run(plans_of("walk", "walk", "die", "walk"), workers=2, policy=policy)
    after = descriptors()
    assert policy.seen == 1
    assert mappings() == []
    assert after - before == Counter()  # what earlier tests left open may close meanwhile
