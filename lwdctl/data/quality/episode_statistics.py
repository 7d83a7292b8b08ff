"""Numbers of a source's demonstrations, collected while its episodes pass by.

`StepSample` keeps a bounded random sample of the steps. `JumpSearch` looks for places where two
episodes follow each other without an end being marked.
There, most components move in one step by many times what they move otherwise, and by many times
what they move in the steps before and after. Fast motions last several steps, a wrapped angle
concerns one component, and a quaternion that changes its sign is the same orientation.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lwdctl.core.moments import RunningMoments, statistics_of
from lwdctl.core.records import Episode, FloatArray, SourceSpec
from lwdctl.core.seeding import generator

SAMPLED_STEPS = 4096
"""Enough for a correlation to be certain to two digits; wide observations get fewer."""
SAMPLED_NUMBERS = 4_000_000
FEWEST_STEPS = 256


class Steps(NamedTuple):
    """Steps that have a following observation in their episode.

    Attributes:
        actions: (step, action).
        before: (step, obs), all observation keys side by side, when the action was taken.
        after: (step, obs), the following observation.
    """

    actions: FloatArray
    before: FloatArray
    after: FloatArray


class StepSample:
    """Every step is kept with the same probability, whatever the number of steps.

    Each step draws a number; those with the smallest numbers are kept.

    Args:
        action_size: Components of an action.
        observation_size: Components of all observations.
    """

    def __init__(self, action_size: int, observation_size: int) -> None:
        width = action_size + 2 * observation_size
        self._size = min(SAMPLED_STEPS, max(FEWEST_STEPS, SAMPLED_NUMBERS // width))
        self._rng = generator("step-sample")
        self._threshold = 1.0
        self._drawn = [np.empty(0)]
        self._parts = [
            Steps(
                np.empty((0, action_size), np.float32),
                np.empty((0, observation_size), np.float32),
                np.empty((0, observation_size), np.float32),
            )
        ]

    def add(self, actions: FloatArray, observations: FloatArray) -> None:
        """Offer the steps of an episode: (time, action) and (time or time + 1, obs)."""
        count = min(len(actions), len(observations) - 1)
        drawn = self._rng.random(max(count, 0))
        rows = np.flatnonzero(drawn < self._threshold)
        if not len(rows):
            return
        self._drawn.append(drawn[rows])
        self._parts.append(Steps(actions[rows], observations[rows], observations[rows + 1]))
        if sum(map(len, self._drawn)) > 2 * self._size:
            self._shrink()

    def steps(self) -> Steps:
        """Return the sampled steps."""
        self._shrink()
        return self._parts[0]

    def _shrink(self) -> None:
        drawn = np.concatenate(self._drawn)
        steps = Steps(*map(np.concatenate, zip(*self._parts, strict=True)))
        if len(drawn) > self._size:
            kept = np.argpartition(drawn, self._size)
            self._threshold = float(drawn[kept[self._size]])
            kept = np.sort(kept[: self._size])
            drawn, steps = drawn[kept], Steps(*(part[kept] for part in steps))
        self._drawn, self._parts = [drawn], [steps]


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
        names: All components of the observations side by side (`"robot0_eef_pos[0]"`).

    Args:
        spec: What the episodes are.
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        self.names = [f"{item.name}[{i}]" for item in spec.observations for i in range(item.size)]
        self.ranges = Ranges(len(self.names) + spec.action.size)
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
        return {
            "source": source,
            "actions": actions.T.tolist(),
            "observations": [
                observations[:, index].tolist() if index >= 0 else None for index in matching
            ],
            "observation_names": [self.names[index] if index >= 0 else "" for index in matching],
        }


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


TIMES = 5.0
"""A jump is so many times as large as 90 % of all steps, and as its neighbors. On demonstrations of
robosuite, PushT and the Adroit hand at most 17 % of the components ever do that at once; where two
of their episodes meet, 55 to 90 % do."""
USUAL = 0.9
"""Quantile of the steps' sizes: up to a tenth of all steps may be jumps."""
FRACTION = 0.5
"""Fraction of the smooth components that must jump at once."""
SMOOTH = 0.5
"""Components whose usual step is below half of their standard deviation are searched."""
FEWEST = 2
"""Number of components that must jump: one alone may be a switch or an angle."""
SMALLEST = 0.01
"""Steps below a hundredth of a standard deviation count as rest."""
CANDIDATES = 256
"""Steps that are kept at least; of an episode a sixteenth of these are looked at."""
TURN_SLACK = 0.5
"""Radians; a wrapped angle steps by a full turn less its motion."""
SIGN_SLACK = 0.1


