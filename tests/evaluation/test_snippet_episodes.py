"""Snippets drawn, and episodes that start where they do: PushT, deterministic."""

from __future__ import annotations

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.core.errors import ArtifactError
from lwdctl.core.records import EnvSpec, Episode, SourceSpec
from lwdctl.core.simulator_facts import PUSHT_ACTION, PUSHT_OBSERVATIONS, PUSHT_TASK
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.envs.pusht import PushTSimulator
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.snippet_episodes import (
    REPLAYED,
    RESTORED,
    SHOWN,
    draw_snippets,
    plan_snippets,
    recorded_states,
)
from lwdctl.evaluation.traced import RecordedActions, TracingPolicy

pytestmark = pytest.mark.sim

ENV = EnvSpec("pusht", (PUSHT_TASK,), {}, 30)
KEYS = ("agent_position", "block_position")
LENGTH = 6


@pytest.fixture
def make_store(tmp_path):
    def make(states=True, final=True, lengths=(20, 14, 9)):
        path = tmp_path / f"made-{states}-{final}.zarr"
        simulator, rng = PushTSimulator(ENV, PUSHT_TASK), np.random.default_rng(0)
        writer = SnippetWriter(path, SourceSpec(PUSHT_OBSERVATIONS, PUSHT_ACTION, ENV, (), "made"))
        for seed, steps in enumerate(lengths):
            rows = [simulator.reset(seed)]
            start = simulator.initial_state()
            actions = rng.uniform(100, 400, size=(steps, 2)).astype(np.float32)
            rows += [simulator.step(action).observation for action in actions]
            seen = {
                item.name: np.stack([row[item.name] for row in rows]) for item in PUSHT_OBSERVATIONS
            }
            writer.append(
                Episode(
                    source=f"demo_{seed}",
                    observations={name: values[:-1] for name, values in seen.items()},
                    actions=actions,
                    final_observation={n: v[-1] for n, v in seen.items()} if final else None,
                    initial_state=start if states else None,
                    task=PUSHT_TASK,
                    split="train",
                )
            )
        writer.close()
        return SnippetStore.open(path)

    return make


def batches_of(store, rule):
    return SnippetBatches(store, KEYS, rule, split="train", seed=0)


def run(store, episodes, offsets):
    """Replay recorded actions from the snippets' starts; return starts, states, recorded."""
    starts = plan_snippets(store, episodes, offsets, LENGTH, seed=0)
    batch = batches_of(store, WindowRule(LENGTH)).cut(episodes, offsets)
    policy = TracingPolicy(RecordedActions(batch.actions.numpy()), KEYS)
    done = rollout(policy, ENV, starts.plans, num_envs=2, workers=0, max_steps=LENGTH + 1)
    assert [one.error for one in done.episodes] == [""] * len(episodes)
    reached = [policy.observations(plan.index) for plan in starts.plans]
    return starts, reached, recorded_states(store, starts.episodes, starts.offsets, KEYS, LENGTH)


def test_every_episode_gives_one_snippet_before_any_gives_a_second(make_store):
    store = make_store()
    batches = batches_of(store, WindowRule(LENGTH, min_valid_fraction=0.5))
    episodes, offsets = draw_snippets(batches, store, 7, seed=0)
    counts = np.bincount(episodes, minlength=3)
    assert counts.sum() == 7
    assert counts.min() >= 2
    assert len(set(zip(episodes.tolist(), offsets.tolist(), strict=True))) == 7
    # There are enough that need no padding.
    assert (offsets + LENGTH <= store.episodes.length[episodes]).all()
    again = draw_snippets(batches, store, 7, seed=0)
    np.testing.assert_array_equal(again[1], offsets)
    assert draw_snippets(batches, store, 7, seed=1)[1].tolist() != offsets.tolist()
    assert (np.diff(episodes) >= 0).all()


def test_padded_snippets_are_drawn_where_there_are_no_others(make_store):
    store = make_store()
    batches = batches_of(store, WindowRule(50, min_valid_fraction=0.1, first_only=True))
    episodes, offsets = draw_snippets(batches, store, 50, seed=0)
    assert episodes.tolist() == [0, 1, 2]
    assert offsets.tolist() == [0, 0, 0]
    starts = plan_snippets(store, episodes, offsets, 50, seed=0)
    assert starts.valid.tolist() == store.episodes.length.tolist()


def test_replayed_actions_lead_to_the_recorded_states(make_store, monkeypatch):
    monkeypatch.delattr(PushTSimulator, "state_at")
    episodes, offsets = np.array([0, 0, 1, 2]), np.array([0, 9, 8, 5])
    starts, reached, recorded = run(make_store(), episodes, offsets)
    assert starts.ways == (RESTORED, REPLAYED, REPLAYED, REPLAYED)
    assert starts.valid.tolist() == [6, 6, 6, 4]
    for row, states in enumerate(reached):
        steps = int(starts.valid[row]) + 1  # the last state is the final observation
        assert np.isfinite(recorded[row, :steps]).all()
        np.testing.assert_allclose(states[:steps], recorded[row, :steps], atol=1e-3)
    assert np.isnan(recorded[3, 5:]).all()


def test_observations_show_the_state_but_for_speeds(make_store):
    episodes, offsets = np.array([0, 1]), np.array([9, 0])
    starts, reached, recorded = run(make_store(states=True), episodes, offsets)
    assert starts.ways == (SHOWN, RESTORED)
    assert starts.plans[0].action_prefix is None
    np.testing.assert_allclose(reached[0][0], recorded[0, 0], atol=1e-3)
    assert np.abs(reached[0][1] - recorded[0, 1]).max() > 0.1
    without, *_ = run(make_store(states=False), episodes, offsets)
    assert without.ways == (SHOWN, SHOWN)


def test_a_start_that_cannot_be_reached_is_refused(make_store, monkeypatch):
    monkeypatch.delattr(PushTSimulator, "state_at")
    with pytest.raises(ArtifactError, match="holds no initial state"):
        plan_snippets(make_store(states=False), np.array([0]), np.array([3]), LENGTH, seed=0)


def test_what_follows_the_last_action_may_be_unknown(make_store):
    store = make_store(final=False)
    starts = plan_snippets(store, np.array([2]), np.array([3]), LENGTH, seed=0)
    recorded = recorded_states(store, starts.episodes, starts.offsets, KEYS, LENGTH)
    assert np.isfinite(recorded[0, :6]).all()
    assert np.isnan(recorded[0, 6]).all()
