"""What every row of the table of data formats must fulfil."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import SourceSpec
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.formats import READERS
from lwdctl.data.reader import open_source

pytestmark = pytest.mark.parametrize("name", list(READERS))


@pytest.fixture
def sample(name, make_sample, tmp_path):
    return make_sample(name, tmp_path)


@pytest.fixture
def open_reader(name, sample):
    opened = []

    def start(*paths, **options):
        config = IngestConfig(**{**sample.options, **options})
        reader = open_source(name, paths or (sample.path,), config)
        opened.append(reader)
        return reader

    yield start
    for reader in opened:
        reader.close()


def test_episodes_come_in_numeric_order_with_declared_lengths(open_reader, lengths):
    reader = open_reader()
    assert tuple(item.length for item in reader.episodes) == lengths
    assert len({item.source for item in reader.episodes}) == len(lengths)
    assert [reader.read(index).length for index in range(len(lengths))] == list(lengths)
    assert [reader.read(index).source for index in range(len(lengths))] == [
        item.source for item in reader.episodes
    ]


def test_episodes_are_what_the_specification_says(open_reader):
    reader = open_reader()
    spec = reader.spec
    for index, outline in enumerate(reader.episodes):
        length = outline.length
        episode = reader.read(index)
        assert list(episode.observations) == [item.name for item in spec.observations]
        for item in spec.observations:
            assert episode.observations[item.name].shape == (length, item.size)
            assert episode.observations[item.name].dtype == np.float32
            if episode.final_observation is not None:
                assert episode.final_observation[item.name].shape == (item.size,)
        assert episode.actions.shape == (length, spec.action.size)
        assert episode.actions.dtype == np.float32
        assert episode.rewards is None or episode.rewards.shape == (length,)
        state = episode.initial_state
        assert state is None or (state.ndim == 1 and state.dtype == np.float64)
        assert episode.task in spec.env.tasks
        assert episode.label in (*spec.labels, "")
        assert (outline.task, outline.label, outline.split) == (
            episode.task, episode.label, episode.split,
        )  # fmt: skip


def test_success_is_known_without_reading_the_steps(open_reader):
    reader = open_reader()
    for index in range(len(reader.episodes)):
        assert reader.succeeded(index) is reader.read(index).success


def test_specification_survives_json_and_is_complete(open_reader):
    spec = open_reader().spec
    assert SourceSpec.from_mapping(json.loads(json.dumps(spec.to_mapping()))) == spec
    assert spec.network_keys
    limits = spec.action.size if spec.action.limits else 0  # from the data where none are known
    assert len(spec.action.low) == len(spec.action.high) == limits
    assert spec.action.semantics in ("absolute", "delta", "torque")
    assert spec.action.reference in ("", *(item.name for item in spec.observations))
    assert spec.env.max_steps > 0


def test_order_of_reading_does_not_matter(open_reader):
    reader = open_reader()
    forward = [reader.read(index) for index in range(4)]
    backward = [reader.read(index) for index in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_several_sources_are_one_after_the_other(name, open_reader, make_sample, tmp_path, lengths):
    first = make_sample(name, tmp_path / "a").path
    second = make_sample(name, tmp_path / "b").path
    reader = open_reader(first, second)
    assert tuple(item.length for item in reader.episodes) == lengths * 2
    assert len({item.source for item in reader.episodes}) == 2 * len(lengths)
    np.testing.assert_array_equal(reader.read(12).actions, reader.read(0).actions)


def test_the_same_source_twice_is_refused(open_reader, sample):
    with pytest.raises(DataError, match="given twice"):
        open_reader(sample.path, sample.path)


def test_label_option_labels_every_episode(open_reader):
    reader = open_reader(label="mine")
    assert reader.spec.labels == ("mine",)
    assert {reader.read(index).label for index in range(3)} == {"mine"}


def test_unknown_observation_key_is_refused_with_the_known_ones(open_reader, sample):
    with pytest.raises(DataError, match="observaton") as caught:
        open_reader(observation_keys=("observaton",))
    assert str(sample.path) in caught.value.message
    assert caught.value.hint


def test_unknown_subset_is_refused(open_reader):
    with pytest.raises(DataError, match="nothing_like_it"):
        open_reader(filter_key="nothing_like_it")


def test_missing_path_is_refused_and_not_created(open_reader, tmp_path):
    path = tmp_path / "absent.hdf5"
    with pytest.raises(DataError, match=r"absent\.hdf5"):
        open_reader(path)
    assert not path.exists()


def test_no_path_is_refused(name):
    with pytest.raises(DataError, match="no path"):
        open_source(name, (), IngestConfig())


@pytest.mark.parametrize("word", ["max-bytes"])
def test_declared_size_beyond_the_limit_is_refused(open_reader, word):
    with pytest.raises(DataError) as caught:
        open_reader(max_bytes=100)
    assert word in caught.value.hint


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["observation", "action"])
def test_bad_value_names_file_key_and_row(open_reader, sample, poison, value, which):
    key = getattr(sample, which)
    poison(sample, key, 1, value)
    reader = open_reader()
    reader.read(0)
    with pytest.raises(NonFiniteError) as caught:
        reader.read(2)
    message = caught.value.message
    assert str(sample.path) in message
    assert f"{key}, row {sample.first_row + 1}:" in message
    assert "\n" not in message


def test_episodes_go_into_a_snippet_store(open_reader, tmp_path):
    reader = open_reader()
    writer = SnippetWriter(tmp_path / "snippets.zarr", reader.spec)
    for index in range(len(reader.episodes)):
        writer.append(reader.read(index))
    writer.close()
    store = SnippetStore.open(tmp_path / "snippets.zarr")
    assert store.steps == sum(item.length for item in reader.episodes)
    first = reader.read(0)
    np.testing.assert_array_equal(store.read("action", 0, first.length), first.actions)


def test_keys_that_are_dropped_are_not_stored(sample, open_reader):
    stored = [item.name for item in open_reader().spec.observations]
    dropped = open_reader(observation_keys=stored, drop=stored[1:]).spec.observations
    assert [item.name for item in dropped] == stored[:1]
    for requested in ((), stored):
        if requested or not sample.options.get("observation_keys"):
            with pytest.raises(DataError, match="--drop leaves no observation"):
                open_reader(observation_keys=requested, drop=stored)
    with pytest.raises(DataError, match="--drop: no observation 'nothing'"):
        open_reader(observation_keys=stored, drop=("nothing",))
