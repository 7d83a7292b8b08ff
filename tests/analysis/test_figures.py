import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lwdctl.analysis.comparison import Comparison
from lwdctl.analysis.figures import pareto_front

sys.path.insert(0, str(Path(__file__).parent))
from comparison_rows import row

sys.path.pop(0)


def test_the_pareto_front_by_hand():
    costs = [1.0, 2.0, 3.0, 3.0, 9.0]
    values = [0.2, 0.1, 0.5, 0.6, 0.6]
    assert pareto_front(costs, values) == [0, 3]
    assert pareto_front([], []) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_nothing_beats_the_front_and_the_front_beats_all_else(points):
    costs, values = zip(*points, strict=True)
    front = pareto_front(costs, values)

    def beaten(index, by):
        return costs[by] <= costs[index] and values[by] >= values[index]

    assert all(any(beaten(index, by) for by in front) for index in range(len(points)))
    assert all(not beaten(one, other) for one in front for other in front if one != other)


def test_a_long_legend_makes_the_figure_higher_and_leaves_the_axes_their_room():
    def height(policies):
        rows = [
            row(f"lwd with a long name, number {number}", 0.5, 10.0 ** (number % 4))
            for number in range(policies)
        ]
        figure = Comparison("toyland", "overlap", rows[0].label, tuple(rows)).figures[
            "success-by-flops"
        ]
        figure.draw_without_rendering()
        (axes,) = figure.axes
        return axes.get_window_extent().height

    assert height(14) > 0.8 * height(2)
