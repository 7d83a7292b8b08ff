"""Numbers of a grouping in several spaces, as summary, table and sections with their figures."""

import dataclasses

import numpy as np
import pytest

from lwdctl.analysis.analyses import AnalyzeLatentsConfig
from lwdctl.analysis.latent_dimensions import Projection, dimension_use, principal_components
from lwdctl.analysis.latent_points import Grouping, LatentPoints
from lwdctl.analysis.latents import (
    LATENT,
    PCA,
    SNIPPET,
    STATE,
    TSNE,
    LatentAnalysis,
    compose,
    group_findings,
    position_fits,
)

EPISODES = 12
INDEX = np.repeat(np.arange(EPISODES) % 3, 4)
GROUPING = Grouping("label", "Operator", ("better_operator_1", "b", "c"), INDEX)
CONFIG = AnalyzeLatentsConfig(neighbors=3)

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(EPISODES), 4)
    position = np.tile([0.0, 0.25, 0.5, 0.75], EPISODES)
    latent = rng.normal(size=(len(episode), 5)) * 0.01
    latent[:, 0] += 5 * (INDEX == 1)
    latent[:, 2] += 5 * (INDEX == 2)
    latent[:, 1] += position
    row = np.arange(len(episode))
    return LatentPoints(row, latent, episode, (position * 40).astype(int), position)


@pytest.fixture
def spaces(points):
    flat = points.latent[:, [0, 2]]
    noise = np.random.default_rng(1).normal(size=flat.shape)
    return {LATENT: points.latent, TSNE: flat, PCA: flat, STATE: noise}


def analysis(points, spaces, grouping=GROUPING):
    return LatentAnalysis(
        config=CONFIG, points=points,
        components=principal_components(points.latent),
        projections=[Projection("tsne", "t-SNE", points.latent[:, :2])],
        groups=[(grouping, group_findings(grouping, points, spaces, CONFIG))],
        position=position_fits(points, spaces, 0),
        use=dimension_use(points.latent, points.latent * 0), missing=[SNIPPET],
    )  # fmt: skip


def test_numbers_of_the_latent_stand_beside_chance_and_the_baseline(points, spaces):
    numbers = group_findings(GROUPING, points, spaces, CONFIG).summary()
    assert (numbers["categories"], numbers["episodes"], numbers["points"]) == (3, EPISODES, 48)
    assert numbers["knn_accuracy"] == numbers["linear_accuracy"] == 1.0
    assert numbers["knn_accuracy_low"] < 1.0 == numbers["knn_accuracy_high"]
    assert numbers["chance"] == pytest.approx(1 / 3)
    assert numbers["chance_shuffled"] < 0.5
    assert numbers["silhouette"] > 0.9
    assert numbers["state_knn_accuracy"] < 0.7
    assert "tsne_linear_accuracy" not in numbers


def test_position_is_read_from_the_latent_alone(points, spaces):
    findings = compose(analysis(points, spaces))
    numbers = findings.summary["position"]
    assert numbers["r2"] > 0.95
    assert numbers["r2_low"] <= numbers["r2"] <= numbers["r2_high"]
    assert numbers["state_r2"] < 0.1
    assert "tsne_r2" not in numbers
    assert len(findings.sections[2].table.rows) == 2


def test_categories_of_one_episode_each_have_no_numbers(points, spaces):
    alone = Grouping("task", "Task", tuple(map(str, range(EPISODES))), points.episode)
    assert group_findings(alone, points, spaces, CONFIG) is None
    notes = analysis(points, spaces, alone).notes
    assert notes[0] == "numbers of task (no two categories have two episodes each)"
    assert "use fewer --points" in notes[1]


def test_few_episodes_have_no_fit_of_the_position(points, spaces):
    few = LatentPoints(*(getattr(points, name)[:16] for name in LatentPoints.__annotations__))
    assert position_fits(few, spaces, 0) == {}


@pytest.mark.slow
def test_sections_say_how_numbers_came_about_and_every_figure_is_written(points, spaces, tmp_path):
    findings = compose(analysis(points, spaces))
    findings.save(tmp_path, "Latents")
    assert set(findings.figures) == {"tsne-label", "tsne-position", "dimensions"}
    assert "Snippets of one episode never classify each other" in findings.sections[0].text
    assert findings.sections[1].table.rows[0][0] == "Latent, all dimensions"
    assert (tmp_path / "figures/tsne-label.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_legend_names_every_category(points, spaces):
    figures = compose(analysis(points, spaces)).figures
    (legend,) = figures["tsne-label"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["better operator 1", "b", "c"]
    title = figures["tsne-label"].axes[0].get_title(loc="left")
    assert "3-NN accuracy 1.00" in title
    assert "chance 0.3" in title.replace("\n", " ")


def test_points_are_written_one_a_line(points, spaces):
    lines = compose(analysis(points, spaces)).tables["points"].to_csv().splitlines()
    assert lines[0] == "episode,start,position,label,pc1,pc2,pc3,pc4,tsne1,tsne2"
    assert len(lines) == 49
    assert lines[1].startswith("0,0,0.0000,better_operator_1,")


@pytest.mark.slow
def test_a_collapsed_posterior_is_reported_as_noise(points, spaces):
    alive = analysis(points, spaces)
    dead = dataclasses.replace(alive, use=dimension_use(np.zeros((9, 5)), np.zeros((9, 5))))
    assert "No dimension is active" in compose(dead).sections[-1].text
    assert "No dimension is active" not in compose(alive).sections[-1].text
    summary = compose(alive).summary
    assert summary["active_units"] == alive.use.active.sum() > 0
    assert summary["kl"] == pytest.approx(alive.use.kl.sum())
