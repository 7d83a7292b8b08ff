"""Points are drawn evenly and latents sampled; groupings come from what the data stores."""

from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.analysis.latent_points import draw_evenly, draw_points, groupings, rows_of_split
from lwdctl.artifacts.latents import LatentStore, LatentWriter
from lwdctl.artifacts.snippets import EpisodeTable
from lwdctl.core.errors import ConfigError

OPERATORS = ("better_operator_1", "okay_operator_1", "okay_operator_2")


def table(count, label):
    column = np.zeros(count, np.int64)
    return EpisodeTable(
        start=100 * np.arange(count), length=column + 100, task=column, label=np.array(label),
        split=(np.arange(count) == 0).astype(np.int8), success=column - 1, seed=column,
        weight=np.ones(count), source=("demo",) * count,
    )  # fmt: skip


def snippets(count=4, label=(0, 1, 2, -1), labels=OPERATORS, tasks=("lift",)):
    spec = SimpleNamespace(labels=labels, env=SimpleNamespace(tasks=tasks))
    return SimpleNamespace(episodes=table(count, label), spec=spec)


@pytest.fixture
def latents(tmp_path):
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(4), 10)
    writer = LatentWriter(tmp_path / "latents.zarr", 3, 2)
    writer.append(
        mean=rng.normal(size=(40, 3)), log_variance=np.full((40, 3), 2 * np.log(0.5)),
        state=rng.normal(size=(40, 2)), task=episode * 0, label=episode * 0, episode=episode,
        start=np.tile(np.arange(10) * 10, 4),
    )  # fmt: skip
    writer.close()
    return LatentStore.open(tmp_path)


def test_points_are_spread_evenly_over_episodes():
    episode = np.array([3] * 50 + [1] * 4 + [8] * 20)
    drawn = draw_evenly(episode, 20, seed=0)
    assert np.unique(episode[drawn], return_counts=True)[1].tolist() == [4, 8, 8]
    assert len(set(drawn.tolist())) == 20
    assert (np.diff(drawn) > 0).all()
    assert draw_evenly(episode, 20, seed=0).tolist() == drawn.tolist()
    assert draw_evenly(episode, 20, seed=1).tolist() != drawn.tolist()
    assert draw_evenly(episode, 1000, seed=0).tolist() == list(range(74))
    assert len({*episode[draw_evenly(episode, 2, seed=0)]}) == 2


def test_drawn_points_know_where_they_come_from(latents):
    points = draw_points(latents, snippets(), np.arange(40), 12, 0, sampled=False)
    assert points.latent == pytest.approx(latents.mean[points.row])
    assert points.episode.tolist() == latents.episode[points.row].tolist()
    assert points.position == pytest.approx(latents.start[points.row] / 100)
    assert points.episodes == 4


def test_sampled_latents_scatter_as_the_posterior_says(latents):
    every = np.arange(40)
    drawn = [draw_points(latents, snippets(), every, 40, seed, sampled=True) for seed in range(60)]
    noise = np.stack([points.latent - latents.mean[points.row] for points in drawn])
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    assert abs(noise.mean()) < 0.05
    again = draw_points(latents, snippets(), every, 40, 0, sampled=True)
    assert again.latent.tobytes() == drawn[0].latent.tobytes()


def test_a_split_holds_its_own_episodes(latents):
    assert rows_of_split(latents, snippets(), "validation").tolist() == list(range(10))
    assert rows_of_split(latents, snippets(), "train").tolist() == list(range(10, 40))
    assert len(rows_of_split(latents, snippets(), "all")) == 40


def test_an_empty_split_is_refused(latents):
    store = snippets()
    store.episodes.split[:] = 0
    with pytest.raises(ConfigError, match="has 0 snippets in the split 'validation'"):
        rows_of_split(latents, store, "validation")


def test_operators_have_levels():
    task, label, level = groupings(snippets(), np.array([0, 1, 2, 3, 3]))
    assert (task.name, task.varies) == ("task", False)
    assert (label.name, label.title, label.categories) == ("label", "Operator", OPERATORS)
    assert label.index.tolist() == [0, 1, 2, -1, -1]
    assert (level.name, level.categories) == ("level", ("better", "okay", "worse"))
    assert level.index.tolist() == [0, 1, 1, -1, -1]
    assert level.varies


@pytest.mark.parametrize("labels", [("better", "okay", "worse"), ("expert", "medium", "random")])
def test_levels_as_labels_are_one_grouping(labels):
    found = groupings(snippets(labels=labels), np.arange(3))
    assert [(item.name, item.title) for item in found] == [("task", "Task"), ("label", "Label")]


def test_data_that_stores_nothing_has_no_varying_grouping():
    found = groupings(snippets(label=(-1,) * 4, labels=()), np.arange(4))
    assert [item.name for item in found if item.varies] == []
