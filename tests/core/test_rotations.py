"""Rotations as six numbers, and what networks may make of them."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.transform import Rotation

from lwdctl.core.rotations import rotation_of, six_numbers

vectors = arrays.arrays(np.float64, 3, elements=st.floats(-3.0, 3.0))
sixes = arrays.arrays(np.float64, 6, elements=st.floats(-1.0, 1.0, width=32))


def test_they_are_the_turned_x_and_y_axes():
    quarter = Rotation.from_rotvec([0, 0, np.pi / 2])
    np.testing.assert_allclose(six_numbers(quarter), [0, 1, 0, -1, 0, 0], atol=1e-12)
    several = six_numbers(Rotation.concatenate([Rotation.identity(), quarter]))
    np.testing.assert_allclose(several, [[1, 0, 0, 0, 1, 0], [0, 1, 0, -1, 0, 0]], atol=1e-12)


@given(vectors)
def test_a_rotation_comes_back(vector):
    wanted = Rotation.from_rotvec(vector)
    found = rotation_of(six_numbers(wanted).astype(np.float32).astype(np.float64))
    assert (found * wanted.inv()).magnitude() < 1e-6


@given(vectors, st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.floats(-1.0, 1.0))
def test_lengths_and_slant_do_not_matter(vector, long, wide, slant):
    wanted = Rotation.from_rotvec(vector)
    six = six_numbers(wanted)
    six = np.concatenate([long * six[:3], wide * six[3:] + slant * six[:3]])
    assert (rotation_of(six) * wanted.inv()).magnitude() < 1e-6


@given(sixes)
def test_whatever_a_network_says_is_a_rotation_or_none(six):
    found = rotation_of(six)
    assume(found is not None)
    matrix = found.as_matrix()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "six",
    [[0] * 6, [0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [1, 0, 0, -0.5, 0, 0], [1e-9, 0, 0, 0, 1, 0]],
)
def test_zero_and_parallel_axes_say_none(six):
    assert rotation_of(np.array(six, np.float64)) is None
