"""What `inspect` says of files: of every format, of damaged ones, and of several together."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.cli.main import main
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.progress import SilentProgress
from lwdctl.data.formats import READERS
from lwdctl.data.inspection import Inspections, inspect_file, inspect_files
from lwdctl.data.reader import ingest_command, open_source

LIMITS = {"action_limits": "-1000,1000"}
"""The samples' actions are random numbers, most of them outside any environment's limits."""
WIDE = IngestConfig(**LIMITS)


def write_flat(path, rows=40, episodes=2, **arrays):
    """Write a D4RL file of an environment that nobody knows; actions follow the observation."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(rows + 1, 3)), axis=0)
    ends = np.zeros(rows, bool)
    ends[np.arange(1, episodes + 1) * (rows // episodes) - 1] = True
    content = {
        "observations": walk[:-1], "actions": walk[1:, :2] / 50, "rewards": np.ones(rows),
        "terminals": ends, "timeouts": np.zeros(rows, bool), **arrays,
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for key, values in content.items():
            if values is not None:
                file[key] = values
    return content


@pytest.mark.slow
@pytest.mark.parametrize("name", list(READERS))
def test_every_format_is_recognized_and_described_as_ingest_takes_it(
    name, make_sample, tmp_path, lengths, monkeypatch, capfd
):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    sample = make_sample(name, tmp_path / name)
    config = IngestConfig(**LIMITS, **sample.options)
    found = inspect_file(sample.path, config)
    assert found.error == ""
    assert found.format == name
    assert found.recognized_by
    assert (found.episodes, found.steps) == (len(lengths), sum(lengths))
    length = found.statistics["length"]
    assert (length["minimum"], length["maximum"]) == (min(lengths), max(lengths))
    assert sum(found.statistics["tasks"].values()) == len(lengths)
    with open_source(name, (sample.path,), config) as source:
        assert found.spec.observations == source.spec.observations
        actions = np.concatenate([source.read(i).actions for i in range(len(lengths))])
        keys = [item.name for item in source.spec.observations]
        rows = {
            key: np.concatenate([source.read(i).observations[key] for i in range(len(lengths))])
            for key in keys
        }
    np.testing.assert_allclose(found.statistics["action"]["minimum"], actions.min(axis=0))
    np.testing.assert_allclose(found.statistics["action"]["maximum"], actions.max(axis=0))
    for key, values in rows.items():
        seen = found.statistics["observations"][key]
        np.testing.assert_allclose(seen["minimum"], values.min(axis=0), rtol=1e-6)
        np.testing.assert_allclose(seen["maximum"], values.max(axis=0), rtol=1e-6)
    uses = {item.use for item in found.arrays}
    assert "action" in uses
    assert "observation" in uses
    # The command is run as it is printed.
    assert found.command.startswith(f"lwdctl ingest {shlex.quote(str(sample.path))}")
    assert main([*shlex.split(found.command)[1:], "--name", "made", "-q"]) == 0
    capfd.readouterr()
    store = SnippetStore.open(tmp_path / "runs/snippets/made/v0001")
    assert store.steps == sum(lengths)
    assert store.spec.observations == found.spec.observations
    assert store.spec.action == found.spec.action


@pytest.mark.slow
@pytest.mark.parametrize("name", list(READERS))
def test_the_description_is_json_and_the_same_for_the_same_file(name, make_sample, tmp_path):
    sample = make_sample(name, tmp_path / name)
    config = IngestConfig(**LIMITS, **sample.options)
    one, two = (
        json.dumps(inspect_file(sample.path, config).to_mapping(), allow_nan=False)
        for _ in range(2)
    )
    assert one == two
    assert set(json.loads(one)) == {
        "path", "bytes", "container", "format", "recognized_by", "not_recognized", "files",
        "arrays", "arrays_left_out", "recorded", "episodes", "steps", "splits", "stored",
        "observations", "action", "environment", "statistics", "findings", "error", "hint",
        "command", "can_be_ingested",
    }  # fmt: skip


def test_labels_returns_tasks_and_splits(make_sample, tmp_path, lengths):
    path = make_sample("robomimic", tmp_path).path
    with h5py.File(path, "a") as file:
        returns = [float(file[f"data/demo_{i}/rewards"][:].sum()) for i in range(12)]
        file["mask/train"] = np.array([f"demo_{i}".encode() for i in range(10)])
        file["mask/valid"] = np.array([b"demo_10", b"demo_11"])
    found = inspect_file(path, WIDE)
    assert found.statistics["tasks"] == {"push": 6, "reach": 6}
    assert found.splits == {"train": 10, "validation": 2}
    fast, slow = (found.statistics["labels"][name] for name in ("fast", "slow"))
    assert (fast["episodes"], fast["steps"]) == (6, sum(lengths[:6]))
    assert fast["return"]["minimum"] == pytest.approx(min(returns[:6]), rel=1e-5)
    assert slow["return"]["median"] == pytest.approx(np.median(returns[6:]), rel=1e-5)
    assert (slow["successful"], slow["success_known"]) == (6, 6)
    assert set(found.stored) == {"rewards", "final observation", "initial state"}
    text = str(Inspections((found,)))
    assert "10 train, 2 validation" in text
    assert "push (6), reach (6)" in text
    assert "data/env_args.env_version = 3.1.1" in text


def test_options_change_what_is_read(make_sample, tmp_path):
    path = make_sample("pusht", tmp_path).path
    config = IngestConfig(observation_keys=("keypoint", "agent_position"), label="me")
    found = inspect_file(path, config)
    assert [item.name for item in found.spec.observations] == ["keypoint", "agent_position"]
    assert list(found.statistics["labels"]) == ["me"]
    assert found.command == (
        f"lwdctl ingest {path} --label me --observation-keys keypoint,agent_position"
    )


def test_the_step_limit_is_known_or_said_to_be_unknown(tmp_path):
    path = tmp_path / "mine.hdf5"
    write_flat(path)
    assert "20 steps each; step limit unknown" in str(inspect_files([path], IngestConfig()))
    config = IngestConfig(max_steps=30)
    assert "20 steps each; step limit 30" in str(inspect_files([path], config))


def test_an_episode_with_nan_is_an_error_with_a_hint_that_works(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    path = tmp_path / "mine.hdf5"
    content = write_flat(path)
    with h5py.File(path, "a") as file:
        file["observations"][25, 1] = np.nan
    found = inspect_file(path, IngestConfig())
    (error,) = found.errors
    assert (error.check, error.values["episodes"]) == ("not-finite", 1)
    assert "1 of 2 episodes hold missing, NaN or infinite values; the first: " in error.message
    assert f"{path}: observations, row 25" in error.message
    assert not found.can_be_ingested
    low = found.statistics["action"]["minimum"]
    np.testing.assert_allclose(low, content["actions"][:20].min(axis=0), rtol=1e-6)
    assert error.hint.startswith("--on-nan drop")
    assert main(["ingest", str(path), "--on-nan", "drop", "-q"]) == 0
    assert "episodes" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"actions": "absolute"}, "--actions absolute: the recorded actions are torque"),
        ({"clip_actions": True, "action_limits": "data"}, ""),
        ({"action_limits": "wide"}, "--action-limits wide: is neither"),
        ({"drop": ("observations",)}, "no observation 'observations'"),
    ],
)
def test_what_ingest_refuses_inspect_refuses(
    make_sample, tmp_path, monkeypatch, capfd, options, error
):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    path = make_sample("d4rl", tmp_path).path
    config = IngestConfig(**options)
    found = inspect_file(path, config)
    words = shlex.split(ingest_command([path], config))[1:]
    code = main([*words, "-q"])
    assert found.can_be_ingested == (code == 0)
    assert error in found.error
    assert error in capfd.readouterr().err


