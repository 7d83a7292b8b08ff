"""Checks on the numbers of a source, made while its episodes pass by.

`lwdctl ingest` stops at an error that `DataChecks.findings` returns; `lwdctl inspect` lists all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import (
    LIMIT_MARGIN,
    UNKNOWN_UNITS,
    ActionSpec,
    Episode,
    Finding,
    Severity,
    SourceSpec,
)
from lwdctl.core.simulator_facts import REFERENCE_RETURNS
from lwdctl.data.checks import finite_rows
from lwdctl.data.quality.action_test import (
    FEWEST_TESTED,
    LONGEST,
    ActionTest,
    OutsideLimits,
    parse_limits,
    what_actions_follow,
)
from lwdctl.data.quality.episode_statistics import DataStatistics, JumpSearch, StepSample
from lwdctl.data.quality.ingest_report import worst_first
from lwdctl.data.reader import MergedReader

_HUGE_VALUES = np.errstate(over="ignore", invalid="ignore")
"""Squares of finite float32 may not be: sums and deviations that overflow say nothing."""
_ROWS = re.compile(r"(^|:)rows \d+:\d+$")
ZERO_TAIL = 2
"""So many trailing rows of nothing but zeros are padding; a single one may be a state at rest."""
SHOWN = 5
"""Places that a message names."""
CLIPPING_ADAPTERS = ("adroit", "metaworld", "mujoco", "robosuite")
"""Environments that clip an action to its limits before they execute it."""
RECORDED_WITHOUT_LIMIT = ("robosuite",)
"""Environments whose step limit holds in evaluation; a person may take longer to demonstrate."""


class DataChecks:
    """Statistics and findings of the episodes added so far, in bounded memory.

    Args:
        spec: What the episodes are.
        config: What the user requests of the actions (`actions`, `action_limits`,
            `clip_actions`) and `max_steps`.
        read: What the reader found when it opened the files. A note of the check `"semantics"`
            says that names in the file tell what actions are; a warning, that nothing does. One of
            the check `"too-long"` says what to do about long episodes of the format.

    Attributes:
        last: `core.moments.statistics_of` the observations and actions, side by side, of the
            episode that `add` returned last; None where they are not known, because its actions
            were clipped.

    Raises:
        ConfigError: `action_limits` is neither `data` nor a pair of numbers, or there is nothing
            to clip to.
    """

    def __init__(
        self, spec: SourceSpec, config: IngestConfig, read: Sequence[Finding] = ()
    ) -> None:
        self._spec, self._config = spec, config
        self._told = any(item.check == "semantics" and item.severity == "note" for item in read)
        self._long_told = any(item.check == "too-long" for item in read)
        self._declared = declared_action(spec.action, config)
        self._limit = config.max_steps or spec.env.max_steps
        sizes = [item.size for item in spec.observations]
        self._numbers = DataStatistics(spec)
        self._sample = StepSample(spec.action.size, sum(sizes))
        self._jumps = JumpSearch(sum(sizes))
        self._begins_with_zeros: npt.NDArray[np.bool_] = np.ones(sum(sizes), np.bool_)
        self._outside = OutsideLimits(*self._known_limits())
        if config.clip_actions and not self._outside.known:
            raise ConfigError(
                "--clip-actions: the limits of the actions are not known",
                "--action-limits LOW,HIGH gives them",
            )
        self._zero_rows = self._zero_tails = 0
        self._zero_episodes: list[str] = []
        self._tested: tuple[int, ActionTest] | None = None
        self.last: npt.NDArray[np.float64] | None = None

    @_HUGE_VALUES
    def add(self, episode: Episode) -> Episode | None:
        """Check one more episode.

        Returns:
            What is to be stored of it: without rows of zeros at its end and, if
            requested, with actions clipped to the limits. None if nothing is left.
        """
        kept = without_zero_tail(episode)
        if kept is None:
            self._zero_episodes.append(episode.source)
            if may_be_padding(episode.source):
                return None
            kept = episode
        if kept.length < episode.length:
            self._zero_tails += 1
            self._zero_rows += episode.length - kept.length
        parts = [np.asarray(kept.observations[item.name]) for item in self._spec.observations]
        steps = np.concatenate([*parts, np.asarray(kept.actions)], axis=1)
        observations = steps[:, : -self._spec.action.size]
        self.last = self._numbers.add(kept, steps)
        self._sample.add(kept.actions, observations)
        self._jumps.add(kept.source, observations)
        self._begins_with_zeros &= observations[0] == 0
        outside = self._outside.add(kept.source, kept.actions)
        if outside and self._config.clip_actions:
            low, high = self._outside.low, self._outside.high
            kept = dataclasses.replace(kept, actions=np.clip(kept.actions, low, high))
            self.last = None
        return kept

    @property
    def steps(self) -> int:
        """Steps of all episodes added so far."""
        return self._numbers.steps

    @property
    def episodes(self) -> int:
        """Number of episodes added so far."""
        return len(self._numbers.lengths)

    @_HUGE_VALUES
    def limits(self) -> tuple[tuple[float, ...], tuple[float, ...], str]:
        """Return the smallest and largest value per action component, and where they come from.

        The source is `"environment"`, `"file"`, `"option"` or `"data"`: the recorded range with a
        margin. Without any episode the data give nothing: two empty tuples.
        """
        low, high, source = self._known_limits()
        if low or not self.episodes:
            return low, high, source
        ranges, size = self._numbers.ranges, self._spec.action.size
        action = self._declared.limited_by(ranges.low[-size:], ranges.high[-size:])
        return action.low, action.high, action.limits

    @_HUGE_VALUES
    def action(self) -> ActionSpec:
        """Return the description of the actions: with limits, and with what they were found to be.

        Where the source does not say what its actions are, and the user neither, the test decides.
        """
        low, high, source = self.limits()
        semantics = (self._undeclared and self._test().verdict) or self._declared.semantics
        return dataclasses.replace(
            self._declared, semantics=semantics, low=low, high=high, limits=source
        )

    @_HUGE_VALUES
    def findings(self) -> list[Finding]:
        """Return what was found so far, the worst first."""
        if not self.episodes:
            return list(self._zeros())
        checks = (
            self._semantics(), self._limits(), self._zeros(), self._lengths(), self._returns(),
            self._jumped(), self._constant(), self._duplicated(),
        )  # fmt: skip
        found = [item for check in checks for item in check]
        return worst_first(found)

    @_HUGE_VALUES
    def summary(self) -> dict[str, Any]:
        """Return the main numbers of the episodes added so far, at least one."""
        return self._numbers.summary()

    @_HUGE_VALUES
    def statistics(self) -> dict[str, Any]:
        """Return JSON-ready numbers of the episodes added so far, {} without any.

        `episodes`, `steps`; `length` (minimum, median, mean, maximum, limit, histogram); `tasks`
        (episodes of each); `labels` (episodes, steps, return, successful, success_known of each);
        `returns` (histogram: edges, counts per label; None without rewards); `observations` (size,
        network and per component minimum, maximum, mean, std, constant); `action` (the same, and
        semantics, units, limits, low, high, control_rate, evidence); `example` (the first
        `EXAMPLE_STEPS` steps of one episode, per component of the action: the action, and the
        observation that matches it best with its name).
        """
        if not self.episodes:
            return {}
        action, test = self.action(), self._test()
        names = {name: index for index, name in enumerate(self._numbers.names)}
        matching = [-1] * action.size
        for item in test.components:
            moves = abs(item.motion) > item.position
            best = item.motion_of if moves else item.position_of
            matching[item.component] = names[best]
        ranges = self._numbers.ranges.to_mapping(slice(-action.size, None))
        return {
            **self._numbers.to_mapping(self._limit, matching),
            "action": {**dataclasses.asdict(action), **ranges, "evidence": test.to_mapping()},
        }

    @property
    def _undeclared(self) -> bool:
        """Whether neither the source nor the user says what actions are."""
        unknown = self._declared.units == UNKNOWN_UNITS and not self._told
        return unknown and self._config.actions == "recorded"

    def _known_limits(self) -> tuple[tuple[float, ...], tuple[float, ...], str]:
        """Return limits that do not depend on the data, empty where there are none."""
        text, action = self._config.action_limits, self._declared
        if text == "data":
            return (), (), ""
        if text is None:
            return action.low, action.high, action.limits if action.low else ""
        low, high = parse_limits(text)
        return (low,) * action.size, (high,) * action.size, "option"

    def _test(self) -> ActionTest:
        if self._tested is None or self._tested[0] != self.steps:
            self._tested = self.steps, self._run_test()
        return self._tested[1]

    def _run_test(self) -> ActionTest:
        if self._declared.semantics == "torque":
            return ActionTest("", 0, ())
        steps, names = self._sample.steps(), self._numbers.names
        actions = steps.actions
        untested = {i for i in range(actions.shape[1]) if len(np.unique(actions[:, i])) <= 2}
        copies = {j for j, name in enumerate(names) if "action" in name.lower()}
        zeros = np.flatnonzero(self._begins_with_zeros).tolist()
        repeated = {j for j in zeros if (steps.after[:, j, None] == actions).all(axis=0).any()}
        if len(repeated) >= actions.shape[1]:
            copies |= repeated  # the previous action is a part of the observation
        return what_actions_follow(steps, names, untested | {*self._declared.gripper}, copies)

    def _semantics(self) -> Iterable[Finding]:
        if self._declared.semantics == "torque":
            return
        test, declared = self._test(), self._declared.semantics
        seen, values = _describe(test), {"declared": declared, "verdict": test.verdict}
        if self._undeclared:
            if test.verdict:
                yield Finding(
                    "semantics", "note",
                    f"the source does not say what its actions are; {seen}: they are stored as"
                    f" {test.verdict}",
                    values=values,
                )  # fmt: skip
            else:
                yield Finding(
                    "semantics", "warning",
                    "the source does not say whether its actions are targets or motions, and the"
                    f" data do not either ({seen}); they are stored as {declared}",
                    hint="--actions recorded-absolute for targets, --actions delta for motions",
                    values=values,
                )  # fmt: skip
        elif test.verdict and test.verdict != declared:
            yield self._contradiction(test, seen, values)
        elif self._overrides and not test.verdict:
            yield Finding(
                "semantics", "error",
                f"--actions delta: the source says that its actions are"
                f" {self._spec.action.semantics}, and the data do not say otherwise ({seen})",
                hint="leave --actions out",
                values=values,
            )  # fmt: skip
        else:
            yield Finding("semantics", "note", f"actions are {declared}; {seen}", values=values)

    @property
    def _overrides(self) -> bool:
        """Whether the user declares motions although the source says otherwise."""
        source = self._spec.action
        known = source.semantics != "delta" and source.units != UNKNOWN_UNITS
        return self._config.actions == "delta" and known

    def _contradiction(self, test: ActionTest, seen: str, values: dict[str, Any]) -> Finding:
        by_user = self._config.actions != "recorded"
        teller = f"--actions {self._config.actions} says" if by_user else "the source says"
        means = {"absolute": "targets", "delta": "motions"}
        sure = test.verdict == "delta" or test.in_same_units or self._outside.count > 0
        option = "delta" if test.verdict == "delta" else "recorded-absolute"
        return Finding(
            "semantics",
            "error" if sure else "warning",
            f"{teller} that actions are {means.get(self._declared.semantics, 'torques')}"
            f" ({self._declared.semantics}), but {seen}",
            hint=f"--actions {option}",
            values=values,
        )

    def _limits(self) -> Iterable[Finding]:
        low, high, source = self.limits()
        if source == "data" and self._config.action_limits is None:
            yield Finding(
                "limits", "note",
                f"the source gives no limits of the actions; the recorded range with a margin of"
                f" {LIMIT_MARGIN:.0%} is taken: {_range(low, high)}",
                hint="--action-limits LOW,HIGH",
                values={"low": low, "high": high},
            )  # fmt: skip
        if not self._outside.count:
            return
        if self._config.clip_actions:
            yield Finding(
                "clipped", "note", f"{self._outside.describe()}; they are clipped",
                values=self._outside.values(),
            )  # fmt: skip
            return
        declared, verdict = self._declared.semantics, self._test().verdict
        if declared == "delta" and verdict == "absolute":
            return  # the contradiction is the reason, and clipping would be wrong
        clips = self._spec.env.adapter in CLIPPING_ADAPTERS and source == "environment"
        hint = "--clip-actions clips them" + (", as the environment does" if clips else "")
        hint += "; --action-limits data takes the recorded range as the limits"
        if declared == "delta" and not verdict:
            hint += "; --actions recorded-absolute if they are targets"
        yield Finding(
            "outside-limits", "error", self._outside.describe(), hint=hint,
            values=self._outside.values(),
        )  # fmt: skip

    def _zeros(self) -> Iterable[Finding]:
        if self._zero_tails:
            yield Finding(
                "zero-tail", "note",
                f"{self._zero_rows} rows of zeros at the end of {self._zero_tails} episodes are"
                " left out",
                values={"rows": self._zero_rows, "episodes": self._zero_tails},
            )  # fmt: skip
        padding = [name for name in self._zero_episodes if may_be_padding(name)]
        recorded = [name for name in self._zero_episodes if name not in padding]
        if padding:
            yield padding_left_out(padding)
        if recorded:
            yield _only_zeros("warning", recorded, "kept")

    def _lengths(self) -> Iterable[Finding]:
        lengths = np.array(self._numbers.lengths)
        longer, single = int((lengths > self._limit).sum()), int((lengths == 1).sum())
        if self._limit and longer and not self._long_told:
            people = self._spec.env.adapter in RECORDED_WITHOUT_LIMIT
            yield Finding(
                "too-long",
                "note" if people else "warning",
                f"{longer} of {len(lengths)} episodes are longer than the step limit of"
                f" {self._limit}; the longest has {lengths.max()} steps"
                + ("" if people else ": ends may be missing"),
                hint=f"--max-steps {lengths.max()} if that is the limit",
                values={"episodes": longer, "longest": int(lengths.max()), "limit": self._limit},
            )
        if single:
            yield Finding(
                "single-step", "warning",
                f"{single} of {len(lengths)} episodes have a single step: flags may not be ends",
                values={"episodes": single},
            )  # fmt: skip

    def _returns(self) -> Iterable[Finding]:
        known = reference_returns(self._spec.env.tasks)
        if known is None:
            return
        random, expert = known
        for label, item in self._numbers.labels.items():
            level = _level(label)
            if not item.returns or level is None:
                continue
            mean = math.fsum(item.returns) / len(item.returns)
            low, high = level
            score = (mean - random) / (expert - random)
            if not low <= score <= high:
                yield Finding(
                    "returns", "warning",
                    f"episodes of the label '{label}' have a mean return of {mean:.4g}, which is"
                    f" {score:.0%} of the way from a random policy ({random:g}) to an expert"
                    f" ({expert:g}): the label may be wrong",
                    hint="--label NAME",
                    values={"label": label, "mean": mean, "random": random, "expert": expert},
                )  # fmt: skip

    def _jumped(self) -> Iterable[Finding]:
        found = self._jumps.jumps(self._sample.steps())
        if found:
            places = [f"{item.source} row {item.row}" for item in found]
            yield Finding(
                "jumps", "warning",
                f"in {'at least ' * self._jumps.is_cut}{len(found)} places most observations jump"
                " by many times their usual step, as if an episode began there:"
                f" {listed(places, SHOWN, LONGEST)}",
                values={"count": len(found), "places": places[: SHOWN * SHOWN]},
            )  # fmt: skip

    def _constant(self) -> Iterable[Finding]:
        constant = np.flatnonzero(self._numbers.ranges.constant).tolist()
        if constant:
            yield Finding(
                "constant", "note",
                f"components that never change as stored: {self._grouped(constant)}",
                values={"components": [self._names()[index] for index in constant]},
            )  # fmt: skip

    def _duplicated(self) -> Iterable[Finding]:
        steps = self._sample.steps()
        if len(steps.actions) < FEWEST_TESTED:
            return
        columns = np.concatenate([steps.before, steps.actions], axis=1).T.copy()
        constant = self._numbers.ranges.constant
        first: dict[bytes, int] = {}
        pairs = [
            (first[key], index)
            for index, key in enumerate(column.tobytes() for column in columns)
            if not constant[index] and first.setdefault(key, index) != index
        ]
        if pairs:
            names = self._names()
            shown = [f"{names[two]} is {names[one]}" for one, two in pairs]
            yield Finding(
                "duplicated", "note", f"components that are equal: {listed(shown, SHOWN, LONGEST)}",
                values={"pairs": [[names[one], names[two]] for one, two in pairs]},
            )  # fmt: skip

    def _names(self) -> list[str]:
        return self._numbers.names + [f"action[{index}]" for index in range(self._spec.action.size)]

    def _grouped(self, components: Sequence[int]) -> str:
        """Return `"observation[27..110], action[3]"`."""
        names = self._names()
        runs: list[list[int]] = []
        for index in components:
            same = runs and index == runs[-1][1] + 1
            if same and names[index].partition("[")[0] == names[runs[-1][1]].partition("[")[0]:
                runs[-1][1] = index
            else:
                runs.append([index, index])
        texts = [
            names[start]
            if start == end
            else f"{names[start][:-1]}..{names[end].rpartition('[')[2]}"
            for start, end in runs
        ]
        return listed(texts, SHOWN, LONGEST)


def _only_zeros(severity: Severity, names: Sequence[str], fate: str) -> Finding:
    shown = listed(names, SHOWN, LONGEST)
    message = f"{len(names)} episodes hold nothing but zeros and are {fate}: {shown}"
    return Finding("zero-episodes", severity, message, values={"episodes": len(names)})


def padding_left_out(names: Sequence[str]) -> Finding:
    """Return the note that episodes of these names are padding."""
    return _only_zeros("note", names, "left out as padding")


def may_be_padding(name: str) -> bool:
    """Return whether an episode of this name is padding where it has nothing but zeros.

    That is so for rows of one long array. An episode that was recorded as one of its own is kept,
    with a warning.
    """
    return bool(_ROWS.search(name))


def with_checks(read: Sequence[Finding], checks: DataChecks) -> list[Finding]:
    """Return what readers and checks have found, the worst first.

    Where a reader doubts what actions are, the answer of the checks replaces its doubt.
    """
    own = checks.findings()
    answered = any(item.check == "semantics" for item in own)
    kept = [
        item
        for item in read
        if not (answered and item.check == "semantics" and item.severity == "warning")
    ]
    return worst_first([*kept, *own])


def read_finite(source: MergedReader, index: int) -> Episode:
    """Read an episode, also checking its rewards.

    Raises:
        NonFiniteError: It has NaN or infinity.
        DataError: It cannot be read.
    """
    episode = source.read(index)
    if episode.rewards is not None:
        finite_rows(episode.rewards, f"{source.paths[0]}: {episode.source}: rewards")
    return episode


def check_conversion(action: ActionSpec, config: IngestConfig) -> None:
    """Check that the actions of a source are targets where these are requested.

    Raises:
        ConfigError: They are not, and the reader could not convert them.
    """
    if config.actions == "absolute" != action.semantics:
        raise ConfigError(
            f"--actions {config.actions}: the recorded actions are {action.semantics} and cannot "
            "be converted",
            "leave --actions out to store them as recorded",
        )


def declared_action(action: ActionSpec, config: IngestConfig) -> ActionSpec:
    """Return the description of the actions with what the user declares about them.

    Limits that are infinite, or the largest number of their type, are none. Targets that the source
    calls motions do not have the motions' limits.
    """
    if not np.all(np.abs([*action.low, *action.high]) < np.finfo(np.float32).max):
        action = action.unlimited()
    if config.actions == "recorded-absolute" and action.semantics != "absolute":
        return dataclasses.replace(
            action, semantics="absolute", units="as recorded", low=(), high=(), limits=""
        )
    if config.actions == "delta" and action.semantics != "delta":
        return dataclasses.replace(action, semantics="delta", reference="")
    return action


def without_zero_tail(episode: Episode) -> Episode | None:
    """Return an episode without the rows of zeros at its end, None if it holds nothing else.

    `ZERO_TAIL` or more rows in which action, reward and all observations are 0 are padding.
    """
    actions = np.asarray(episode.actions)
    if actions[-1].any() or any(rows[-1].any() for rows in episode.observations.values()):
        return episode
    used = actions.any(axis=1)
    if episode.rewards is not None:
        used = used | (np.asarray(episode.rewards) != 0)
    for rows in episode.observations.values():
        used = used | np.asarray(rows).any(axis=1)
    length = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 0
    if episode.length - length < ZERO_TAIL:
        return episode
    if not length:
        return None
    return dataclasses.replace(
        episode,
        observations={key: rows[:length] for key, rows in episode.observations.items()},
        actions=actions[:length],
        rewards=None if episode.rewards is None else episode.rewards[:length],
        final_observation=None,
    )


def reference_returns(tasks: Sequence[str]) -> tuple[float, float] | None:
    """Return the mean returns of a random and an expert policy, None where they are not known."""
    names = {re.split(r"[-/]", task.lower())[0].removeprefix("adroithand") for task in tasks}
    return REFERENCE_RETURNS.get(names.pop()) if len(names) == 1 else None


def _level(label: str) -> tuple[float, float] | None:
    """Return the normalized returns, 0 random and 1 expert, that a label allows; None for any."""
    levels = {"expert": (0.5, math.inf), "random": (-math.inf, 0.5), "medium": (0.1, math.inf)}
    return levels.get(label.lower())


def _describe(test: ActionTest) -> str:
    """Return what the components follow, as a part of a sentence."""
    if not test.components:
        return "what they follow cannot be tested on this data"
    positions, motions = test.following("position"), test.following("motion")
    parts = []
    if positions:
        best = max(positions, key=lambda item: item.position)
        parts.append(
            f"{len(positions)} follow the position reached next (component {best.component}:"
            f" correlation {best.position:.2f} with {best.position_of})"
        )
    if motions:
        best = max(motions, key=lambda item: abs(item.motion))
        parts.append(
            f"{len(motions)} follow the motion made (component {best.component}:"
            f" correlation {best.motion:.2f} with the step of {best.motion_of})"
        )
    of = f"of {len(test.components)} tested components, "
    return of + (" and ".join(parts) if parts else "none clearly follows a position or a motion")


def _range(low: Sequence[float], high: Sequence[float]) -> str:
    pairs = [f"[{a:.3g}, {b:.3g}]" for a, b in zip(low, high, strict=True)]
    return listed(pairs, SHOWN, LONGEST)
