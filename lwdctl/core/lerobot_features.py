"""The names that observations have in LeRobot, shared by the dataset export and by policies."""

from __future__ import annotations

from collections.abc import Iterable

from lwdctl.core.errors import ConfigError
from lwdctl.core.records import ObservationSpec


def feature_names(observations: Iterable[ObservationSpec]) -> dict[str, str]:
    """Return the LeRobot feature that every observation key becomes, by key.

    Raises:
        ConfigError: Two keys become the same one.
    """
    names: dict[str, str] = {}
    for item in observations:
        name = item.name.replace("/", ".")  # LeRobot allows no slash
        if name == "observation":
            name = "observation.state"
        names[item.name] = name if name.startswith("observation.") else f"observation.{name}"
    if len(set(names.values())) < len(names):
        raise ConfigError(f"two of the observations {', '.join(names)} become the same feature")
    return names
