"""Figures distinguish many categories, and show every point."""

import numpy as np
import pytest

from lwdctl.analysis.latent_figures import Projection, draw_categories, draw_plain, draw_position
from lwdctl.analysis.latent_points import Grouping


def drawn_points(axes):
    return sum(len(item.get_offsets()) for item in axes.collections)


def test_every_point_is_drawn_and_unknown_ones_have_no_entry():
    projection = Projection("tsne", "t-SNE", np.random.default_rng(0).normal(size=(40, 2)))
    index = np.arange(40) % 4 - 1
    figure = draw_categories(projection, Grouping("label", "Label", ("a", "b", "c"), index), "")
    assert drawn_points(figure.axes[0]) == 40
    assert len(figure.legends[0].get_texts()) == 3


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
        draw(projection, "") if draw else draw_position(projection, np.linspace(0, 1, 30), "R² 0.5")
    )
    assert drawn_points(figure.axes[0]) == 30
    assert figure.axes[0].get_xlabel() == "one"
    assert len(figure.axes) == (1 if draw else 2)
