"""A data format of another package: one class and one entry point, and `ingest` reads it."""

import json
import textwrap

import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.cli.main import main
from lwdctl.core import registry

MODULE = '''
import numpy as np

from lwdctl.core.errors import DataError
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data.named_environments import requested_env
from lwdctl.data.reader import EpisodeOutline, check_no_subset


class NpzFile:
    """One .npz file with arrays obs_N and action_N."""

    def __init__(self, path, config):
        self.path = path
        check_no_subset(config, path, "an npz file")
        if not path.exists():
            raise DataError(f"{path}: no such file")
        self.arrays = dict(np.load(path))
        count = len(self.arrays) // 2
        adapter, task = requested_env(config)
        task, label = task or "toy", config.label or ""
        self.episodes = [
            EpisodeOutline(f"episode {index}", len(self.arrays[f"action_{index}"]), task, label)
            for index in range(count)
        ]
        self.spec = SourceSpec(
            observations=(ObservationSpec("obs", self.arrays["obs_0"].shape[1]),),
            action=ActionSpec(1, "delta", "normalized", (-1.0,), (1.0,)),
            env=EnvSpec(adapter, (task,), {}, 6),
            labels=(label,) if label else (),
            source_format="toy-npz",
        )

    def read(self, index):
        outline = self.episodes[index]
        return Episode(
            source=outline.source,
            observations={"obs": self.arrays[f"obs_{index}"]},
            actions=self.arrays[f"action_{index}"],
            task=outline.task,
            label=outline.label,
        )

    def close(self):
        self.arrays.clear()
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    (folder / "npz_reader-1.0.dist-info").mkdir(parents=True)
    (folder / "npz_reader.py").write_text(textwrap.dedent(MODULE))
    info = folder / "npz_reader-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: npz-reader\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lwdctl.readers]\ntoy-npz = npz_reader:NpzFile\n")
    monkeypatch.syspath_prepend(str(folder))
    registry._entry_points.cache_clear()
    yield
    registry._entry_points.cache_clear()


@pytest.mark.usefixtures("plugin")
def test_a_format_of_another_package_is_ingested(tmp_path, monkeypatch, capfd):
    rng = np.random.default_rng(0)
    arrays = {}
    for index, length in enumerate((4, 6, 5)):
        arrays[f"obs_{index}"] = rng.normal(size=(length, 2)).astype(np.float32)
        arrays[f"action_{index}"] = rng.uniform(-1, 1, (length, 1)).astype(np.float32)
    np.savez(tmp_path / "toy.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    assert main(["ingest", "toy-npz", "toy.npz", "--label", "mine", "--json", "-q"]) == 0
    done = json.loads(capfd.readouterr().out)
    store = SnippetStore.open(tmp_path / done["path"])
    assert store.steps == 15
    assert store.spec.labels == ("mine",)
    assert sorted(store.episodes.source) == ["episode 0", "episode 1", "episode 2"]
    assert main(["ingest", "toy-npz", "absent.npz"]) == 1
    assert "absent.npz: no such file" in capfd.readouterr().err
