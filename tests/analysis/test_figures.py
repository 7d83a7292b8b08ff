from hypothesis import given
from hypothesis import strategies as st

from lwdctl.analysis.figures import pareto_front


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
