"""Weights of files: how often training visits their snippets, from the option to the batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lwdctl
from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.cli.main import main
from lwdctl.configs import (
    BaselineConfig,
    DiffusionConfig,
    EncodeConfig,
    IngestConfig,
    VaeConfig,
)
from lwdctl.core.errors import ConfigError, DataError, LwdctlError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data import batches as batches_module
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source
from lwdctl.data.windows import VisitOrder, WindowRule, blocks_of
from lwdctl.methods import BASELINES
from lwdctl.training.diffusion import train_diffusion
from lwdctl.training.encode import encode
from lwdctl.training.objectives import DiffusionObjective, LatentTable
from lwdctl.training.vae import train_vae

SPEC = SourceSpec(
    observations=(ObservationSpec("a", 1),),
    action=ActionSpec(1, "absolute", "unknown", (-1.0,), (1.0,)),
    env=EnvSpec("", ("t",)),
    labels=(),
    source_format="made",
)


def order_of(weights=None, *, every: bool = False, episodes: int = 23, mixed: int = 4):
    """Return an order over episodes of 10 steps, two in a block, with 1 to 7 snippets each."""
    lengths = np.full(episodes, 10)
    counts = 1 + np.arange(episodes) % 7
    return VisitOrder(
        blocks_of(np.arange(episodes) * 10, lengths, 20), counts, 2, 5, mixed, every,
        None if weights is None else np.asarray(weights, np.float64),
    )  # fmt: skip


def visits(order: VisitOrder, epochs: int) -> np.ndarray:
    """Return how often every epoch visits every episode (epoch, episode)."""
    drawn = order.draw(0, epochs * order.size)[0].reshape(epochs, order.size)
    return np.stack([np.bincount(row, minlength=len(order.counts)) for row in drawn])


# What commit 423f956 draws at positions 17 to 28, before there were weights.
EPISODES = [15, 17, 12, 16, 19, 18, 8, 6, 10, 22, 9, 11]
OFFSETS = [6, 8, 8, 6, 10, 0, 4, 10, 0, 10, 10, 12]
EVERY_EPISODES = [7, 8, 6, 7, 9, 9, 3, 21, 21, 8, 8, 3]
EVERY_OFFSETS = [6, 10, 6, 12, 8, 12, 8, 0, 8, 12, 0, 2]


@pytest.mark.parametrize("weight", [None, 1.0, 0.3, 7.0])
@pytest.mark.parametrize(
    ("every", "expected"),
    [(False, (EPISODES, OFFSETS)), (True, (EVERY_EPISODES, EVERY_OFFSETS))],
)
def test_equal_weights_give_the_order_without_weights(weight, every, expected):
    lengths, starts = np.full(23, 10), np.arange(23) * 10
    weights = None if weight is None else np.full(23, weight)
    blocks = blocks_of(starts, lengths, 20)
    order = VisitOrder(blocks, np.full(23, 7), 2, 0, every=every, weights=weights)
    episodes, offsets = order.draw(17, 29)
    assert (episodes.tolist(), offsets.tolist()) == expected


@given(
    weights=st.lists(
        st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.integers(1, 5).map(float)),
        min_size=1, max_size=30,
    ).filter(any),
    every=st.booleans(),
    mixed=st.integers(1, 5),
)  # fmt: skip
def test_an_epoch_rounds_the_expected_visits_down_or_up(weights, every, mixed):
    order = order_of(weights, every=every, episodes=len(weights), mixed=mixed)
    repeats = order.counts if every else np.ones_like(order.counts)
    expected = order.size * order.weights / (order.weights * repeats).sum()
    episodes, offsets = order.draw(0, order.size)
    assert order.size == repeats.sum()
    assert (offsets % 2 == 0).all()
    assert (offsets // 2 < order.counts[episodes]).all()
    key = episodes * 100 + (offsets if every else 0)
    seen = {name: int((key == name).sum()) for name in key.tolist()}
    for episode, wanted in enumerate(expected):
        for place in range(order.counts[episode] if every else 1):
            found = seen.get(episode * 100 + 2 * place, 0)
            assert wanted - 1 - 1e-6 < found < wanted + 1 + 1e-6
            assert not found or order.weights[episode] > 0


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_visits_over_many_epochs_follow_the_weights(every):
    """Per epoch a snippet is visited r times, rounded down or up: a variance of at most 1/4."""
    rng = np.random.default_rng(0)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], 23)
    order, epochs = order_of(weights, every=every), 800
    repeats = order.counts if every else np.ones(23)
    expected = order.size * weights / (weights * repeats).sum() * repeats * epochs
    found = visits(order, epochs).sum(axis=0)
    # Six standard deviations of a sum of rounded numbers; those of an episode may agree.
    np.testing.assert_array_less(
        np.abs(found - expected), 6 * repeats * np.sqrt(0.25 * epochs) + 1e-6
    )
    assert found[weights == 0].sum() == 0
    three, one = found[weights == 3.0].sum(), found[weights == 1.0].sum()
    pairs = repeats[weights == 3.0].sum() / repeats[weights == 1.0].sum()
    assert three / one == pytest.approx(3 * pairs, rel=0.05)


def test_snippets_of_a_weighted_episode_are_all_visited_and_mixed():
    order = order_of(np.where(np.arange(23) % 2, 3.0, 1.0))
    episodes, offsets = order.draw(0, 400 * order.size)
    for episode, count in enumerate(order.counts):
        found = np.bincount(offsets[episodes == episode] // 2, minlength=count)
        assert len(found) == count
        assert abs(found - found.mean()).max() < 5 * np.sqrt(found.mean())
    # Repeated visits of an episode do not stand beside each other.
    assert (episodes[1:] == episodes[:-1]).mean() < 0.2


@pytest.mark.parametrize("every", [False, True])
def test_a_weighted_order_depends_on_seed_and_position_alone(every):
    weights = np.linspace(0, 4, 23)
    end = 3 * order_of(weights, every=every).size
    whole = order_of(weights, every=every).draw(0, end)
    for start in reversed(range(0, end - 5, 5)):
        part = order_of(weights, every=every).draw(start, start + 5)
        assert np.array_equal(part[0], whole[0][start : start + 5])
        assert np.array_equal(part[1], whole[1][start : start + 5])
    others = order_of(np.linspace(0, 5, 23) ** 2, every=every).draw(0, end)
    assert not np.array_equal(others[0], whole[0])


def test_a_weighted_batch_touches_few_blocks():
    lengths, starts = np.full(64, 10), np.arange(64) * 10
    weights = np.where(np.arange(64) % 8, 1.0, 9.0)
    blocks = blocks_of(starts, lengths, 40)
    order = VisitOrder(blocks, np.ones(64, dtype=np.int64), 1, 0, weights=weights)
    episodes, _ = order.draw(0, 16)
    assert len(set(episodes // 4)) <= 2 * order.mixed


def test_nothing_but_weight_zero_is_refused():
    with pytest.raises(ConfigError, match="weight 0"):
        order_of(np.zeros(23))
    # The weights of episodes of other splits do not count.
    lengths = np.full(4, 10)
    with pytest.raises(ConfigError, match="weight 0"):
        VisitOrder([np.array([0, 1])], lengths, 1, 0, weights=np.array([0.0, 0.0, 1.0, 1.0]))


def episodes_of(weights):
    for number, weight in enumerate(weights):
        values = 100 * number + np.arange(5 + number, dtype=np.float32)[:, None]
        yield Episode(
            f"demo_{number}", {"a": values}, values, task="t", weight=weight,
            split="validation" if number in (3, 7) else "train",
        )  # fmt: skip


def written(path: Path, weights) -> SnippetStore:
    writer = SnippetWriter(path, SPEC)
    for episode in episodes_of(weights):
        writer.append(episode)
    writer.close()
    return SnippetStore.open(path)


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*")) if file.is_file()
    }  # fmt: skip


def test_a_store_holds_weights_only_where_they_differ(tmp_path):
    weights = [1.0, 0.0, 2.5, *[1.0] * 7]
    weighted = written(tmp_path / "weighted.zarr", weights)
    assert weighted.episodes.weight.tolist() == weights
    assert [weighted.episode(index).weight for index in range(10)] == weights
    plain, equal = (written(tmp_path / f"{w}.zarr", [w] * 10) for w in (1.0, 4.0))
    assert plain.episodes.weight.tolist() == equal.episodes.weight.tolist() == [1.0] * 10
    assert files_of(tmp_path / "1.0.zarr") == files_of(tmp_path / "4.0.zarr")
    assert not any("weight" in name for name in files_of(tmp_path / "1.0.zarr"))
    in_memory = SnippetStore.in_memory(episodes_of(weights), SPEC)
    assert in_memory.episodes.weight.tolist() == weights


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_store_takes_no_other_weight(weight):
    with pytest.raises(DataError, match="demo_0: weight"):
        SnippetStore.in_memory(episodes_of([weight]), SPEC)


@pytest.mark.parametrize("every", [False, True])
def test_cache_modes_give_the_same_weighted_batches(tmp_path, monkeypatch, every):
    monkeypatch.setattr(batches_module, "BLOCK_ROWS", 20)
    store = written(tmp_path / "made.zarr", [3.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    memory, disk = (
        SnippetBatches(
            store, ("a",), WindowRule(8, min_valid_fraction=0.25),
            split="train", seed=4, cache=cache, every=every,
        )
        for cache in ("ram", "none")
    )  # fmt: skip
    for update in range(30):
        one, two = memory.batch(update, 6), disk.batch(update, 6)
        assert torch.equal(one.observations, two.observations)
        assert torch.equal(one.actions, two.actions)
    drawn = memory.drawn(0, 6, 400)[0]
    seen = np.bincount(drawn, minlength=10)
    assert seen[[2, 3, 7]].tolist() == [0, 0, 0]
    counts = memory.rule.counts(store.episodes.length) if every else np.ones(10)
    expected = store.episodes.weight * counts * (store.episodes.split == 0)
    assert seen == pytest.approx(2400 * expected / expected.sum(), rel=0.2)
    # Validation draws every episode of its split, also that of weight 0.
    assert set(memory.of_split("validation").drawn(0, 6, 20)[0].tolist()) == {3, 7}


def test_latents_are_drawn_in_proportion_to_their_weights():
    rows = torch.arange(40.0)[:, None]
    table = LatentTable(rows, rows, rows, rows[:, 0].long(), rows[:, 0].long())
    weights = np.repeat([1.0, 3.0, 0.0, 0.5], 10)
    objective = DiffusionObjective(table, None, 250, 3, weights=weights)
    drawn = np.stack([objective._draw(update) for update in range(400)])
    found = np.bincount(drawn.ravel(), minlength=40)
    chance = weights / weights.sum()
    bound = 6 * np.sqrt(drawn.size * chance * (1 - chance)) + 1e-9
    np.testing.assert_array_less(np.abs(found - drawn.size * chance), bound + 1e-6)
    assert found[20:30].sum() == 0
    again = DiffusionObjective(table, None, 250, 3, weights=weights)
    assert np.array_equal(again._draw(250), drawn[250])  # a function of the number alone
    # Commit 423f956 drew these, before there were weights.
    for weights in (None, np.ones(40), np.full(40, 0.2)):
        plain = DiffusionObjective(table, None, 8, 3, weights=weights)
        assert plain._draw(5).tolist() == [4, 30, 24, 22, 27, 13, 1, 1]
    with pytest.raises(ConfigError, match="weight 0"):
        DiffusionObjective(table, None, 8, 3, weights=np.zeros(40))


def test_each_file_has_its_weight(make_sample, tmp_path):
    paths = tuple(make_sample("robomimic", tmp_path / name).path for name in "ab")
    config = IngestConfig(weight=(1.0, 3.0))
    with open_source("robomimic", paths, config) as source:
        store, _ = ingest(source, config)
        for index, outline in enumerate(source.episodes):
            assert source.weights[index] == (3.0 if str(paths[1]) in outline.source else 1.0)
    for weight, name in zip(store.episodes.weight, store.episodes.source, strict=True):
        assert weight == (3.0 if str(paths[1]) in name else 1.0)
    one = IngestConfig(weight=(5.0,))
    with open_source("robomimic", paths[:1], one) as source:
        assert set(ingest(source, one)[0].episodes.weight) == {1.0}


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ((1.0,), "1 numbers for 2 paths"),
        ((1.0, 2.0, 3.0), "3 numbers for 2 paths"),
        ((0.0, 0.0), "at least one of them above 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(make_sample, tmp_path, weight, expected):
    paths = tuple(make_sample("robomimic", tmp_path / name).path for name in "ab")
    with pytest.raises(DataError, match="--weight") as caught:
        open_source("robomimic", paths, IngestConfig(weight=weight))
    assert expected in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("weight", "problem"),
    [(-1.0, "at least 0"), (float("nan"), "at least 0|finite"), (float("inf"), "finite")],
)
def test_weights_that_are_no_weights_are_refused_by_name(weight, problem):
    with pytest.raises(LwdctlError, match=f"'weight' must be .*({problem})"):
        IngestConfig(weight=(1.0, weight))


def weights_by_file(store: SnippetStore) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {}
    for name, weight in zip(store.episodes.source, store.episodes.weight, strict=True):
        found.setdefault(name.partition(":")[0].rpartition("/")[2], set()).add(float(weight))
    return found


@pytest.fixture
def two_files(make_sample, tmp_path):
    paths = [make_sample("robomimic", tmp_path / name).path for name in "ab"]
    return [path.rename(path.parent / f"{path.parent.name}.hdf5") for path in paths]


@pytest.mark.slow
def test_weights_reach_the_store_from_command_library_and_recipe(two_files, tmp_path, capfd):
    first, second = map(str, two_files)
    place = tmp_path / "runs"
    words = ["ingest", first, second, "--workspace", str(place), "--quiet", "--name", "typed"]
    assert main([*words, "--weight", "1", "--weight", "3"]) == 0
    assert main([*words, "--weight", "1"]) != 0
    assert "--weight: 1 numbers for 2 paths" in capfd.readouterr().err
    lwdctl.ingest(first, second, weight=(1, 3), workspace=place, name="called")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[recipe]\ntitle = "two files"\n[stage.ingest]\nname = "planned"\n'
        f'paths = ["{first}", "{second}"]\nweight = [1, 3]\n'
    )
    assert main(["run", str(recipe), "--workspace", str(place), "--quiet"]) == 0
    for name in ("typed", "called", "planned"):
        store = SnippetStore.open(next((place / "snippets" / name).glob("v*")))
        assert weights_by_file(store) == {"a": {1.0}, "b": {3.0}}


@pytest.fixture
def drawn(monkeypatch):
    """Collect what training draws: episodes of `SnippetBatches`, rows of `DiffusionObjective`."""
    seen: dict[str, list[np.ndarray]] = {"episodes": [], "rows": []}
    snippets, latents = SnippetBatches.drawn, DiffusionObjective._draw

    def draw_snippets(self, *arguments):
        found = snippets(self, *arguments)
        if self._split == "train":
            seen["episodes"].append(found[0])
        return found

    def draw_latents(self, update):
        rows = latents(self, update)
        seen["rows"].append(self.table.label[torch.from_numpy(rows)].numpy())
        return rows

    monkeypatch.setattr(SnippetBatches, "drawn", draw_snippets)
    monkeypatch.setattr(DiffusionObjective, "_draw", draw_latents)
    return seen


def walks() -> SnippetStore:
    """Return episodes labeled by their weight: 0, 1 and 4; one of each is held out."""
    rng, weights = np.random.default_rng(0), (0.0, 1.0, 4.0)
    spec = replace(SPEC, labels=("0", "1", "4"))
    made = [
        Episode(
            f"demo_{number}",
            {"a": rng.normal(size=(20, 1)).astype(np.float32)},
            rng.normal(size=(20, 1)).clip(-1, 1).astype(np.float32),
            task="t", weight=weights[number % 3], label=spec.labels[number % 3],
            split="validation" if number < 3 else "train",
        )
        for number in range(15)
    ]  # fmt: skip
    return SnippetStore.in_memory(made, spec)


def check_proportions(labels: np.ndarray) -> None:
    """Check that label 2 is drawn four times as often as label 1, and label 0 never."""
    found = np.bincount(labels, minlength=3)
    assert found[0] == 0
    assert abs(found[2] - 0.8 * len(labels)) < 5 * np.sqrt(0.16 * len(labels))


@pytest.mark.slow
def test_vae_and_latents_follow_the_weights(drawn, tmp_path):
    data, progress = walks(), SilentProgress()
    vae_config = VaeConfig(
        snippet_length=8, latent_size=4, policy_width=8, batch_size=16, updates=20, device="cpu"
    )
    (tmp_path / "vae").mkdir()
    (tmp_path / "diffusion").mkdir()
    vae = train_vae(data, vae_config, directory=tmp_path / "vae", progress=progress)
    check_proportions(data.episodes.label[np.concatenate(drawn["episodes"])])
    latents = encode(vae.model, data, EncodeConfig(device="cpu"), None, progress)
    assert set(latents.episode) == set(range(15))  # those of weight 0 as well
    config = DiffusionConfig(width=16, blocks=1, batch_size=16, updates=20, device="cpu")
    train_diffusion(
        latents, data, vae.model, config, directory=tmp_path / "diffusion", progress=progress
    )
    check_proportions(np.concatenate(drawn["rows"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ldp", "mlp", "dp"])
def test_baselines_follow_the_weights(drawn, tmp_path, method):
    config = BaselineConfig(
        method=method, snippet_length=6, updates=40, batch_size=16, device="cpu",
        **{"mlp": {"policy_width": 8}, "dp": {"unet_size": "xs"}}.get(method, {"width": 16}),
    )  # fmt: skip
    data = walks()
    trainer = BASELINES.load(method)
    trainer.train(data, config, tmp_path, SilentProgress())
    check_proportions(data.episodes.label[np.concatenate(drawn["episodes"])])
    if method == "ldp":
        check_proportions(np.concatenate(drawn["rows"]))
