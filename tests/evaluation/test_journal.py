"""Finished episodes are kept as they end, and an interrupted rollout goes on after them."""

import json

import pytest

from lwdctl.evaluation.journal import EpisodeJournal
from lwdctl.evaluation.rollout import rollout

SOFTWARE = {"lwdctl": "1", "packages": {"mujoco": "3"}}
MIXED = ("walk", "short", "walk", "walk", "short", "walk", "walk", "walk", "short", "walk")


@pytest.fixture
def run(env, feedback_policy, tmp_path):
    def run(plans, *, stop_after=None, software=SOFTWARE, journal="kept", **options):
        """Roll out; `stop_after` steps of the policy interrupt it. Returns results and steps."""

        class Stopping(feedback_policy):
            def act(self, observations, active):
                if len(self.batches) == stop_after:
                    raise KeyboardInterrupt
                return super().act(observations, active)

        policy = Stopping(4)
        kept = EpisodeJournal(tmp_path / journal, software) if journal else None
        options = {"perturbation": 0.3, **options}
        result = rollout(policy, env, plans, num_envs=4, journal=kept, **options)
        return [item.to_json() for item in result.episodes], result.score, policy.batches

    return run


def lines(path):
    return [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_rollout_goes_on_after_its_finished_episodes(
    run, plans_of, tmp_path, workers
):
    plans = plans_of(*MIXED)
    whole, score, _ = run(plans, journal=None)
    # In the first batch, between two batches, in the second one and in the last one.
    for stop in (4, 10, 14, 23):
        path = tmp_path / f"stop{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(plans, stop_after=stop, journal=path.name)
        finished = {line["episode"]["index"] for line in lines(path)[1:]}
        assert finished
        assert len(finished) < len(plans)
        again, score_again, batches = run(plans, journal=path.name, workers=workers)
        assert (again, score_again) == (whole, score)
        steps = [item["steps"] for item in whole if item["index"] not in finished]
        assert sum(batches) == sum(steps)  # nothing that was finished ran again


def test_when_all_is_finished_no_simulator_starts(run, plans_of, env):
    plans = plans_of(*MIXED)
    whole = run(plans)
    env.settings["marker"] = None
    again = run(plans)
    assert again == (whole[0], "max_gain", [])


def test_a_journal_keeps_the_wall_time_of_finished_batches(run, plans_of, tmp_path):
    plans = plans_of(*["walk"] * 8)
    with pytest.raises(KeyboardInterrupt):
        run(plans, stop_after=15)
    finished = EpisodeJournal(tmp_path / "kept", SOFTWARE).finished(plans)
    assert sorted(finished) == [0, 1, 2, 3]
    assert all(item.seconds["total"] > 0 for item in finished.values())


def test_other_software_begins_anew(run, plans_of):
    plans = plans_of("walk", "short")
    whole = run(plans)
    assert run(plans) == (whole[0], whole[1], [])
    assert run(plans, software={**SOFTWARE, "lwdctl": "2"}) == whole
    assert run(plans) == whole  # what was kept was by the other software


def test_other_plans_are_not_taken_for_these(run, plans_of):
    whole = run(plans_of("walk", "walk"))
    other = run(plans_of("walk", "short"))
    assert len(other[2]) == 3
    assert other[0][0] == whole[0][0]


def test_damaged_and_torn_lines_do_not_count(run, plans_of, tmp_path):
    plans = plans_of("walk", "short", "walk")
    whole = run(plans)
    path = tmp_path / "kept"
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        assert run(plans)[:2] == whole[:2]
        path.write_bytes(content[:position])
        assert run(plans)[:2] == whole[:2]


def test_lost_episodes_are_not_kept(run, plans_of):
    plans = plans_of("walk", "raise", "short")
    whole = run(plans)
    assert whole[0][1]["error"]
    again = run(plans)
    assert again[0] == whole[0]
    assert again[2] == [1] * 6  # both attempts of that episode alone


def test_an_episode_that_ended_before_its_batch_was_interrupted_has_its_time(
    run, plans_of, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        run(plans_of("walk", "short", "walk", "short"), stop_after=5)
    kept = lines(tmp_path / "kept")[1:]
    assert [line["episode"]["index"] for line in kept] == [1, 3]
    assert all(line["seconds"]["total"] > 0 for line in kept)
