"""Numbers of a source's demonstrations, collected while its episodes pass by."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.moments import RunningMoments, statistics_of
from lwdctl.core.records import Episode, FloatArray, SourceSpec

EXAMPLE_STEPS = 200
BINS = 20


class Ranges:
    """Smallest, largest and mean value and standard deviation per component, in constant memory.

    Args:
        size: Number of components.
    """

    def __init__(self, size: int) -> None:
        self._moments = RunningMoments(size)
        self.low: npt.NDArray[np.float64] = np.full(size, np.inf)
        self.high: npt.NDArray[np.float64] = np.full(size, -np.inf)

    def add(self, count: int, statistics: npt.NDArray[np.float64]) -> None:
        """Add rows of which `core.moments.statistics_of` (statistic, dim) is known."""
        mean, m2, low, high = statistics
        self._moments.merge(count, mean, m2)
        self.low = np.minimum(self.low, low)
        self.high = np.maximum(self.high, high)

    @property
    def constant(self) -> npt.NDArray[np.bool_]:
        """Whether a component never changes, (dim,)."""
        found: npt.NDArray[np.bool_] = self.low == self.high
        return found

    def to_mapping(self, place: slice) -> dict[str, list[Any]]:
        """Return JSON-ready lists of the components at `place`."""
        columns = {
            "minimum": self.low,
            "maximum": self.high,
            "mean": self._moments.mean,
            "std": np.sqrt(self._moments.variance),
            "constant": self.constant,
        }
        return {name: values[place].tolist() for name, values in columns.items()}


class LabelStatistics:
    """Lengths, returns and outcomes of the episodes of one label.

    Attributes:
        lengths: Steps of every episode.
        returns: Return of every episode that has rewards.
        outcomes: Number of episodes that succeeded, failed, or do not say (None).
    """

    def __init__(self) -> None:
        self.lengths = array("q")
        self.returns = array("d")
        self.outcomes: Counter[bool | None] = Counter()

    def add(self, episode: Episode) -> None:
        """Add an episode."""
        self.lengths.append(episode.length)
        if episode.rewards is not None:
            self.returns.append(float(episode.rewards.sum(dtype="float64")))
        self.outcomes[episode.success] += 1

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON-ready numbers."""
        return {
            "episodes": len(self.lengths),
            "steps": sum(self.lengths),
            "return": distribution(self.returns) if self.returns else None,
            "successful": self.outcomes[True],
            "success_known": self.outcomes[True] + self.outcomes[False],
        }


class DataStatistics:
    """Lengths, labels, returns and ranges of the episodes added so far.

    Attributes:
        ranges: Ranges of all observation keys side by side, then the action's.
        lengths: Steps of every episode.
        labels: Numbers of the episodes of each label, in order of appearance.

    Args:
        spec: What the episodes are.
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        sizes = [item.size for item in spec.observations]
        self.ranges = Ranges(sum(sizes) + spec.action.size)
        self.lengths = array("q")
        self.labels: defaultdict[str, LabelStatistics] = defaultdict(LabelStatistics)
        self._tasks: Counter[str] = Counter()
        self._example: tuple[str, FloatArray, FloatArray] | None = None

    def add(self, episode: Episode, steps: FloatArray) -> npt.NDArray[np.float64]:
        """Add an episode.

        Args:
            episode: The episode.
            steps: Its observations and actions side by side, (time, dim).

        Returns:
            `core.moments.statistics_of` the steps.
        """
        found = statistics_of(steps)
        self.ranges.add(len(steps), found)
        self.labels[episode.label].add(episode)
        self.lengths.append(episode.length)
        self._tasks[episode.task] += 1
        if self._example is None:
            observations, actions = np.split(steps[:EXAMPLE_STEPS], [-episode.actions.shape[1]], 1)
            self._example = episode.source, actions.copy(), observations.copy()
        return found

    @property
    def steps(self) -> int:
        """Steps of all episodes together."""
        return sum(self.lengths)

    def summary(self) -> dict[str, Any]:
        """Return lengths, episodes of each task and label, and returns and successes if known."""
        found: dict[str, Any] = {
            "length": distribution(self.lengths),
            "episodes_by_task": dict(sorted(self._tasks.items())),
            "episodes_by_label": {
                name: len(item.lengths) for name, item in sorted(self.labels.items())
            },
        }
        if returns := self._returns():
            found["return"] = distribution(returns)
        solved, failed = (
            sum(item.outcomes[flag] for item in self.labels.values()) for flag in (True, False)
        )
        if solved + failed:
            found["success"] = solved / (solved + failed)
        return found

    def to_mapping(self, limit: int, matching: Sequence[int]) -> dict[str, Any]:
        """Return JSON-ready statistics; `DataChecks.statistics` describes them.

        Args:
            limit: Step limit of an episode, 0 if unknown.
            matching: Observation component to show beside each action component, -1 for none.
        """
        edges, counts = _histogram(self.lengths, whole=True)
        return {
            "episodes": len(self.lengths),
            "steps": self.steps,
            "length": {
                **distribution(self.lengths),
                "limit": limit,
                "histogram": {"edges": edges, "counts": counts},
            },
            "tasks": dict(sorted(self._tasks.items())),
            "labels": {name: item.to_mapping() for name, item in sorted(self.labels.items())},
            "returns": self._return_histograms(),
            "observations": self._observations(),
            "example": self._shown(matching),
        }

    def _returns(self) -> list[float]:
        return [value for item in self.labels.values() for value in item.returns]

    def _return_histograms(self) -> dict[str, Any] | None:
        known = self._returns()
        if not known:
            return None
        edges, _ = _histogram(known)
        counts = {
            name: np.histogram(item.returns, edges)[0].tolist()
            for name, item in sorted(self.labels.items())
        }
        return {"edges": edges, "counts": counts}

    def _observations(self) -> dict[str, Any]:
        found, start = {}, 0
        for item in self._spec.observations:
            place = slice(start, start + item.size)
            found[item.name] = {
                "size": item.size,
                "network": item.network,
                **self.ranges.to_mapping(place),
            }
            start += item.size
        return found

    def _shown(self, matching: Sequence[int]) -> dict[str, Any] | None:
        """Return the first steps of one episode, actions beside what they follow."""
        if self._example is None:
            return None
        source, actions, observations = self._example
        names = component_names(self._spec)
        return {
            "source": source,
            "actions": actions.T.tolist(),
            "observations": [
                observations[:, index].tolist() if index >= 0 else None for index in matching
            ],
            "observation_names": [names[index] if index >= 0 else "" for index in matching],
        }


def component_names(spec: SourceSpec) -> list[str]:
    """Return the names of all observation components side by side (`"robot0_eef_pos[0]"`)."""
    return [f"{item.name}[{i}]" for item in spec.observations for i in range(item.size)]


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Return smallest, median, mean and largest of some numbers."""
    return {
        "minimum": min(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "maximum": max(values),
    }


def _histogram(values: Sequence[float], whole: bool = False) -> tuple[list[float], list[int]]:
    """Return edges and counts of at most `BINS` bins; with `whole`, a bin is at least 1 wide."""
    low, high = float(min(values)), float(max(values))
    bins = min(BINS, max(1, round(high - low))) if whole else BINS
    if low == high:
        low, high, bins = low - 0.5, high + 0.5, 1
    edges = np.linspace(low, high, bins + 1)
    return edges.tolist(), np.histogram(values, edges)[0].tolist()
