"""Trajectories of a source and of the policies that learned from it, as comparable numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.analysis.evaluations import Run, values_of
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import generator

SOURCE = "source"
ALL = "all"
"""The behavior of trajectories that carry no label."""
RETURN, STEPS, SUCCESS = "return", "steps", "success"
CONTACT = "contact_"

Measure = Callable[[npt.NDArray[np.float32]], Mapping[str, float]]


@dataclass(frozen=True)
class Trajectory:
    """One trajectory in numbers.

    Attributes:
        group: `"source"`, or the name of the policy.
        behavior: Its label, or `"all"`.
        task: Name of its task.
        origin: Where it comes from (`"episode 12"`, `"seed 100003"`).
        values: `steps`, and where known `return`, `success` and the adapter's metrics.
        failure: Why the policy failed for good, or "".
    """

    group: str
    behavior: str
    origin: str
    values: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    task: str = ""


def source_trajectories(
    store: SnippetStore,
    limit: int,
    most: int,
    seed: int,
    progress: Progress,
    tasks: Collection[str],
) -> list[Trajectory]:
    """Measure recorded trajectories by the code that measures rollouts.

    Metrics look at the observations after actions, as a rollout's do: those of rows 1 to the
    limit, and the one after the last action where it was recorded.

    Args:
        store: The demonstrations.
        limit: Steps to look at from the start, as many as rollouts had; 0 for all.
        most: Trajectories of every task and label, drawn at random; 0 takes all.
        seed: Fixes the draw.
        progress: Where to report.
        tasks: Names of the tasks that policies ran.
    """
    table, names = store.episodes, store.spec.env.tasks
    order = generator("source trajectories", seed).permutation(len(table))
    order = order[np.isin(table.task[order], [names.index(task) for task in tasks])]
    kinds = np.stack([table.task[order], table.label[order]], axis=1)
    parts = [order[(kinds == one).all(axis=1)][: most or None] for one in np.unique(kinds, axis=0)]
    chosen = sorted(int(index) for part in parts for index in part)
    found = []
    with progress.task("measure the source", len(chosen), "trajectory") as bar:
        for index in chosen:
            found.append(_measured(store, index, limit))
            bar.advance()
    return found


def policy_trajectories(
    run: Run, group: str, labels: Sequence[str], lost: list[str]
) -> Iterator[Trajectory]:
    """Take the episodes of an evaluated policy.

    Args:
        run: The policy's episodes.
        group: Name to give the policy.
        labels: Behaviors that the source has. With a single one every episode belongs to it.
        lost: Gets the name of the group once for every episode lost to the simulator.
    """
    only = labels[0] if len(labels) == 1 else ALL
    for episode in run.episodes:
        if episode.error:
            lost.append(group)
            continue
        task, kind, number = episode.initial_state
        yield Trajectory(
            group=group,
            behavior=episode.plan.label or only,
            origin=f"{kind} {number}",
            values={**values_of(episode), SUCCESS: float(episode.success)},
            failure=episode.policy_failure,
            task=task,
        )


def _measured(store: SnippetStore, index: int, limit: int) -> Trajectory:
    table, env = store.episodes, store.spec.env
    start, length = int(table.start[index]), int(table.length[index])
    steps = min(length, limit or length)
    values = {STEPS: float(steps)}
    if store.has_rewards:
        values[RETURN] = float(store.read("reward", start, start + steps).sum(dtype=np.float64))
    if table.success[index] >= 0 and steps == length:
        values[SUCCESS] = float(table.success[index])
    measure = metrics_of(env.adapter, env.tasks[int(table.task[index])])
    if measure:
        values |= measure(_after_actions(store, index, steps))
    label = int(table.label[index])
    behavior = store.spec.labels[label] if 0 <= label < len(store.spec.labels) else ALL
    task = env.tasks[int(table.task[index])]
    return Trajectory(SOURCE, behavior, f"episode {index}", values, task=task)


def _after_actions(store: SnippetStore, index: int, steps: int) -> npt.NDArray[np.float32]:
    """Return the observations after each of the first `steps` actions, (time, obs)."""
    (key,) = (item.name for item in store.spec.observations)
    start, length = int(store.episodes.start[index]), int(store.episodes.length[index])
    rows = store.read(key, start + 1, start + min(steps + 1, length))
    final = store.final_observation(index) if steps == length else None
    return rows if final is None else np.concatenate([rows, final[key][None]])


@lru_cache(maxsize=16)
def metrics_of(adapter: str, task: str) -> Measure | None:
    """Return what computes an adapter's metrics from observations (time, obs), or None."""
    if adapter == "adroit":
        from lwdctl.envs.hammer_metrics import hammer_metrics

        return hammer_metrics
    if adapter == "mujoco":
        from lwdctl.envs.foot_contacts import FootContacts, feet_names
        from lwdctl.envs.gymnasium_scene import build_environment

        names = [f"{CONTACT}{foot}" for foot in feet_names(task)]
        finder = FootContacts(task.partition("-")[0], build_environment(task).model)

        def contacts(observations: npt.NDArray[Any]) -> Mapping[str, float]:
            shares = np.mean([finder.at(row) for row in observations], axis=0).tolist()
            return dict(zip(names, shares, strict=True))

        return contacts
    return None
