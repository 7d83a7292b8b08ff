"""What is said of observations that do not fit a policy."""

from __future__ import annotations

import numpy as np
import pytest

from lwdctl.core.errors import DataError
from lwdctl.core.records import ObservationSpec
from lwdctl.policies.policy import checked_observations

SPECS = [ObservationSpec("hand", 2), ObservationSpec("goal", 3)]
COMPONENTS = "give the {} components that the training data have, in their order"
ONE = "give one robot's observation at one step: no batch axis and no time axis"
MANY = "give act_batch one row for each of the 4 environments of reset_batch"


@pytest.mark.parametrize(
    ("shape", "batch", "shown", "needed", "hint"),
    [
        ((3,), (), "(3,)", "(2,)", COMPONENTS.format(2)),
        ((1, 2), (), "(1, 2)", "(2,)", ONE),
        ((1, 3), (1,), "(3,)", "(2,)", COMPONENTS.format(2)),
        ((1, 1, 2), (1,), "(1, 2)", "(2,)", ONE),
        ((4, 3), (4,), "(3,)", "(2,)", COMPONENTS.format(2)),
        ((1, 2), (4,), "(1, 2)", "(4, 2)", MANY),
    ],
)
def test_a_wrong_shape_is_answered_with_what_to_give(shape, batch, shown, needed, hint):
    with pytest.raises(DataError) as error:
        checked_observations({"hand": np.zeros(shape), "goal": np.zeros(3)}, SPECS, batch)
    assert error.value.message == (
        f"the observation 'hand' has the shape {shown}, the policy needs {needed}"
    )
    assert error.value.hint == hint


def test_an_array_is_the_observation_of_the_only_key():
    row = np.arange(2.0)
    assert checked_observations(row, SPECS[:1])["hand"].tolist() == [0.0, 1.0]
    with pytest.raises(DataError, match=r"'hand' has the shape \(3,\), the policy needs \(2,\)"):
        checked_observations(np.zeros((1, 3)), SPECS[:1], (1,))


@pytest.mark.parametrize("batch", [(), (4,)])
def test_an_array_is_no_observation_of_several_keys(batch):
    with pytest.raises(DataError, match=r"several keys: hand \(2\), goal \(3\)") as error:
        checked_observations(np.zeros((*batch, 5)), SPECS, batch)
    assert error.value.hint == "give one array for each: {'hand': ..., 'goal': ...}"


@pytest.mark.parametrize("values", ["a", [[1.0], [2.0, 3.0]], {"x": 1.0}])
def test_what_holds_no_numbers_is_named(values):
    with pytest.raises(DataError, match="the observation 'hand' is no array of numbers") as error:
        checked_observations({"hand": values, "goal": np.zeros(3)}, SPECS)
    assert error.value.hint == "give its 2 numbers as an array"