def test_rewards_that_are_no_numbers_are_judged_as_ingest_does(
    make_sample, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    path = make_sample("robomimic", tmp_path).path
    with h5py.File(path, "a") as file:
        file["data/demo_4/rewards"][2] = np.nan
    found = inspect_file(path, WIDE)
    code = main([*shlex.split(ingest_command([path], WIDE))[1:], "-q"])
    assert found.can_be_ingested == (code == 0)
    assert any("rewards" in item.message for item in found.findings)
    capfd.readouterr()


def test_a_refused_file_shows_its_contents_and_why(tmp_path):
    path = tmp_path / "mine.hdf5"
    write_flat(path, actions=np.ones((7, 2)))
    found = inspect_file(path, IngestConfig())
    assert (found.format, found.spec, found.command) == ("d4rl", None, "")
    assert "actions, row 7: has 7 rows, but observations has 40" in found.error
    assert {item.key: item.shape for item in found.arrays} == {
        "actions": (7, 2), "observations": (40, 3), "rewards": (40,), "terminals": (40,),
        "timeouts": (40,),
    }  # fmt: skip
    text = str(Inspections((found,)))
    assert "observations  40 x 3  float64  low-dimensional" in text
    assert f"refused: {found.error}" in text


def test_a_file_of_no_format_names_the_nearest_and_why_not(tmp_path):
    path = tmp_path / "mine.hdf5"
    with h5py.File(path, "w") as file:
        file["log/lidar"] = np.zeros((4, 3, 2))
    found = inspect_file(path, IngestConfig())
    if found.format:  # a reader of any HDF5 file with named keys
        assert getattr(READERS.load(found.format), "generic", False)
    assert found.not_recognized["robomimic"].startswith("data: is missing")
    assert found.not_recognized["d4rl"] == "observations: is missing"
    assert "pusht" not in found.not_recognized
    assert "no d4rl file: observations: is missing" in str(Inspections((found,)))
    assert found.error


@pytest.mark.parametrize(
    ("name", "content", "error", "hint"),
    [
        ("notes.txt", b"hello\n", "is a text file, of no data format", "lwdctl reads robomimic"),
        ("empty.hdf5", b"", "is empty", ""),
        ("model.pkl", b"\x80\x04\x95.", "is a pickle, which is never opened", "numpy.savez"),
        ("half.hdf5", None, "is truncated; download it again", ""),
    ],
)
def test_files_that_hold_no_demonstrations(tmp_path, make_sample, name, content, error, hint):
    path = tmp_path / name
    if content is None:
        content = make_sample("robomimic", tmp_path / "whole").path.read_bytes()
        content = content[: len(content) // 2]
    path.write_bytes(content)
    found = inspect_file(path, IngestConfig())
    assert error in found.error
    assert hint in found.hint
    assert (found.format, found.bytes) == ("", len(content))
    assert str(path) in str(Inspections((found,)))


def test_a_directory_that_is_none_points_at_the_file_in_it(tmp_path, make_sample):
    folder = tmp_path / "my files"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    found = inspect_file(folder, IngestConfig())
    assert "is of no data format" in found.error
    assert found.files == ("a.txt",)
    sample = make_sample("d4rl", folder)
    found = inspect_file(folder, IngestConfig())
    assert found.hint == f"lwdctl inspect {shlex.quote(str(sample.path))}"
    assert any(item.key.endswith("/observations") for item in found.arrays)


def test_a_missing_file_is_described_as_such(tmp_path):
    found = inspect_file(tmp_path / "none.hdf5", IngestConfig())
    assert found.error.endswith("none.hdf5: no such file or directory")
    assert "unknown: it cannot be opened" in str(Inspections((found,)))


def test_a_format_that_is_named_is_taken_at_its_word(make_sample, tmp_path):
    path = make_sample("d4rl", tmp_path).path
    found = inspect_file(path, IngestConfig(format="robomimic"))
    assert (found.format, found.recognized_by) == ("robomimic", "")
    assert "data: is missing" in found.error
    assert found.arrays


def test_texts_of_a_file_cannot_steer_the_terminal(tmp_path):
    path = tmp_path / "mine.hdf5"
    write_flat(path, **{"infos/\x1b[2J": np.zeros(40), "metadata/who": "me\n\x1b]0;x\x07\u202e"})
    found = inspect_file(path, IngestConfig(label="\x1b[31m" + "x" * 5000))
    text = str(Inspections((found,)))
    assert "\x1b" not in text
    assert r"\x1b[31mxxx" in text
    assert r"infos/\x1b[2J" in text
    assert r"metadata/who = me\n\x1b]0;x\x07\u202e" in text
    assert max(map(len, text.splitlines())) < 2100  # the command holds the label
    shown = json.dumps(found.to_mapping(), ensure_ascii=False)
    assert "\x1b" not in shown


def test_long_lists_are_bounded(tmp_path):
    path = tmp_path / "mine.hdf5"
    extra = {f"infos/value_{i:03}": np.zeros(40) for i in range(60)}
    write_flat(path, **extra)
    found = inspect_file(path, IngestConfig())
    assert len(found.arrays) == 65
    text = str(Inspections((found,)))
    assert "... and 41 more" in text
    assert len(text.splitlines()) < 70


def test_several_files_that_agree(make_sample, tmp_path):
    paths = [make_sample("d4rl", tmp_path / part).path for part in ("a", "b")]
    found = inspect_files(paths, WIDE)
    assert (found.disagreement, found.can_be_ingested) == ("", True)
    assert found.command == ingest_command(paths, WIDE)
    assert f"These 2 files agree; ingest them together:\n  {found.command}" in str(found)
    assert found.to_mapping()["agree"] is True
    assert [item.episodes for item in found.files] == [12, 12]


def test_several_files_that_do_not_agree(make_sample, tmp_path):
    d4rl = make_sample("d4rl", tmp_path / "a").path
    other = make_sample("pusht", tmp_path / "b").path
    found = inspect_files([d4rl, other], WIDE)
    assert f"{other}: is a pusht file, but {d4rl} is a d4rl file" in found.disagreement
    assert (found.command, found.to_mapping()["agree"]) == ("", False)
    assert all(item.can_be_ingested for item in found.files)
    assert "These 2 files do not go into one store" in str(found)


def test_one_missing_file_does_not_hide_the_others(make_sample, tmp_path):
    path = make_sample("d4rl", tmp_path / "a").path
    found = inspect_files([tmp_path / "none.hdf5", path], WIDE)
    assert [item.can_be_ingested for item in found.files] == [False, True]
    assert not found.can_be_ingested


def test_no_path_is_an_error():
    with pytest.raises(DataError, match="no path"):
        inspect_files([], IngestConfig())


def test_reading_is_reported_per_episode(make_sample, tmp_path):
    done = []

    class Counting(SilentProgress):
        def task(self, title, total, unit="it", start=0):
            done.append((title, total, unit))
            return super().task(title, total, unit, start)

    path = make_sample("d4rl", tmp_path).path
    inspect_file(path, IngestConfig(), Counting())
    assert done == [(f"inspect {path.name}", 12, "episode")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my data.hdf5", "it's.hdf5", "-x.hdf5", "d4rl"])
def test_the_command_is_quoted_for_the_shell(make_sample, tmp_path, monkeypatch, name, capfd):
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    make_sample("d4rl", tmp_path / "a").path.rename(tmp_path / name)
    found = inspect_file(Path(name), IngestConfig(clip_actions=True, action_limits="-2,2"))
    words = shlex.split(found.command)
    assert words[:2] == ["lwdctl", "ingest"]
    assert main([*words[1:], "-q"]) == 0
    assert "102" in capfd.readouterr().out
