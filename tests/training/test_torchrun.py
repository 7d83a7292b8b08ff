"""Trainings in several processes: the numbers of one process, and an end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lwdctl.artifacts.workspace import Workspace
from lwdctl.models.files import read_tensors
from lwdctl.training.loop import TrainingLoop

sys.path.insert(0, str(Path(__file__).parent))
from every_objective import KINDS, rows, train, write_workspace
from launching import (
    SCRIPT,
    Started,
    end_what_runs,
    environment,
    free_port,
    start_process,
    torchrun,
    wait_for,
)

sys.path.pop(0)

pytestmark = pytest.mark.timeout(600)  # a busy machine
TRAIN = [
    "train-vae", "--policy-width", "8", "--decoder", "xs", "--snippet-length", "8",
    "--latent-size", "8", "--batch-size", "7", "--device", "cpu", "--threads", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Any:
    yield
    end_what_runs()


def largest_difference(one: Path, two: Path) -> float:
    """Return the largest relative difference of logged numbers."""
    first, second = rows(one), rows(two)
    assert first.keys() == second.keys()
    assert first
    worst = 0.0
    for name, lines in first.items():
        assert len(lines) == len(second[name])
        for line, other in zip(lines, second[name], strict=True):
            assert line.keys() == other.keys()
            worst = max(worst, *(abs(v - other[k]) / max(abs(v), 1e-12) for k, v in line.items()))
    return worst


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("vae", "diffusion", "dp-transformer", "mlp")
    started = Started([str(tmp_path / "two"), "4", *kinds])
    monkeypatch.setattr(TrainingLoop, "_is_due", lambda self, every: True)
    for kind in kinds:
        assert "processes" not in train(kind, tmp_path / "one" / kind, 4).summary
    assert [code for code, _, _ in started.end()] == [0, 0]
    for kind in kinds:
        assert largest_difference(tmp_path / "one" / kind, tmp_path / "two" / kind) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_updates(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = torchrun(SCRIPT, str(tmp_path / "two"), "50", kind)
    monkeypatch.setattr(TrainingLoop, "_is_due", lambda self, every: True)
    train(kind, tmp_path / "one" / kind, 50)
    _, errors = started.communicate(timeout=500)
    assert started.returncode == 0, errors
    found = rows(tmp_path / "two")
    assert max(map(len, found.values())) == 50
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5


@pytest.mark.long
def test_three_processes_of_the_command_line(tmp_path: Path) -> None:
    """One of them publishes and reports; the others are silent and end alike."""
    workspace = write_workspace(tmp_path)
    started = torchrun(
        "-m", "lwdctl", *TRAIN, "--updates", "4", "--json", size=3, LWDCTL_WORKSPACE=tmp_path
    )
    output, errors = started.communicate(timeout=500)
    assert started.returncode == 0, errors
    assert json.loads(output)["summary"]["processes"] == 3
    assert "3 processes: batches of 7 snippets, 2 or 3 per process" in errors
    assert errors.count("reading snippets/walks:v1") == 1
    (artifact,) = [item for item in workspace.artifacts() if item.type == "vae"]
    assert "2 or 3 per process" in artifact.payload("log.txt").read_text()
    assert not list((tmp_path / "vae").rglob(".partial*"))
    assert not list((tmp_path / "vae").rglob("rank-*"))


def checkpoints(root: Path) -> list[Path]:
    return sorted((root / "vae").glob("*/.partial-*/checkpoints/update-*"))


def weights(root: Path) -> dict[str, torch.Tensor]:
    (artifact,) = [item for item in Workspace(root).artifacts() if item.type == "vae"]
    return read_tensors(artifact.payload("weights.safetensors"))


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resuming_with_another_number_of_processes(before: int, after: int, tmp_path: Path) -> None:
    """A signal to one process stops all of them, with a checkpoint of the same training step."""
    line = [*TRAIN, "--updates", "60"]
    for name in ("whole", "parts"):
        write_workspace(tmp_path / name)
    whole = subprocess.run(
        [sys.executable, SCRIPT, "cli", "60", *line],
        env=environment(LWDCTL_WORKSPACE=tmp_path / "whole"), check=True, capture_output=True,
    )  # fmt: skip
    assert whole.returncode == 0
    root = tmp_path / "parts"
    variables = {"LWDCTL_WORKSPACE": root}

    def start(size: int, *more: str) -> Any:
        arguments = ["cli", "60", *line, *more]
        if size > 1:
            return Started(arguments, size, **variables)
        command = [sys.executable, SCRIPT, *arguments]
        return start_process(command, env=environment(**variables), stderr=subprocess.PIPE)

    first = start(before)
    log = lambda: list((root / "vae").glob("*/.partial-*/metrics.jsonl"))  # noqa: E731
    wait_for(lambda: log() and log()[0].read_text().count("\n") > 5)
    if before > 1:
        first.processes[-1].send_signal(signal.SIGTERM)
        assert [code for code, _, _ in first.end()] == [143] * before
    else:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
        assert first.returncode == 143
    assert len(checkpoints(root)) == 1
    second = start(after, "--resume")
    if after > 1:
        assert [code for code, _, _ in second.end()] == [0] * after
    else:
        second.communicate(timeout=500)
        assert second.returncode == 0
    found, expected = weights(root), weights(tmp_path / "whole")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    (one,), (two,) = rows(tmp_path / "whole").values(), rows(root).values()
    for line_, other in zip(one, two, strict=True):
        assert other == pytest.approx(line_, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others_with_one_line(lost: int, tmp_path: Path) -> None:
    write_workspace(tmp_path)
    line = ["cli", "0.2", *TRAIN, "--updates"]
    started = torchrun(SCRIPT, *line, "100000", LWDCTL_WORKSPACE=tmp_path)
    wait_for(lambda: checkpoints(tmp_path))
    os.kill(child(started.pid, lost), signal.SIGKILL)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 1
    assert errors.count("error: ") == 1
    assert f"error: rank {lost} (process " in errors
    assert errors.count("hint: ") == 1
    hint = next(text for text in errors.splitlines() if text.startswith("hint: "))
    assert "torchrun --nproc-per-node=2 -m lwdctl train-vae" in hint
    assert hint.endswith("--resume")
    # The settings decide what is resumed, so this goes on to a training step that was planned.
    resumed = Started([*line, "100000", "--resume"], LWDCTL_WORKSPACE=tmp_path)
    newest = checkpoints(tmp_path)[-1].name
    wait_for(lambda: checkpoints(tmp_path)[-1].name > newest)
    for process in resumed.processes:  # as a cluster does
        process.send_signal(signal.SIGTERM)
    ended = resumed.end()
    assert [code for code, _, _ in ended] == [143, 143]
    assert [text.count("error: terminated") for _, _, text in ended] == [1, 0]
    assert f"resuming from {newest}" in ended[0][2]


def child(parent: int, rank: int) -> int:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] != str(parent):
                continue
            if f"\0RANK={rank}\0" in f"\0{(stat.parent / 'environ').read_text()}":
                return int(stat.parent.name)
        except OSError:
            continue
    raise AssertionError("the launcher has no such process")


@pytest.mark.long
def test_a_process_that_stopped_is_named_after_the_time_out(tmp_path: Path) -> None:
    write_workspace(tmp_path)
    line = ["cli", "0.2", *TRAIN, "--updates", "100000"]
    started = Started(line, 3, LWDCTL_WORKSPACE=tmp_path, LWDCTL_RANK_TIMEOUT=4)
    wait_for(lambda: checkpoints(tmp_path))
    stopped = started.processes[1]
    stopped.send_signal(signal.SIGSTOP)
    for process in (started.processes[0], started.processes[2]):
        process.wait(timeout=60)
    stopped.kill()
    stopped.send_signal(signal.SIGCONT)
    ended = started.end()
    assert [code for code, _, _ in ended] == [1, -signal.SIGKILL, 1]
    texts = "".join(text for _, _, text in ended)
    assert texts.count("has not answered for 4 s") == 1
    assert f"rank 1 (process {stopped.pid} on {socket.gethostname()})" in texts
    assert checkpoints(tmp_path)


@pytest.mark.long
def test_two_nodes_meet_on_loopback(tmp_path: Path) -> None:
    write_workspace(tmp_path)
    meet = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}",
            "--rdzv-id=walks", "--local-addr=127.0.0.1")  # fmt: skip
    line = ("-m", "lwdctl", *TRAIN, "--updates", "4")
    agents = [torchrun(*line, size=1, more=meet, LWDCTL_WORKSPACE=tmp_path) for _ in range(2)]
    errors = [agent.communicate(timeout=500)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errors
    assert sum("2 processes: batches of 7" in text for text in errors) == 1
    assert len(list((tmp_path / "vae").glob("*/v*"))) == 1


@pytest.mark.long
def test_one_process_of_torchrun_is_one_process(tmp_path: Path) -> None:
    for name in ("plain", "torchrun"):
        write_workspace(tmp_path / name)
    line = [*TRAIN, "--updates", "4"]
    plain = [sys.executable, "-m", "lwdctl", *line]
    subprocess.run(
        plain, env=environment(LWDCTL_WORKSPACE=tmp_path / "plain"), check=True, capture_output=True
    )
    started = torchrun("-m", "lwdctl", *line, size=1, LWDCTL_WORKSPACE=tmp_path / "torchrun")
    _, errors = started.communicate(timeout=500)
    assert started.returncode == 0, errors
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "torchrun")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.long
def test_an_error_of_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    """The processes differ in a setting; each would wait for the other."""
    write_workspace(tmp_path)
    port = free_port()
    started = []
    for rank in range(2):
        variables = environment(
            RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            LWDCTL_WORKSPACE=tmp_path,
        )  # fmt: skip
        line = [sys.executable, "-m", "lwdctl", *TRAIN, "--updates", str(4 + rank)]
        started.append(start_process(line, env=variables, stderr=subprocess.PIPE, text=True))
    texts = [process.communicate(timeout=500)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1]
    joined = "".join(texts)
    assert "the processes differ in their settings: updates is" in joined
    assert not list((tmp_path / "vae").glob("*/*"))


@pytest.mark.long
def test_a_loss_of_one_process_that_is_not_finite_ends_all(tmp_path: Path) -> None:
    write_workspace(tmp_path)
    line = ["cli", "60", *TRAIN, "--updates", "20"]
    ended = Started(line, LWDCTL_WORKSPACE=tmp_path, DIVERGES=1).end()
    assert [code for code, _, _ in ended] == [1, 1]
    joined = "".join(text for _, _, text in ended)
    assert joined.count("error: training diverged at or before update 3: the loss is nan") == 1
    assert joined.count("error: ") == 1
    assert not list((tmp_path / "vae").glob("*/*"))


@pytest.mark.long
def test_processes_agree_on_a_time_limit(tmp_path: Path) -> None:
    workspace = write_workspace(tmp_path)
    line = ["cli", "60", *TRAIN, "--updates", "1000000", "--time-limit", "0.1"]
    ended = Started(line, LWDCTL_WORKSPACE=tmp_path).end()
    assert [code for code, _, _ in ended] == [0, 0]
    (artifact,) = [item for item in workspace.artifacts() if item.type == "vae"]
    assert 1 < artifact.manifest.summary["updates"] < 1_000_000
    assert artifact.manifest.summary["training_seconds"] < 30.0
