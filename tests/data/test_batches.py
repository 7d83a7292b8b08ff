"""Batches of snippets are the same from memory and from the disk, and padded rightly."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data import batches as batches_module
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule

SPEC = SourceSpec(
    observations=(ObservationSpec("a", 2), ObservationSpec("b", 1)),
    action=ActionSpec(1, "delta", "normalized", (-1.0,), (1.0,)),
    env=EnvSpec("", ("t",)),
    labels=("",),
    source_format="made",
)


@pytest.fixture
def store(tmp_path: Path) -> SnippetStore:
    """Episodes of 5 to 14 steps whose every number names its episode and step."""
    writer = SnippetWriter(tmp_path / "made.zarr", SPEC)
    for number in range(10):
        length = 5 + number
        value = (100 * number + np.arange(length)).astype(np.float32)
        writer.append(
            Episode(
                source=f"demo_{number}",
                observations={"a": np.stack([value, -value], 1), "b": value[:, None] / 2},
                actions=value[:, None] * 3,
                task="t",
                split="validation" if number in (3, 7) else "train",
            )
        )
    writer.close()
    return SnippetStore.open(tmp_path / "made.zarr")


def cutter(store: SnippetStore, cache: str, split: str = "train") -> SnippetBatches:
    rule = WindowRule(8, min_valid_fraction=0.25)
    return SnippetBatches(store, ("a", "b"), rule, split=split, seed=4, cache=cache)


def test_snippets_hold_their_own_steps_and_repeat_the_last(store: SnippetStore) -> None:
    batch = cutter(store, "ram").cut(np.array([2, 9]), np.array([3, 0]))
    # Episode 2 has 7 steps: 3, 4, 5, 6 are real, the rest repeats step 6.
    assert batch.observations[0, :, 0].tolist() == [203, 204, 205, 206, 206, 206, 206, 206]
    assert batch.observations[0, :, 2].tolist()[:2] == [101.5, 102.0]
    assert batch.mask[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert batch.actions[1, :, 0].tolist() == [3 * (900 + step) for step in range(8)]
    assert batch.mask[1].all()


def test_batches_without_padding_are_those_of_the_general_way(
    store: SnippetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, disk = cutter(store, "ram"), cutter(store, "none")
    # Two that end with their episodes, and two inside theirs.
    episodes, starts = np.array([9, 3, 9, 5]), np.array([6, 0, 0, 1])
    beside_padded = memory.cut(np.append(episodes, 2), np.append(starts, 3))
    monkeypatch.delattr(batches_module.MemoryRows, "at")  # row by row
    whole, streamed = memory.cut(episodes, starts), disk.cut(episodes, starts)
    assert whole.observations[0, :, 0].tolist() == [906 + step for step in range(8)]
    for field in fields(whole):
        one, all_five = getattr(whole, field.name), getattr(beside_padded, field.name)
        assert torch.equal(one, all_five[:4]), field.name
        assert torch.equal(one, getattr(streamed, field.name)), field.name


def test_cache_modes_give_the_same_batches(
    store: SnippetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "BLOCK_ROWS", 20)
    memory, disk = cutter(store, "ram"), cutter(store, "none")
    for update in range(12):
        one, two = memory.batch(update, 6), disk.batch(update, 6)
        assert torch.equal(one.observations, two.observations)
        assert torch.equal(one.actions, two.actions)
        assert torch.equal(one.mask, two.mask)


def test_streaming_holds_a_bounded_number_of_blocks(
    store: SnippetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "BLOCK_ROWS", 6)
    disk = cutter(store, "none")
    rows = disk._rows
    assert isinstance(rows, batches_module.StreamedRows)
    rows._capacity = 3
    for update in range(20):
        disk.batch(update, 4)
        assert len(rows._cached) <= 3


def test_splits_are_kept_apart(store: SnippetStore) -> None:
    train = cutter(store, "ram")
    drawn = set(train.drawn(0, 4, 40)[0].tolist())
    assert drawn == {0, 1, 2, 4, 5, 6, 8, 9}
    episodes, _ = cutter(store, "ram", "validation").every()
    assert set(episodes) == {3, 7}


def test_history_repeats_the_first_observation(store: SnippetStore) -> None:
    state = cutter(store, "ram").history(np.array([4, 4]), np.array([0, 3]), 3)
    assert state[0].tolist() == [400, -400, 200] * 3
    assert state[1].tolist() == [401, -401, 200.5, 402, -402, 201, 403, -403, 201.5]


def test_chunks_repeat_the_first_step_before_their_episode(store: SnippetStore) -> None:
    rule = WindowRule(8, before=2, after=6)
    memory = SnippetBatches(store, ("a",), rule, split="train", seed=4, cache="ram", every=True)
    batch = memory.cut(np.array([2]), np.array([-2]))
    steps = [200, 200, 200, 201, 202, 203, 204, 205]
    assert batch.observations[0, :, 0].tolist() == steps
    # Actions of this store are motions: padding stands still.
    assert batch.actions[0, :, 0].tolist() == [0, 0] + [3 * step for step in steps[2:]]
    assert batch.start.tolist() == [-2]
    assert batch.mask[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    disk = SnippetBatches(store, ("a",), rule, split="train", seed=4, cache="none", every=True)
    for update in range(12):
        one, two = memory.batch(update, 6), disk.batch(update, 6)
        assert torch.equal(one.observations, two.observations)
        assert torch.equal(one.mask, two.mask)
    assert min(memory.drawn(0, 6, 12)[1]) == -2
    held_out = memory.of_split("validation")
    assert set(held_out.drawn(0, 30)[0].tolist()) == {3, 7}


@pytest.mark.parametrize(
    ("semantics", "gripper"), [("delta", (1,)), ("delta", ()), ("absolute", ())]
)
def test_padding_stands_still_with_its_gripper_as_it_was(
    semantics: str, gripper: tuple[int, ...]
) -> None:
    spec = replace(
        SPEC,
        observations=(ObservationSpec("a", 1),),
        action=ActionSpec(2, semantics, "normalized", (-1.0,) * 2, (1.0,) * 2, gripper=gripper),
    )
    rows = np.arange(1, 5, dtype=np.float32)
    episode = Episode("demo", {"a": rows[:, None]}, np.stack([rows, -rows], 1), task="t")
    store = SnippetStore.in_memory([episode], spec)
    batches = SnippetBatches(store, ("a",), WindowRule(4), split="all", seed=0)
    moves = batches.cut(np.array([0]), np.array([2])).actions[0].tolist()
    assert moves[:2] == [[3, -3], [4, -4]]
    still = [0 if semantics == "delta" else 4, -4 if gripper or semantics == "absolute" else 0]
    assert moves[2:] == [still, still]
