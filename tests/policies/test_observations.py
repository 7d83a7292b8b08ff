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


def test_a_row_of_all_keys_is_answered_with_its_components():
    with pytest.raises(DataError) as error:
        checked_observations(np.zeros((1, 4)), SPECS, (1,))
    assert error.value.message.endswith("(4,), the policy needs (5,)")
    assert error.value.hint == f"{COMPONENTS.format(5)}: hand (2), goal (3)"
