"""Numbers of a source's demonstrations, collected while its episodes pass by."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.moments import RunningMoments
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

    def add(self, rows: FloatArray) -> None:
        """Add rows (time, dim)."""
        self._moments.add(rows)
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))

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


class DataStatistics:
    """Lengths, labels, returns and ranges of the episodes added so far.

    Attributes:
        ranges: Ranges of all observation keys side by side, then the action's.
        lengths: Steps of every episode.
        labels: Label of every episode, as an index into `label_names`.
        returns: Return of every episode, NaN where it has no rewards.

    Args:
        spec: What the episodes are.
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        sizes = [item.size for item in spec.observations]
        self.ranges = Ranges(sum(sizes) + spec.action.size)
        self.lengths = array("q")
        self.returns = array("d")
        self.labels = array("q")
        self.label_names: list[str] = []
        self._successes: Counter[tuple[str, bool | None]] = Counter()
        self._tasks: Counter[str] = Counter()
        self._example: tuple[str, FloatArray, FloatArray] | None = None

    def add(self, episode: Episode, observations: FloatArray) -> None:
        """Add an episode, with its observations side by side (time, obs)."""
        actions = np.asarray(episode.actions)
        self.ranges.add(np.concatenate([observations, actions], axis=1))
        if episode.label not in self.label_names:
            self.label_names.append(episode.label)
        self.labels.append(self.label_names.index(episode.label))
        self.lengths.append(episode.length)
        rewards = episode.rewards
        total = float("nan") if rewards is None else float(rewards.sum(dtype="float64"))
        self.returns.append(total)
        self._successes[episode.label, episode.success] += 1
        self._tasks[episode.task] += 1
        if self._example is None:
            shown = slice(EXAMPLE_STEPS)
            self._example = episode.source, actions[shown].copy(), observations[shown].copy()

    @property
    def steps(self) -> int:
        """Steps of all episodes together."""
        return sum(self.lengths)

    def returns_of(self, label: str) -> list[float]:
        """Return the known returns of the episodes of a label."""
        wanted = self.label_names.index(label)
        pairs = zip(self.labels, self.returns, strict=True)
        return [value for index, value in pairs if index == wanted and np.isfinite(value)]

    def to_mapping(self, limit: int, matching: Sequence[int]) -> dict[str, Any]:
        """Return JSON-ready statistics; `DataChecks.statistics` describes them.

        Args:
            limit: Step limit of an episode, 0 if unknown.
            matching: Observation component to show beside each action component, -1 for none.
        """
        lengths = list(self.lengths)
        edges, counts = _histogram(lengths, whole=True)
        return {
            "episodes": len(lengths),
            "steps": self.steps,
            "length": {
                **distribution(lengths),
                "limit": limit,
                "histogram": {"edges": edges, "counts": counts},
            },
            "tasks": dict(sorted(self._tasks.items())),
            "labels": {name: self._of_label(name) for name in sorted(self.label_names)},
            "returns": self._return_histograms(),
            "observations": self._observations(),
            "example": self._shown(matching),
        }

    def _of_label(self, label: str) -> dict[str, Any]:
        index, returns = self.label_names.index(label), self.returns_of(label)
        lengths = [
            length for one, length in zip(self.labels, self.lengths, strict=True) if one == index
        ]
        known = {flag: self._successes[label, flag] for flag in (True, False)}
        return {
            "episodes": len(lengths),
            "steps": sum(lengths),
            "return": distribution(returns) if returns else None,
            "successful": known[True],
            "success_known": sum(known.values()),
        }

    def _return_histograms(self) -> dict[str, Any] | None:
        known = [value for value in self.returns if np.isfinite(value)]
        if not known:
            return None
        edges, _ = _histogram(known)
        names = sorted(self.label_names)
        counts = {name: np.histogram(self.returns_of(name), edges)[0].tolist() for name in names}
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
