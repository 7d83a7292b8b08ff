"""`python -m lerobot_policy_lwd EXPORTED DIR`."""

import json
import os
import subprocess
import sys

import pytest
from lerobot.configs.policies import PreTrainedConfig
from lerobot_policy_lwd import LWDPolicy
from lerobot_policy_lwd.__main__ import main

FOLDERS = [text for text in os.environ.get("EXPORTED_POLICIES", "").split(":") if text]


def test_the_directory_can_be_loaded(example, tmp_path, capsys):
    target = tmp_path / "new" / "policy"
    key = example.description.observations[0].name
    words = [str(example.directory), str(target), "--feature", f"{key}=observation.state"]
    words += ["--seed", "4", *(["--label", example.label] if example.label else [])]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{target}\n"
    assert f"lerobot-eval --policy.path={target}" in printed.err
    config = LWDPolicy.from_pretrained(target).config
    assert (config.seed, config.label) == (4, example.label)
    assert config.feature_names[key] == "observation.state"
    saved = json.loads((target / "config.json").read_text())
    assert saved["type"] == "lwd"
    assert [path.name for path in target.parent.iterdir()] == ["policy"]


def test_errors_are_two_lines_and_nothing_is_written(example, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for source, *options in (
        [tmp_path / "empty"],
        [example.directory, "--task", "nothing"],
        [example.directory, "--feature", "nothing=observation.state"],
    ):
        assert main([str(source), str(tmp_path / "made"), *options]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert len(printed.err.splitlines()) <= 2
    assert main([str(example.directory), str(tmp_path / "empty")]) == 1
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([str(example.directory), str(tmp_path / "made"), "--feature", "nothing"])
    assert caught.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.skipif(not FOLDERS, reason="EXPORTED_POLICIES names no exported policy")
def test_it_runs_as_a_module(tmp_path):
    words = [sys.executable, "-m", "lerobot_policy_lwd", FOLDERS[0], tmp_path / "made"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert PreTrainedConfig.from_pretrained(tmp_path / "made").type == "lwd"
