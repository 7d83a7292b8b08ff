"""Principal components, t-SNE and the use of dimensions on points whose structure is known."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lwdctl.analysis.latent_dimensions import (
    Projection,
    dimension_use,
    draw_categories,
    draw_plain,
    draw_position,
    principal_components,
    tsne,
    usable_perplexity,
)
from lwdctl.analysis.latent_points import Grouping


def points_of(variances):
    """Points whose sample covariance has exactly these eigenvalues, rotated."""
    rng = np.random.default_rng(0)
    size = len(variances)
    flat, _ = np.linalg.qr(rng.normal(size=(60, size)) - 0.0)
    flat = np.linalg.qr(flat - flat.mean(axis=0))[0] * np.sqrt(59)
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return flat * np.sqrt(variances) @ turn + 3.0


@pytest.mark.parametrize(
    ("variances", "dimension", "needed"),
    [
        ([1.0] * 6, 6.0, 6),
        ([1.0, 0, 0, 0, 0], 1.0, 1),
        ([4.0, 2.0, 1.0, 1.0], 64 / 22, 4),
        ([90.0, 6.0, 2.0, 2.0], 100**2 / (8100 + 36 + 8), 2),
    ],
)
def test_the_effective_dimension_is_the_participation_ratio(variances, dimension, needed):
    found = principal_components(points_of(variances))
    assert found.effective_dimension == pytest.approx(dimension)
    assert found.needed == needed
    assert found.fractions == pytest.approx(np.array(variances) / sum(variances), abs=1e-9)
    assert found.coordinates.shape == (60, min(4, len(variances)))
    assert found.coordinates.var(axis=0, ddof=1) == pytest.approx(variances[:4], abs=1e-9)


@pytest.mark.parametrize(("wanted", "points", "used"), [(30, 2000, 30), (30, 31, 10), (30, 3, 1)])
def test_the_perplexity_fits_the_number_of_points(wanted, points, used):
    assert usable_perplexity(wanted, points) == used


@pytest.mark.parametrize("size", [1, 8])
def test_tsne_keeps_clusters_apart_and_repeats(size):
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 20)
    points = rng.normal(size=(40, size)) * 0.1 + 10.0 * group[:, None]
    embedded = tsne(points, 5.0, seed=0)
    centers = [embedded[group == index].mean(axis=0) for index in (0, 1)]
    distance = [np.linalg.norm(embedded - center, axis=1) for center in centers]
    assert (np.argmin(distance, axis=0) == group).all()
    assert tsne(points, 5.0, seed=0).tobytes() == embedded.tobytes()


def test_kl_is_that_of_torch():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(7, 3)).astype(np.float32)
    log_variance = rng.normal(size=(7, 3)).astype(np.float32)
    posterior = Normal(torch.from_numpy(mean), torch.exp(0.5 * torch.from_numpy(log_variance)))
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).numpy().mean(axis=0)
    np.testing.assert_allclose(dimension_use(mean, log_variance).kl, expected, rtol=1e-5)


def test_a_dimension_that_stays_at_the_prior_is_not_active():
    rng = np.random.default_rng(0)
    used, unused = rng.normal(0, 2, 1000), rng.normal(0, 0.05, 1000)  # variances 4 and 0.0025
    mean = np.stack([used, unused], axis=1)
    log_variance = np.tile([np.log(0.01), 0.0], (1000, 1))
    use = dimension_use(mean, log_variance)
    assert use.active.tolist() == [True, False]
    assert use.posterior_std.tolist() == pytest.approx([0.1, 1.0])
    assert use.mean_std == pytest.approx([2.0, 0.05], rel=0.05)
    assert use.kl[0] == pytest.approx(0.5 * (0.01 + 4 - 1 - np.log(0.01)), rel=0.1)
    assert use.kl[1] < 0.01


def drawn_points(axes):
    return sum(len(item.get_offsets()) for item in axes.collections)


def test_every_point_is_drawn_and_unknown_ones_have_no_entry():
    projection = Projection("tsne", "t-SNE", np.random.default_rng(0).normal(size=(40, 2)))
    index = np.arange(40) % 4 - 1
    figure = draw_categories(projection, Grouping("label", "Label", ("a", "b", "c"), index), "")
    assert drawn_points(figure.axes[0]) == 40
    assert len(figure.legends[0].get_texts()) == 3


@pytest.mark.slow
def test_fifty_tasks_look_different():
    names = tuple(f"task-{number}" for number in range(50))
    projection = Projection("tsne", "t-SNE", np.random.default_rng(0).normal(size=(100, 2)))
    figure = draw_categories(projection, Grouping("task", "Task", names, np.arange(100) % 50), "")
    looks = {
        (tuple(item.get_facecolor()[0]), item.get_paths()[0].vertices.tobytes())
        for item in figure.axes[0].collections
        if len(item.get_offsets())
    }
    assert len(looks) == 50
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert box.height > 0.5 * box.width  # the legend leaves room for the picture


@pytest.mark.parametrize("draw", [draw_plain, None])
def test_one_color_or_a_scale(draw):
    projection = Projection(
        "pca12", "PCA", np.random.default_rng(0).normal(size=(30, 2)), ("one", "two")
    )
    figure = (
        draw(projection) if draw else draw_position(projection, np.linspace(0, 1, 30), "R² 0.5")
    )
    assert drawn_points(figure.axes[0]) == 30
    assert figure.axes[0].get_xlabel() == "one"
    assert len(figure.axes) == (1 if draw else 2)
