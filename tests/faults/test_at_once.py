"""Commands that run at once in one workspace end distinct or with one error line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chain import CHAIN, Counts, artifacts, start

sys.path.pop(0)

from lwdctl.artifacts.manifest import Manifest


def at_once(before, workspace: Path, lines: list[list[str]]) -> list[int]:
    """Run commands at once; check that each ended with a new artifact or one error line."""
    known = artifacts(workspace)
    running = [start(workspace, line) for line in lines]
    errors = [process.communicate()[1] for process in running]
    codes = [process.returncode for process in running]
    made = artifacts(workspace) - known
    assert set(codes) <= {0, 1}, (codes, errors)
    assert not [text for text in errors if "Traceback" in text]
    for code, text in zip(codes, errors, strict=True):
        found = [line for line in text.splitlines() if line.startswith("error:")]
        assert len(found) == code, text
    assert len(made) == codes.count(0), (made, codes)
    for path in made:
        Manifest.read(workspace / path)
    assert before.run(workspace, ["verify", "-q"]).returncode == 0
    listed = before.run(workspace, ["list", "-q"])
    assert listed.returncode == 0
    assert "damaged" not in listed.stdout
    assert not list(workspace.glob("*/*/.[a-z]*")), "something was left behind"
    return codes


def check(before, tmp_path: Path, name: str, count: int) -> None:
    """Run a stage several times at once, into one name and into different ones."""
    line = CHAIN[name].split()
    equal = [[*line, "--name", "same"] for _ in range(count)]
    different = [[*line, "--name", f"name{number}"] for number in range(count)]
    mixed = [[*line, "--name", f"name{number // 2}"] for number in range(count)]
    for title, lines in (("equal", equal), ("different", different), ("mixed", mixed)):
        with (
            Counts(f"{count} at once, {title} names, {name}") as counts,
            counts.injection(f"{name}, {title} names"),
        ):
            workspace = before(name, tmp_path / f"runs-{title}")
            codes = at_once(before, workspace, lines)
            counts.add("commands", count)
            assert codes == [0] * count, codes


@pytest.mark.slow
def test_two_ingests_at_once(before, tmp_path):
    workspace = before("ingest", tmp_path / "runs")
    assert at_once(before, workspace, [["ingest"], ["ingest"]]) == [0, 0]
    assert len(list(workspace.glob("snippets/*/v*/manifest.json"))) == 2


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", [name for name in CHAIN if name != "run"])
def test_commands_at_once_end_distinct(forked_before, tmp_path, name, count):
    check(forked_before, tmp_path, name, count)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [2, 5])
def test_recipes_at_once_end_whole(forked_before, tmp_path, count):
    """Those of one recipe may use what another of them has published."""
    before = forked_before
    workspace = before("run", tmp_path / "runs")
    with Counts(f"{count} at once, run") as counts, counts.injection("run"):
        running = [start(workspace, CHAIN["run"].split()) for _ in range(count)]
        errors = [process.communicate()[1] for process in running]
        assert {process.returncode for process in running} == {0}, errors
        counts.add("commands", count)
        assert before.run(workspace, ["verify", "-q"]).returncode == 0
        assert not list(workspace.glob("*/*/.[a-z]*"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_different_commands_at_once(forked_before, tmp_path):
    """All stages, readers and `gc` beside one another, in a workspace where each finds inputs."""
    before = forked_before
    workspace = before("analyze convergence", tmp_path / "runs")
    stages = ["ingest", "train-vae", "encode", "eval", "analyze latents"]
    lines = [CHAIN[name].split() for name in stages]
    with Counts("5 different commands at once beside list, verify and gc") as counts:
        for turn in range(3):
            with counts.injection(f"turn {turn}"):
                known = artifacts(workspace)
                running = [start(workspace, line) for line in lines]
                looking = []
                while any(process.poll() is None for process in running):
                    looking += [
                        before.run(workspace, line)
                        for line in (["list", "-q"], ["verify", "-q"], ["gc", "--delete"])
                    ]
                errors = [process.communicate()[1] for process in running]
                assert [process.returncode for process in running] == [0] * len(lines), errors
                assert {done.returncode for done in looking} == {0}, [
                    done.stderr for done in looking if done.returncode
                ]
                assert len(artifacts(workspace) - known) == len(lines)
                counts.add("commands", len(lines) + len(looking))
