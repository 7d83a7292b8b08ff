"""Evaluated conditions as a comparison takes them: read, labeled, grouped and paired."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lwdctl.analysis.comparison_records import SAMPLED, horizon_order
from lwdctl.analysis.resample import Pair, States, Values
from lwdctl.analysis.tables import gather
from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import read_description
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.core.untrusted import parse_json, typed
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.results import ALL_TASKS, Condition, ConditionResult

SUCCESS = "success"
_AGAIN = "evaluate again with this version of lwdctl"
METHOD = "lwd"
SETTINGS = (
    "sampler",
    "num_inference_steps",
    "warm_start",
    "temporal_ensemble",
    "guidance",
    "inpainting",
    "early_replans",
    "snippet_length",
)
"""What training seeds of one policy have in common in how they act."""
SAMPLING_MODELS = ("diffusion", "baseline")
"""Artifact types of the models that act by themselves, whose training can be judged."""
UNCHECKED = "unchecked"
CONVERGENCE = ("still gains", "undecided", UNCHECKED, "flat")
"""Verdicts on a training, the least favorable first."""


class EpisodeKey(NamedTuple):
    """What identifies an episode: its initial state and the behavior label it was run with."""

    task: str
    kind: str
    label: str
    number: int


def episode_key(episode: EpisodeResult) -> EpisodeKey:
    """Return what identifies an episode."""
    task, kind, number = episode.initial_state
    return EpisodeKey(task, kind, episode.plan.label, number)


def values_of(episode: EpisodeResult) -> dict[str, float]:
    """Return all numbers of an episode by name, `steps` and success (0 or 1) among them."""
    numbers = {**episode.values, "steps": episode.steps, SUCCESS: episode.success}
    return {name: float(one) for name, one in numbers.items()}


def value_of(episode: EpisodeResult, name: str) -> float:
    """Return a number of an episode, NaN where a simulator error ended it."""
    return math.nan if episode.error else values_of(episode)[name]


@dataclass(frozen=True, kw_only=True)
class Run(ConditionResult):
    """One trained policy under one condition.

    Attributes:
        label: Policy and latent source in short, made distinct from other runs where needed.
        source: Reference of the evaluation that holds it, "" in memory.
        evaluation: Name of that evaluation, shared by its versions.
        store: Digests of the demonstrations whose initial states were restored, otherwise "".
        convergence: Verdict of the newest `lwdctl analyze convergence` on the model that acted
            (`"flat"`, `"still gains"`, `"undecided"`), `"unchecked"` where only other models
            were analyzed, and "" where none was or no model acts by itself.
        trained: `type.setting` of everything that was trained or made for it, as text; empty where
            that is not known.
        own_limit: The step limit that the data give the environment, None where not known.
    """

    label: str
    source: str = ""
    evaluation: str = ""
    store: str = ""
    convergence: str = ""
    trained: Mapping[str, str] = field(default_factory=dict)
    own_limit: int | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the environment's metrics, its score first."""
        names = tuple(self.overall.metrics)
        return names[:1] + tuple(name for name in names[1:] if name != "return")

    def costs(self, task: str = ALL_TASKS) -> tuple[float | None, float | None]:
        """Return FLOPs per environment step and wall time per episode, None where not recorded."""
        row = next((row for row in reversed(self.rows) if row.task == task), None)
        if row is None:
            return None, None
        total, count = row.seconds.get("total"), row.episodes + row.errors
        return row.cost.get("flops_per_step"), total / count if total and count else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in order."""
        return tuple(sorted({episode.plan.task for episode in self.episodes}))

    @property
    def episode_keys(self) -> tuple[EpisodeKey, ...]:
        """What identifies the episodes, in order."""
        return tuple(sorted(map(episode_key, self.episodes)))

    @property
    def model(self) -> Any:
        """What identifies the trained model: its training seed, and the artifacts where known."""
        return self.overall.train_seed, frozenset(self.models.items())

    @property
    def order(self) -> tuple[str, float, tuple[int, int], int]:
        """Sorting key of tables: label, perturbation, horizon, training seed."""
        seed = -1 if self.overall.train_seed is None else self.overall.train_seed
        return self.label, self.overall.perturbation, horizon_order(self.overall.horizon), seed

    def __str__(self) -> str:
        """Return how messages name it."""
        row = self.overall
        seed = "" if row.train_seed is None else f", training seed {row.train_seed}"
        horizon = "" if row.horizon is None else f", horizon {row.horizon}"
        source = f" of {self.source}" if self.source else ""
        return f"{self.label}{source} (perturbation {row.perturbation:g}{horizon}{seed})"


@dataclass(frozen=True)
class Group:
    """One condition: the runs of all its training seeds, in order of the seed."""

    runs: tuple[Run, ...]

    @property
    def one(self) -> Run:
        """A run that stands for what all share: label, tasks and initial states."""
        return self.runs[0]

    @property
    def condition(self) -> Condition:
        """The condition that all share but for the training seed."""
        return self.runs[0].overall

    @property
    def train_seeds(self) -> tuple[int | None, ...]:
        """Training seeds of the models."""
        return tuple(run.overall.train_seed for run in self.runs)

    @property
    def convergence(self) -> str:
        """The least favorable verdict on the models: a single one that is not flat decides."""
        found = {run.convergence for run in self.runs}
        return next((one for one in CONVERGENCE if one in found), "")

    def __str__(self) -> str:
        """Return how notes name it."""
        condition = self.condition
        horizon = "" if condition.horizon is None else f", horizon {condition.horizon}"
        return f"{self.one.label}{horizon}, perturbation {condition.perturbation:g}"


@dataclass(frozen=True)
class Reference:
    """The reference of a comparison.

    Attributes:
        label: Its label, or "" where nothing is tested.
        notes: What was chosen by default.
    """

    label: str
    policy: str
    notes: tuple[str, ...] = ()

    def of(self, group: Group, groups: Sequence[Group]) -> list[Group]:
        """Return the groups that `group` is tested against.

        They have its perturbation and its horizon. A policy without a horizon is tested
        against every horizon of the reference; a reference with a single one is taken for
        all. What began from recorded initial states is tested only against the reference's
        policy begun from the same.
        """
        label, condition = self.label, group.condition
        if label in {"", group.one.label}:
            return []
        if group.one.store:
            same = (self.policy, condition.latent)
            restored = [
                other.one.label
                for other in groups
                if other.one.store and (other.condition.policy, other.condition.latent) == same
            ]
            label = min(restored, default="")
        found = [
            other
            for other in groups
            if other.one.label == label != group.one.label
            and other.condition.perturbation == condition.perturbation
        ]
        alike = [other for other in found if other.condition.horizon == condition.horizon]
        return alike or (found if len(found) == 1 or condition.horizon is None else [])


MOST_RECORDS = 2**28
"""Bytes of the records that are read together; in memory they take up to eight times as many."""


@dataclass(frozen=True)
class _Protocol:
    """What the configuration of an evaluation says about its episodes."""

    max_steps: int | None = None
    perturbation_probability: float = 0.0


def make_run(result: ConditionResult, **details: Any) -> Run:
    """Return a result as a run, labeled by policy and latent source; `details` go into it."""
    row = result.overall
    label = row.policy if row.latent in {"", SAMPLED} else f"{row.policy}-{row.latent}"
    restores = any(episode.plan.demonstration >= 0 for episode in result.episodes)
    store = details.pop("store", "memory") if restores else ""
    return Run(**{**vars(result), **details, "label": label, "store": store})


def read_evaluation(artifact: Artifact, root: Path) -> list[Run]:
    """Read the runs of one evaluation, whose lineage is followed in the workspace `root`.

    Raises:
        ArtifactError: Its episodes cannot be read.
    """
    _check_size([artifact])
    where = f"{artifact.reference}: configuration"
    config = typed(_Protocol, artifact.manifest.config, where, only_known=False)
    verdicts = _verdicts(artifact, root)
    found, lost = lineage.trace([artifact], root)
    made = {item.reference: item for item in found.values()}
    stores = [item for item in found.values() if item.type == "snippets"]
    details = {
        "source": artifact.reference,
        "evaluation": artifact.name,
        "store": _store(artifact, stores, lost),
        "max_steps": config.max_steps or None,
        "perturbation_probability": config.perturbation_probability,
        "own_limit": _limit_of_data(stores),
    }
    runs = []
    for file in artifact.files_in("episodes", ".json"):
        where, hint = f"{artifact.path / file.path} is no record of episodes", _AGAIN
        record = parse_json(artifact.read(file), where, hint=hint, allow_nan=True)
        result = ConditionResult.from_json(typed(dict[str, Any], record, where, hint=hint), where)
        model = next(filter(None, map(result.models.get, SAMPLING_MODELS)), "")
        own = {"convergence": verdicts.get(model, ""), "trained": _settings(result.models, made)}
        runs.append(make_run(result, **details, **own))
    if not runs:
        raise ArtifactError(f"{artifact.reference} holds no episodes in {artifact.path}")
    return runs


def _limit_of_data(stores: Sequence[Artifact]) -> int | None:
    """Return the step limit that all snippet stores name."""
    try:
        limits = {read_description(item.path).env.max_steps for item in stores}
    except ArtifactError:
        return None
    return limits.pop() or None if len(limits) == 1 else None


def _settings(models: Mapping[str, str], made: Mapping[str, Artifact]) -> dict[str, str]:
    """Return `type.setting` to its value for models, given what there is by reference.

    Demonstrations are told apart by their content, which the settings of `ingest` do not say.
    """
    found = {}
    for kind, reference in models.items():
        if reference in made:
            settings = lineage.settings_of(made[reference])
            found.update({f"{kind}.{name}": str(value) for name, value in settings.items()})
            if kind == "snippets":
                found["snippets.content"] = _content_of(made[reference])
    return found


def _content_of(artifact: Artifact) -> str:
    """Return a short digest of an artifact's files, which is that of any artifact like it."""
    files = sorted((file.path, file.sha256) for file in artifact.manifest.files)
    return hashlib.sha256(repr(files).encode()).hexdigest()[:8]


