import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.core.lerobot_features import feature_names
from lwdctl.core.records import ObservationSpec


@pytest.mark.parametrize(
    ("names", "features"),
    [
        (("observation",), ("observation.state",)),
        (("robot/state",), ("observation.robot.state",)),
        (("observation.state", "object"), ("observation.state", "observation.object")),
    ],
)
def test_observations_become_features(names, features):
    specs = [ObservationSpec(name, 1) for name in names]
    assert tuple(feature_names(specs).values()) == features


def test_two_observations_may_not_become_one():
    names = ("agent", "observation.agent")
    specs = [ObservationSpec(name, 1) for name in names]
    with pytest.raises(ConfigError, match="the same feature"):
        feature_names(specs)
