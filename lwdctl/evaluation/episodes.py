"""Episodes of an evaluation: which ones run, fixed beforehand, and what came of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from lwdctl.core.errors import ArtifactError, ConfigError, SimulatorError
from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.core.seeding import EVALUATION_SEED_START, generator
from lwdctl.core.untrusted import typed
from lwdctl.envs.table import check_tasks
from lwdctl.policies.policy import EpisodePlan

if TYPE_CHECKING:
    from lwdctl.artifacts.snippets import SnippetStore


_PLAN_KEYS = ("index", "seed", "task", "label", "demonstration")
_OUTCOME_KEYS = (
    "steps", "success", "final_success", "num_replans", "attempts", "error", "policy_failure",
)  # fmt: skip


@dataclass(frozen=True)
class _EpisodeRecord:
    """An episode as it stands in a file."""

    index: Annotated[int, Meta(ge=0)]
    seed: int
    task: str
    label: str
    demonstration: int
    steps: Annotated[int, Meta(ge=0)]
    success: bool
    final_success: bool
    num_replans: Annotated[int, Meta(ge=0)]
    attempts: int
    error: str
    policy_failure: str
    return_: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluated episode.

    Attributes:
        plan: What was to run.
        steps: Environment steps taken.
        success: Whether the task was solved at some step.
        final_success: Whether the task was solved at the last step.
        return_: Sum of the simulator's rewards; where the policy failed for good, those before.
        metrics: The environment's metrics. Where the policy failed for good, they have the values
            that `Metric.failed` gives for that case.
        num_replans: Calls of the generator (latents or chunks sampled).
        seconds: This episode's fraction of the wall time, by part; not stored as JSON.
        error: Why the simulator gave no result, or "". The other numbers then mean nothing.
        policy_failure: Why the policy failed for good (non-finite action, unstable physics), or "".
            Such an episode counts as unsolved.
        attempts: 2 when the episode ran again after its simulator was lost.
        last: Key to the observation (obs,) after the last step, which no policy has seen; None
            where the episode did not end by itself. Not stored as JSON.
    """

    plan: EpisodePlan
    steps: int = 0
    success: bool = False
    final_success: bool = False
    return_: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_replans: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    policy_failure: str = ""
    attempts: int = 1
    last: Mapping[str, FloatArray] | None = field(default=None, compare=False, repr=False)

    @property
    def initial_state(self) -> tuple[str, str, int]:
        """What fixes the initial state: task, `"seed"` or `"demonstration"`, and its number.

        Episodes with different behavior labels may share an initial state.
        """
        plan = self.plan
        if plan.demonstration >= 0:
            return plan.task, "demonstration", plan.demonstration
        return plan.task, "seed", plan.seed

    @property
    def values(self) -> dict[str, float]:
        """The metrics, `return` and `final_success` by name."""
        return {
            **self.metrics,
            "return": self.return_,
            "final_success": float(self.final_success),
        }

    @property
    def measured(self) -> dict[str, float]:
        """`values`, but NaN for the return where the policy failed for good.

        That of the steps before would be a reward for ending early where rewards are negative.
        """
        return self.values | ({"return": math.nan} if self.policy_failure else {})

    def follows(self, plan: EpisodePlan) -> bool:
        """Return whether the episode is what a plan asks for; restored states are not compared."""
        return all(getattr(self.plan, name) == getattr(plan, name) for name in _PLAN_KEYS)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values; restored states and wall times are left out."""
        return {
            **{name: getattr(self.plan, name) for name in _PLAN_KEYS},
            **{name: getattr(self, name) for name in _OUTCOME_KEYS},
            "return": self.return_,
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], where: str = "a record of an episode"
    ) -> EpisodeResult:
        """Rebuild an episode from what `to_json` returned.

        Raises:
            ArtifactError: A value is missing, unknown or of another type.
        """
        values = asdict(typed(_EpisodeRecord, {"return_": values.get("return"), **{
            name: value for name, value in values.items() if name != "return"
        }}, where))  # fmt: skip
        plan = EpisodePlan(**{name: values.pop(name) for name in _PLAN_KEYS})
        return cls(plan, **values)


def plan_episodes(
    env: EnvSpec,
    episodes: int,
    seed: int = EVALUATION_SEED_START,
    tasks: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> list[EpisodePlan]:
    """Plan fresh episodes: the k-th one of every task and label starts from `seed + k`.

    Args:
        env: Where they run.
        episodes: Episodes per task and label.
        seed: First evaluation seed.
        tasks: Task names, or () for all of `env`.
        labels: Behavior labels to condition on, or () for none.

    Raises:
        ConfigError: An unknown task, or a seed that belongs to data collection.
    """
    _check_seed(seed)
    chosen = _tasks(env, tasks)
    # Task by task, so that an environment keeps its simulator from batch to batch.
    triples = [
        (task, label, seed + k)
        for task in chosen
        for label in labels or ("",)
        for k in range(episodes)
    ]
    return [
        EpisodePlan(index=index, seed=episode_seed, task=task, label=label)
        for index, (task, label, episode_seed) in enumerate(triples)
    ]


def plan_demonstrations(
    store: SnippetStore,
    episodes: int,
    seed: int = EVALUATION_SEED_START,
    tasks: Sequence[str] = (),
    split: str = "all",
    labels: Sequence[str] = (),
) -> list[EpisodePlan]:
    """Plan episodes from the initial states of recorded ones, drawn without repetition.

    Args:
        store: The demonstrations.
        episodes: Episodes per task and label; fewer where the store holds fewer.
        seed: Fixes the draw; the k-th episode of a task samples from `seed + k`.
        tasks: Task names, or () for all of the store.
        split: `"train"`, `"validation"` or `"all"`.
        labels: Behavior labels to draw from, each as often; () draws whatever the label.

    Raises:
        ConfigError: An unknown task, or a seed that belongs to data collection.
        ArtifactError: The store holds no initial state for one of the tasks and labels.
    """
    _check_seed(seed)
    plans: list[EpisodePlan] = []
    groups = [(task, label) for task in _tasks(store.spec.env, tasks) for label in labels or ("",)]
    for task, label in groups:
        chosen = _draw_demonstrations(store, task, label, episodes, seed, split)
        if not chosen:
            raise ArtifactError(
                f"no {'' if split == 'all' else f'{split} '}demonstration of '{task}'"
                f"{f' with the label {label!r}' if label else ''}"
                " holds an initial state to restore",
                "leave 'oracle' out of --latent, or choose other --label, --task or --oracle-split"
                if holds_initial_states(store)
                else f"leave 'oracle' out of --latent, or {RECORD_STATES}",
            )
        for k, index in enumerate(chosen):
            plans.append(demonstration_plan(store, index, len(plans), seed + k))
    return plans


def reasons_of_loss(errors: Iterable[str]) -> str:
    """Return why episodes were lost: the most frequent reason, and whether there are others."""
    counts = Counter(error for error in errors if error).most_common()
    if not counts:
        return "no reason was recorded"
    return counts[0][0].splitlines()[0] + (" (and other reasons)" if len(counts) > 1 else "")


def described_failures(name: str, episodes: Sequence[EpisodeResult]) -> str:
    """Say how many episodes ended because of the policy called `name`, and why; "" for none."""
    failures = [item.policy_failure for item in episodes if item.policy_failure]
    if not failures:
        return ""
    return (
        f"{name}: {len(failures)} of {len(episodes)} episodes ended because"
        f" {reasons_of_loss(failures)}; they count as failures of the policy: unsolved, with the"
        " worst value of every metric; a mean return is not given"
    )


def check_not_all_lost(name: str, episodes: Sequence[EpisodeResult]) -> None:
    """Check that an episode ran to its end, so that there is something to report.

    Args:
        name: What ran.
        episodes: All of its episodes.

    Raises:
        SimulatorError: None did; the message says why.
    """
    if episodes and all(item.error for item in episodes):
        raise SimulatorError(
            f"no episode of {name} ran to its end:"
            f" {reasons_of_loss(item.error for item in episodes)}",
            "correct the environment or the policy, then run the evaluation again",
        )


RECORD_STATES = (
    "record with every episode the state that it begins in (for a gymnasium.Env the seed of its"
    " reset) under the key initial_state, ingest the file and train again"
)
"""What makes initial states known, for hints."""


def holds_initial_states(store: SnippetStore) -> bool:
    """Tell whether some demonstration holds an initial state to restore."""
    return any(store.initial_state(index) is not None for index in range(len(store.episodes.task)))


def demonstration_plan(
    store: SnippetStore, demonstration: int, index: int, seed: int
) -> EpisodePlan:
    """Plan the episode `index` from the initial state of a recorded episode."""
    table = store.episodes
    return EpisodePlan(
        index=index,
        seed=seed,
        task=store.spec.env.tasks[int(table.task[demonstration])],
        label=store.spec.label_name(int(table.label[demonstration])),
        initial_state=store.initial_state(demonstration),
        model=store.model(demonstration),
        demonstration=demonstration,
    )


def _draw_demonstrations(
    store: SnippetStore, task: str, label: str, episodes: int, seed: int, split: str
) -> list[int]:
    table = store.episodes
    wanted = np.asarray(table.task) == store.spec.env.tasks.index(task)
    if label:
        wanted &= np.asarray(table.label) == store.spec.labels.index(label)
    if split != "all":
        wanted &= np.asarray(table.split) == ("train", "validation").index(split)
    order = generator("demonstrations", seed, task).permutation(np.flatnonzero(wanted))
    restorable = (int(i) for i in order if store.initial_state(int(i)) is not None)
    return [index for index, _ in zip(restorable, range(episodes), strict=False)]


def _tasks(env: EnvSpec, tasks: Sequence[str]) -> tuple[str, ...]:
    check_tasks(tasks, env.tasks, f"environment '{env.adapter}'")
    return tuple(dict.fromkeys(tasks)) or env.tasks


def _check_seed(seed: int) -> None:
    if seed < EVALUATION_SEED_START:
        raise ConfigError(
            f"evaluation seed {seed} belongs to data collection",
            f"use a seed of at least {EVALUATION_SEED_START}",
        )