class Jump(NamedTuple):
    """One step that may be a jump.

    Attributes:
        source: The episode.
        row: Row of the episode after the jump.
        step: (obs,) size of the step per component; 0 where the component wrapped or turned sign.
        beside: (obs,) largest size of the neighboring steps.
    """

    source: str
    row: int
    step: FloatArray
    beside: FloatArray


class JumpSearch:
    """Keeps the steps that stand out most, in constant memory.

    Args:
        size: Components of all observations.

    Attributes:
        is_cut: Whether there were more steps that stand out than are kept.
    """

    def __init__(self, size: int) -> None:
        self._found: list[tuple[int, Jump]] = []
        self._sum: npt.NDArray[np.float64] = np.zeros(size)
        self._count = 0
        self.is_cut = False

    def add(self, source: str, observations: FloatArray) -> None:
        """Search an episode's observations (time, obs)."""
        if len(observations) < 3:
            return
        step = observations[1:] - observations[:-1]
        np.abs(step, out=step)
        self._sum += step.sum(axis=0)
        self._count += len(step)
        usual = (self._sum / self._count).astype(np.float32)
        standing_out = np.flatnonzero(step > TIMES * usual)
        counts = np.bincount(standing_out // step.shape[1])
        rows = np.flatnonzero(counts >= FEWEST)
        for row in rows[np.argsort(-counts[rows], kind="stable")][: CANDIDATES // 16].tolist():
            near = step[max(row - 1, 0) : row + 2].copy()
            near[min(row, 1)] = 0
            beside = near.max(axis=0)
            number = int(np.count_nonzero(step[row] > TIMES * np.maximum(beside, usual)))
            if number >= FEWEST:
                size = _without_wraps(observations[row], observations[row + 1], step[row])
                self._found.append((number, Jump(source, row + 1, size, beside)))
        if len(self._found) > 2 * CANDIDATES:
            self._found.sort(key=lambda item: -item[0])
            del self._found[CANDIDATES:]
            self.is_cut = True

    def jumps(self, steps: Steps) -> list[Jump]:
        """Return the jumps, by episode and row.

        Args:
            steps: A sample of all steps, which says what is usual.
        """
        if not self._found or not len(steps.after):
            return []
        deviation = steps.after.std(axis=0)
        usual = np.quantile(np.abs(steps.after - steps.before), USUAL, axis=0)
        smooth = (deviation > 0) & (usual <= SMOOTH * deviation)
        scale = np.maximum(usual, SMALLEST * deviation)[smooth]
        needed = max(FEWEST, FRACTION * int(smooth.sum()))
        found = []
        for _, jump in self._found:
            bound = TIMES * np.maximum(scale, jump.beside[smooth])
            if np.count_nonzero(jump.step[smooth] > bound) >= needed:
                found.append(jump)
        return sorted(found, key=lambda item: (item.source, item.row))


def _without_wraps(before: FloatArray, after: FloatArray, step: FloatArray) -> FloatArray:
    """Return the sizes of a step with 0 where an angle wrapped or a number changed its sign."""
    sign = np.abs(before + after) < SIGN_SLACK * np.maximum(np.abs(before), np.abs(after))
    turn = np.abs(step - math.tau) < TURN_SLACK
    return np.where(sign | turn, np.float32(0), step)