def _check_size(evaluations: Sequence[Artifact]) -> None:
    """Check that the records of evaluations can be held in memory together.

    Raises:
        ArtifactError: They are too large.
    """
    size = sum(file.size for one in evaluations for file in one.files_in("episodes", ".json"))
    if size > MOST_RECORDS:
        raise ArtifactError(
            f"{evaluations[0].reference}: the records of {len(evaluations)} evaluations have"
            f" {size / 1e9:.1f} GB, more than the {MOST_RECORDS / 1e9:.1f} GB read at once",
            "name fewer evaluations",
        )


def read_evaluations(evaluations: Sequence[Artifact], root: Path) -> list[Run]:
    """Read every run of some evaluations, in an order that does not depend on theirs.

    A run that two evaluations hold alike is taken once; see `distinguish` for the labels.

    Raises:
        ArtifactError: One cannot be read, or one policy was measured twice.
    """
    chosen = {artifact.digest: artifact for artifact in evaluations}
    _check_size([*chosen.values()])
    runs: dict[Any, Run] = {}
    for _, artifact in sorted(chosen.items(), key=lambda item: (item[1].reference, item[0])):
        for run in read_evaluation(artifact, root):
            runs.setdefault(_content(run), run)
    return distinguish(list(runs.values()))


def distinguish(runs: Sequence[Run]) -> list[Run]:
    """Give different policies different labels, and sort the runs.

    Two runs of one label and horizon belong to different policies where they act or were trained
    with different settings, the training seed aside, or where their perturbation and their training
    seed agree; the labels then say what differs.

    Raises:
        ArtifactError: Nothing differs: one policy was measured twice.
    """
    groups = gather(runs, lambda run: run.label).values()
    return sorted((run for group in groups for run in _relabel(group)), key=lambda run: run.order)


