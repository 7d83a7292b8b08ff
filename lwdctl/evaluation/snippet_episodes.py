"""Episodes that start at the states of recorded snippets, in the middle of demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ArtifactError
from lwdctl.core.seeding import EVALUATION_SEED_START, generator
from lwdctl.data.batches import SnippetBatches
from lwdctl.envs.simulator import ObservedState, Simulator
from lwdctl.envs.table import ENVIRONMENTS, make_simulator
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
    readers = _readers(store, {int(store.episodes.task[index]) for index in episodes})
    plans, ways = [], []
    try:
        for position, (index, offset) in enumerate(zip(episodes, offsets, strict=True)):
            plan, way = _plan(store, int(index), int(offset), position, seed, readers)
            plans.append(plan)
            ways.append(way)
    finally:
        for reader in readers.values():
            cast(Simulator, reader).close()
    valid = np.minimum(store.episodes.length[episodes] - offsets, length).astype(np.int64)
    return SnippetEpisodes(episodes, offsets, valid, tuple(plans), tuple(ways))


def _readers(store: SnippetStore, tasks: set[int]) -> dict[int, ObservedState]:
    env = store.spec.env
    if not hasattr(ENVIRONMENTS.load(env.adapter), "state_at"):
        return {}
    built = {task: make_simulator(env, env.tasks[task]) for task in tasks}
    return {task: cast(ObservedState, item) for task, item in built.items()}


def _plan(
    store: SnippetStore, index: int, offset: int, position: int, seed: int,
    readers: dict[int, ObservedState],
) -> tuple[EpisodePlan, str]:  # fmt: skip
    table, spec = store.episodes, store.spec
    task, label, first = int(table.task[index]), int(table.label[index]), int(table.start[index])
    state, action_prefix, way = store.initial_state(index), None, RESTORED
    if offset or state is None:
        if task in readers:
            state = readers[task].state_at(_observation(store, first + offset))
            way = SHOWN
        elif state is not None:
            action_prefix = store.read("action", first, first + offset)
            way = REPLAYED
        else:
            raise ArtifactError(
                f"episode {index} holds no initial state, and '{spec.env.adapter}' cannot read"
                " its state from an observation",
                "ingest data that record initial states",
            )
    plan = EpisodePlan(
        index=position,
        seed=EVALUATION_SEED_START + seed * 1_000_000 + position,
        task=spec.env.tasks[task],
        label=spec.label_name(label),
        initial_state=state,
        model=store.model(index) if way != SHOWN else "",
        demonstration=index,
        action_prefix=action_prefix,
    )
    return plan, way


def _observation(store: SnippetStore, row: int) -> dict[str, npt.NDArray[np.float32]]:
    return {item.name: store.read(item.name, row, row + 1)[0] for item in store.spec.observations}


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
