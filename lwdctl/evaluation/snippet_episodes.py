"""Episodes that start at the states of recorded snippets, in the middle of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ArtifactError
from lwdctl.core.seeding import EVALUATION_SEED_START, generator
from lwdctl.data.batches import SnippetBatches
from lwdctl.envs.simulator import ObservedState, Simulator
from lwdctl.envs.table import load_environment, make_simulator
from lwdctl.evaluation.episodes import RECORD_STATES, demonstration_plan
from lwdctl.policies.policy import EpisodePlan

IntArray = npt.NDArray[np.int64]

RESTORED = "the recorded initial state"
SHOWN = "the state that the observation shows"
REPLAYED = "recorded actions replayed from the recorded initial state"


@dataclass(frozen=True)
class SnippetEpisodes:
    """Snippets and the episodes that start from their states.

    Attributes:
        episodes: (snippet,) store index of the episode each lies in.
        offsets: (snippet,) its first step there.
        valid: (snippet,) its steps that are real.
        plans: One per snippet, in the same order.
        ways: One of `RESTORED`, `SHOWN` and `REPLAYED` per snippet: how its start is reached.
    """

    episodes: IntArray
    offsets: IntArray
    valid: IntArray
    plans: tuple[EpisodePlan, ...]
    ways: tuple[str, ...]


def draw_snippets(
    batches: SnippetBatches, store: SnippetStore, count: int, seed: int
) -> tuple[IntArray, IntArray]:
    """Draw snippets without repetition, from as many episodes as there are.

    Where there are enough that lie wholly within their episodes, only those are drawn.

    Returns:
        Store episode (snippet,) and start within it (snippet,), task by task.
    """
    episodes, offsets = batches.every()
    lengths = store.episodes.length[episodes]
    whole = batches.rule.valid(lengths, offsets) == batches.rule.length
    if whole.sum() >= count:
        episodes, offsets = episodes[whole], offsets[whole]
    order = generator("reconstruction snippets", seed).permutation(len(episodes))
    episodes, offsets = episodes[order], offsets[order]
    # The first one of every episode, then the second one of each, and so on.
    chosen = np.argsort(rank_within_episode(episodes), kind="stable")[:count]
    episodes, offsets = episodes[chosen], offsets[chosen]
    order = np.lexsort((offsets, episodes, store.episodes.task[episodes]))
    return episodes[order], offsets[order]


def rank_within_episode(episodes: npt.NDArray[np.integer]) -> IntArray:
    """Return each row's number (row,) among the rows of its episode (row,), in their order."""
    order = np.argsort(episodes, kind="stable")
    first = np.searchsorted(episodes[order], episodes[order])
    rank = np.empty(len(episodes), dtype=np.int64)
    rank[order] = np.arange(len(episodes)) - first
    return rank


def plan_snippets(
    store: SnippetStore, episodes: IntArray, offsets: IntArray, length: int, seed: int
) -> SnippetEpisodes:
    """Plan one episode per snippet.

    A snippet at the start of its episode restores the recorded initial state. A later one takes
    the state its first observation shows, where the simulator can read one from it; otherwise
    the recorded actions before it are replayed from the episode's start.

    Args:
        store: The demonstrations.
        episodes: (snippet,) store index of each snippet's episode.
        offsets: (snippet,) its first step.
        length: Steps per snippet.
        seed: Fixes what policies draw.

    Raises:
        ArtifactError: A start can be reached in none of these ways.
    """
    env, readers = store.spec.env, dict[str, ObservedState]()
    if hasattr(load_environment(env), "state_at"):
        tasks = {env.tasks[int(store.episodes.task[index])] for index in episodes}
        readers = {task: cast(ObservedState, make_simulator(env, task)) for task in tasks}
    first_seed = EVALUATION_SEED_START + seed * 1_000_000
    plans, ways = [], []
    try:
        for number, (index, offset) in enumerate(zip(episodes, offsets, strict=True)):
            plan = demonstration_plan(store, int(index), number, first_seed + number)
            plan, way = _from_snippet(store, int(offset), plan, readers)
            plans.append(plan)
            ways.append(way)
    finally:
        for reader in readers.values():
            cast(Simulator, reader).close()
    valid = np.minimum(store.episodes.length[episodes] - offsets, length).astype(np.int64)
    return SnippetEpisodes(episodes, offsets, valid, tuple(plans), tuple(ways))


def _from_snippet(
    store: SnippetStore, offset: int, plan: EpisodePlan, readers: Mapping[str, ObservedState]
) -> tuple[EpisodePlan, str]:
    """Change the plan of a whole episode to start at the snippet, and return how it does."""
    if not offset and plan.initial_state is not None:
        return plan, RESTORED
    first = int(store.episodes.start[plan.demonstration])
    if plan.task in readers:
        row, names = first + offset, [item.name for item in store.spec.observations]
        seen = {name: store.read(name, row, row + 1)[0] for name in names}
        return replace(plan, initial_state=readers[plan.task].state_at(seen), model=""), SHOWN
    if plan.initial_state is not None:
        prefix = store.read("action", first, first + offset)
        return replace(plan, action_prefix=prefix), REPLAYED
    raise ArtifactError(
        f"episode {plan.demonstration} holds no initial state, and '{store.spec.env.adapter}'"
        " cannot read its state from an observation",
        RECORD_STATES,
    )


def recorded_states(
    store: SnippetStore, episodes: IntArray, offsets: IntArray, keys: Sequence[str], length: int
) -> npt.NDArray[np.float64]:
    """Return what was observed at each snippet's first step and after each of its actions.

    Args:
        store: The demonstrations.
        episodes: (snippet,) store index of each snippet's episode.
        offsets: (snippet,) its first step.
        keys: Observation keys, side by side.
        length: Steps per snippet.

    Returns:
        (snippet, length + 1, obs), NaN where nothing was recorded.
    """
    keys = tuple(keys)
    found = np.full((len(episodes), length + 1, sum(store.spec.sizes(keys))), np.nan)
    table = store.episodes
    for position, (index, offset) in enumerate(zip(episodes, offsets, strict=True)):
        first, end = int(table.start[index] + offset), int(table.start[index] + table.length[index])
        rows = store.features(keys, first, min(first + length + 1, end))
        found[position, : len(rows)] = rows
        final = store.final_observation(int(index))
        if len(rows) <= length and final is not None:
            found[position, len(rows)] = np.concatenate([final[key] for key in keys])
    return found