def choose_reference(runs: Sequence[Run], wanted: str | None = None) -> Reference:
    """Choose the reference: by label, else by policy, else `lwd` if it is there.

    Of several labels of that policy the one with the most conditions is taken.

    Raises:
        ConfigError: No policy has the name that was given.
    """
    policies = {run.label: run.overall.policy for run in runs}
    name = wanted or METHOD
    if name in policies:
        return Reference(name, policies[name])
    own = [run for run in runs if run.overall.latent in {"", SAMPLED}]
    conditions = {run.order[:3]: run.label for run in own if run.overall.policy == name}
    counts = Counter(conditions.values())
    named = sorted(counts, key=lambda label: (-counts[label], label))
    if not named and wanted:
        raise ConfigError(f"no evaluated policy is '{wanted}'", did_you_mean(wanted, policies))
    if not named:
        note = "no paired tests: there is no policy 'lwd'; name a reference with --against"
        return Reference("", "", (note,))
    notes = (f"tested against '{named[0]}'; --against takes any of: {', '.join(sorted(named))}",)
    return Reference(named[0], name, notes if len(named) > 1 else ())


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Gather the training seeds of every condition.

    Raises:
        ArtifactError: Training seeds of one policy met different initial states.
    """
    found = gather(sorted(runs, key=lambda run: run.order), lambda run: run.order[:3]).values()
    for members in found:
        for other in members[1:]:
            check_same_states(members[0], other)
    return [Group(tuple(members)) for members in found]


def matrix(group: Group, quantity: str, task: str = ALL_TASKS) -> tuple[Values, States]:
    """Return values (seed, episode), NaN where lost, and the initial states of the episodes.

    All values are NaN where one is not known because the policy aborted the episode: a mean over
    the others would leave out the policy's failures.

    `quantity` is `"success"` or the name of a metric, `task` one task or `"all"`.

    Raises:
        ConfigError: The episodes hold no such metric.
    """
    keys = [key for key in group.one.episode_keys if task in {ALL_TASKS, key.task}]
    states = States.of_initial_states([(key.task, key.kind, key.number) for key in keys])
    values = np.full((len(group.runs), len(keys)), np.nan)
    for row, run in zip(values, group.runs, strict=True):
        known = {}
        for episode in run.episodes:
            if episode.error or task not in {ALL_TASKS, episode.plan.task}:
                continue
            found = values_of(episode)
            if quantity not in found:
                raise ConfigError(
                    f"{run} has no metric '{quantity}'", did_you_mean(quantity, found)
                )
            if quantity == "return" and episode.policy_failure:
                return np.full_like(values, np.nan), states
            known[episode_key(episode)] = found[quantity]
        row[:] = [known.get(key, np.nan) for key in keys]
    return values, states


def align(first: Group, second: Group, quantity: str, *, same_models: bool = False) -> Pair | None:
    """Put two groups side by side, or return None where no episode of both ran to its end.

    With `same_models`, only the models that both have are kept, in the same order.

    Raises:
        ArtifactError: They met different initial states.
        ConfigError: The episodes hold no such metric.
    """
    check_same_states(first.one, second.one)
    if same_models:
        models = {run.model for run in first.runs} & {run.model for run in second.runs}
        first, second = (
            Group(tuple(run for run in group.runs if run.model in models))
            for group in (first, second)
        )
        if not models:
            return None
    one, states = matrix(first, quantity)
    other, _ = matrix(second, quantity)
    known = ~np.isnan(one).all(axis=0) & ~np.isnan(other).all(axis=0)
    if not known.any():
        return None
    return Pair(one[:, known], other[:, known], states.of(known), same_models)


def check_one_protocol(runs: Sequence[Run]) -> None:
    """Check that the episodes of all runs can be compared.

    Raises:
        ArtifactError: Two runs differ in environment, step limit, or perturbation probability.
    """
    runs = sorted(runs, key=lambda run: run.source)
    perturbed = [run for run in runs if run.overall.perturbation]
    is_known = all(run.max_steps or run.own_limit for run in runs)

    def limit(run: Run) -> Any:
        return run.max_steps or (run.own_limit if is_known else "the environment's own")

    settings: tuple[tuple[str, Sequence[Run], Callable[[Run], Any]], ...] = (
        ("environment", runs, lambda run: run.overall.env),
        ("step limit", runs, limit),
        ("probability of a perturbation", perturbed, lambda run: run.perturbation_probability),
    )
    for name, chosen, value in settings:
        for run in chosen[1:]:
            one, other = value(chosen[0]), value(run)
            if one != other:
                first, second = chosen[0].source or chosen[0], run.source or run
                raise ArtifactError(
                    f"{first} and {second} differ in their {name}: {one} and {other}",
                    "compare evaluations of one protocol only",
                )


def check_same_states(first: Run, second: Run) -> None:
    """Check that two runs met the same initial states and perturbations.

    Raises:
        ArtifactError: Tasks or initial states differ.
    """
    hint = "evaluate both with the same tasks, episodes and seed"
    if first.tasks != second.tasks:
        one, other = (
            ", ".join(tasks) if len(tasks) <= 4 else f"{len(tasks)} tasks"
            for tasks in (first.tasks, second.tasks)
        )
        raise ArtifactError(f"{first} ran {one}, {second} {other}", hint)
    if first.store and second.store and first.store != second.store:
        raise ArtifactError(
            f"{first} and {second} began from initial states of different demonstrations, or of"
            " some that are not in the workspace",
            "compare them where their snippets are, or evaluate without the latent 'oracle'",
        )
    keys, others = first.episode_keys, second.episode_keys
    if first.store != second.store or keys != others:
        shared = len({*keys} & {*others}) if first.store == second.store else 0
        raise ArtifactError(
            f"{first} and {second} began from different initial states:"
            f" {len(keys)} and {len(others)}, {shared} in common",
            hint,
        )


def _store(artifact: Artifact, stores: Sequence[Artifact], lost: Collection[str]) -> str:
    """Return the digests of the snippets that it derives from, or its own where they are gone."""
    behind = {item.digest for store in stores for item in store.manifest.inputs}
    is_known = stores and behind.issuperset(lost)
    return " ".join(sorted(store.digest for store in stores)) if is_known else artifact.digest


def _verdicts(evaluation: Artifact, root: Path) -> dict[str, str]:
    """Return by reference what the newest analysis says about the training of each model used."""
    found = {
        item.digest: str(analysis.manifest.summary["verdict"])
        for analysis in Workspace(root).artifacts("analysis")
        if "verdict" in analysis.manifest.summary
        for item in analysis.manifest.inputs
    }
    if not found:
        return {}
    return {
        item.reference: found.get(item.digest, UNCHECKED)
        for item in evaluation.manifest.inputs
        if item.type in SAMPLING_MODELS
    }


def _content(run: Run) -> Any:
    """Return what makes a run another one: all but the evaluation that holds it."""
    condition = tuple(getattr(run.overall, field.name) for field in fields(Condition))
    flops, seconds = run.costs()
    if run.overall.train_seed is None:  # where it was measured again, only the time differs
        seconds = None
    protocol = (run.store, run.max_steps, run.perturbation_probability)
    episodes = sorted(
        (episode_key(item), item.error, *([] if item.error else sorted(values_of(item).items())))
        for item in run.episodes
    )
    return condition, run.metrics, flops, seconds, protocol, tuple(episodes)


def _relabel(group: Sequence[Run]) -> list[Run]:
    """Add to the labels what distinguishes runs of one condition."""
    used: list[str] = []
    known = set.intersection(*(set(run.trained) for run in group))
    trained = [name for name in group[0].trained if name in known]
    for name in (*SETTINGS, *trained, "evaluation", "source"):
        # All that differs in how they act is said; of what else differs, what tells them apart.
        others = [] if name in SETTINGS else used
        alike = _alike(group, others, same_model=name in {"evaluation", "source"})
        if any(len({describe(run, name) for run in runs}) > 1 for runs in alike):
            used.append(name)
    for runs in _alike(group, used, same_model=True):
        if len(runs) > 1:
            where = runs[1].source or "another result"
            raise ArtifactError(f"{runs[0]} was measured twice: there and in {where}")
    if not used:
        return list(group)
    return [
        replace(run, label=f"{run.label} ({', '.join(describe(run, name) for name in used)})")
        for run in group
    ]


def _alike(group: Sequence[Run], used: Sequence[str], *, same_model: bool) -> list[list[Run]]:
    """Return runs that would be taken for one policy, or for one measurement of one model of it."""

    def condition(run: Run) -> Any:
        row, settings = run.overall, [describe(run, name) for name in used]
        return row.horizon, same_model and (row.perturbation, row.train_seed), *settings

    return [*gather(group, condition).values()]


def describe(run: Run, name: str) -> str:
    """Return in words what a run has for a setting, or which evaluation holds it."""
    row = run.overall
    if name in run.trained:
        return f"{name.replace('.', ' ').replace('_', ' ')} {run.trained[name]}"
    return {
        "sampler": row.sampler or "no sampler",
        "num_inference_steps": f"{row.num_inference_steps} denoising steps",
        "warm_start": f"warm start {row.warm_start:g}" if row.warm_start else "no warm start",
        "temporal_ensemble": "newest chunk"
        if row.temporal_ensemble is None
        else f"temporal ensemble {row.temporal_ensemble:g}",
        "guidance": f"guidance {row.guidance:g}",
        "inpainting": f"inpainting {row.inpainting:g}" if row.inpainting else "no inpainting",
        "early_replans": "no early re-plans"
        if row.replan_beyond is None
        else f"re-plans beyond {row.replan_beyond:g} after {row.replan_after} steps",
        "snippet_length": f"snippets of {row.snippet_length}",
        "evaluation": run.evaluation,
        "source": run.source,
    }[name]
