"""Stores and exports of data with hostile names: whole in their directory, or one error line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data.lerobot_export import LeRobotTarget, export_lerobot
from lwdctl.data.minari_package import MinariTarget, export_minari
from lwdctl.data.reader import open_source

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile import NAMES, everything_below

sys.path.pop(0)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
SOON = ("script", "formula", "upwards", "NUL", "half a character")
KINDS = [pytest.param(kind, marks=() if kind in SOON else pytest.mark.long) for kind in NAMES]
PLAIN = SourceSpec(
    observations=(ObservationSpec("agent", 2), ObservationSpec("block", 1)),
    action=ActionSpec(2, "absolute", "pixels", (0.0, -1.0), (512.0, 1.0), 10.0),
    env=EnvSpec("", ("push",), {}, 30),
    labels=("good",),
    source_format="made",
)


def in_texts(name: str) -> SourceSpec:
    """Return data whose task, label and other texts are a hostile name."""
    env = EnvSpec("", (name,), {name: name}, 30)
    return replace(PLAIN, env=env, labels=(name,), source_format=name)


def in_keys(name: str) -> SourceSpec:
    """Return data that have a hostile name as the key of an observation."""
    return replace(PLAIN, observations=(ObservationSpec(name, 2), ObservationSpec("block", 1)))


PLACES = {"texts": in_texts, "keys": in_keys}


def write_store(path: Path, spec: SourceSpec) -> SnippetStore:
    """Write a store of two episodes."""
    writer = SnippetWriter(path, spec)
    rng = np.random.default_rng(0)
    for index in range(2):
        rows = {item.name: rng.normal(size=(7, item.size)) for item in spec.observations}
        writer.append(
            Episode(
                source=f"demo {index} {spec.labels[0]}",
                observations={key: values[:6].astype("f4") for key, values in rows.items()},
                actions=rng.uniform(-1, 1, (6, 2)).astype("f4"),
                final_observation={key: values[6].astype("f4") for key, values in rows.items()},
                task=spec.env.tasks[0],
                label=spec.labels[0],
                split="train",
            )
        )
    writer.close()
    return SnippetStore.open(path)


def minari(store: SnippetStore, root: Path) -> Path:
    pytest.importorskip("minari")
    target = MinariTarget("toy/push/mixed-v0", root)
    return export_minari(store, target, SilentProgress()).path


def lerobot(store: SnippetStore, root: Path) -> Path:
    pytest.importorskip("pyarrow")
    root.mkdir()
    return export_lerobot(store, LeRobotTarget(root / "set"), SilentProgress()).path


EXPORTS = {"minari": minari, "lerobot": lerobot}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_store_of_hostile_names_stays_in_its_directory(tmp_path, kind, place):
    spec = PLACES[place](NAMES[kind])
    inside = tmp_path / "in" / "deep" / "store.zarr"
    inside.parent.mkdir(parents=True)
    try:
        store = write_store(inside, spec)
    except LwdctlError:
        store = None
    found = {path for path in everything_below(tmp_path) if not path.startswith("in/deep/store.z")}
    assert found == {"in", "in/deep"}
    if store is not None:
        assert store.spec == spec
        for index in range(2):
            assert store.episode(index).observations.keys() == {n.name for n in spec.observations}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_of_hostile_names_stays_in_its_directory(tmp_path, export, kind, place):
    """It is whole, and its own reader gives the numbers back; or nothing is there."""
    spec = PLACES[place](NAMES[kind])
    outside, root = tmp_path / "outside", tmp_path / "outside" / "in" / "deep" / "root"
    root.parent.mkdir(parents=True)
    try:
        store = write_store(tmp_path / "store.zarr", spec)
    except LwdctlError:
        return  # no store, no export
    try:
        path = EXPORTS[export](store, root)
    except LwdctlError:
        left = [item for item in root.rglob("*") if item.is_file() and "namespace" not in item.name]
        assert left == []
        assert everything_below(outside) <= {"in", "in/deep", "in/deep/root"} | {
            f"in/deep/root/{item}" for item in everything_below(root)
        }
        return
    made = everything_below(outside) - {"in", "in/deep"}
    assert {item for item in made if not item.startswith("in/deep/root")} == set()
    assert all(item.isascii() and item.isprintable() for item in made)
    for item in path.rglob("*.json"):
        json.loads(item.read_text(encoding="utf-8"))
    config = IngestConfig(actions="recorded", max_bytes=2**26)
    with open_source(export, (path,), config) as source:
        assert len(source.episodes) == 2
        written = {store.episode(index).actions.tobytes() for index in range(2)}
        assert {source.read(index).actions.tobytes() for index in range(2)} == written
        sizes = sorted(item.size for item in source.spec.observations)
        assert sizes == [1, 2]
