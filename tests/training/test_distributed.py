"""One process among those of a training: its launcher, rows, draws and peers."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import EXIT_BUG, EXIT_USER, ConfigError, LwdctlError
from lwdctl.core.launch import Launch, launched, leads
from lwdctl.core.progress import SilentProgress
from lwdctl.data.batches import SnippetBatch, SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.evaluation import doctor
from lwdctl.pipeline.local import run_recipe
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.training import loop as loop_module
from lwdctl.training import peers as peers_module
from lwdctl.training.distributed import OwnRows, Processes, own_device
from lwdctl.training.loop import delayed_signals
from lwdctl.training.peers import LostProcessError, Peers
from lwdctl.training.update import Update

sys.path.insert(0, str(Path(__file__).parent))
import every_objective
from every_objective import group_of_one, train
from launching import VARIABLES, free_port, wait_for
from test_update import SETTINGS, update_of

sys.path.pop(0)

pytestmark = pytest.mark.timeout(600)  # a busy machine
LAUNCH = Launch(0, 2, "localhost", 1, 0, 2)


class Watched(Processes):
    """Counts how often gradients are averaged, with themselves."""

    averaged = 0

    def _sum(self, flat: torch.Tensor) -> None:
        self.averaged += 1


def test_threads_are_measured_without_the_other_processes() -> None:
    processes = Watched(LAUNCH, None)  # type: ignore[arg-type]
    found, _ = update_of()
    plain, _ = update_of()
    update = Update(found.model, found._objective, SETTINGS, print, processes)
    update.load_block(0, 10)
    with update.undone(), update.alone():
        update.rehearse()
        update.rehearse()
    assert not processes.averaged
    update.step(0, 10)
    assert processes.averaged == 1
    plain.step(0, 10)
    # The draws of a batch whose rows the objective has not divided are left as they are.
    assert torch.equal(update.loss, plain.loss)


def test_a_group_of_one_process_trains_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, as its weight is a power of two."""
    monkeypatch.setattr(every_objective, "VAE", replace(every_objective.VAE, batch_size=8))
    plain = train("vae", tmp_path / "plain", 3)
    with group_of_one("gloo") as processes:
        monkeypatch.setattr(loop_module, "join", lambda: processes)
        grouped = train("vae", tmp_path / "grouped", 3)
    assert grouped.summary["processes"] == 1
    pairs = zip(plain.last.parameters(), grouped.last.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["masked", "counted"])
def test_the_loss_of_masked_chunks_is_weighted_by_their_valid_steps(
    padding: str, tmp_path: Path
) -> None:
    """The mean of the means of two processes would be another number."""
    work = every_objective.train("dp", tmp_path, 1)
    model, data = work.model, every_objective.walks()
    rule = WindowRule(12, before=1, after=10)
    batches = SnippetBatches(data, ("state",), rule, split="train", seed=0)
    whole = batches.batch(0, 9)
    assert 0 < whole.mask.mean() < 1

    def terms(rows: slice) -> tuple[float, float]:
        batch = SnippetBatch(*(each[rows] for each in vars(whole).values()))
        with OwnRows(rows, 9):
            generator = torch.Generator().manual_seed(0)
            found = model.terms(batch, batch.task, batch.label, generator, padding=padding)
        weight = model.loss_weight(batch, padding=padding)
        return float(found["denoising"]), float(weight)

    with torch.no_grad():
        parts = [terms(slice(0, 5)), terms(slice(5, 9))]
        expected, total = terms(slice(0, 9))
    mean = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
    assert mean == pytest.approx(expected, rel=1e-5)
    assert total == sum(weight for _, weight in parts)


def test_the_doctor_names_a_variable_that_is_not_set(variables: pytest.MonkeyPatch) -> None:
    assert doctor._check_launch().state == "ok"
    set_all(variables, **FULL)
    found = doctor._check_launch()
    assert found.state == "ok"
    assert "4, of which this is rank 1; they meet at node:29500" in found.detail
    variables.delenv("MASTER_ADDR")
    found = doctor._check_launch()
    assert found.state == "broken"
    assert "MASTER_ADDR is not set" in found.detail


def test_a_recipe_refuses_to_run_in_several_processes(variables: Any, tmp_path: Path) -> None:
    set_all(variables, **FULL)
    with pytest.raises(ConfigError, match="lwdctl run does its work in one process"):
        run_recipe(None, SilentProgress())  # type: ignore[arg-type]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_all(variables: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        variables.setenv(name, value)


FULL = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}


def test_the_launcher_s_variables(variables: pytest.MonkeyPatch) -> None:
    assert launched() is None
    assert leads()
    set_all(variables, **FULL)
    assert launched() == Launch(1, 4, "node", 29500, None, None)
    assert not leads()
    set_all(variables, LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
    found = launched()
    assert found is not None
    assert found.command("lwdctl list") == "torchrun --nproc-per-node=4 -m lwdctl list"
    assert replace(found, local_size=2).command("lwdctl list") == "lwdctl list"
    variables.setenv("WORLD_SIZE", "1")
    assert launched() is None


@pytest.mark.parametrize("missing", FULL)
def test_a_variable_that_is_not_set_is_named(missing: str, variables: Any) -> None:
    set_all(variables, **{name: value for name, value in FULL.items() if name != missing})
    with pytest.raises(ConfigError, match=f"{missing} is not set") as caught:
        launched()
    assert "torchrun" in caught.value.hint
    assert "unset RANK WORLD_SIZE" in caught.value.hint


@pytest.mark.parametrize(("name", "value"), [("RANK", "4"), ("RANK", "-1"), ("MASTER_PORT", "x")])
def test_a_variable_that_is_no_number_is_named(name: str, value: str, variables: Any) -> None:
    set_all(variables, **{**FULL, name: value})
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        launched()


def test_a_stage_of_one_process_refuses_to_run_in_several(variables: Any, tmp_path: Path) -> None:
    set_all(variables, **FULL)
    with pytest.raises(ConfigError, match="encode does its work in one process"):
        run_stage("encode", workspace=Workspace(tmp_path))


def test_devices_of_several_processes(variables: Any, monkeypatch: Any) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_device(torch.device("cuda:2")) == torch.device("cuda:2")  # one process
    set_all(variables, **FULL)
    with pytest.raises(ConfigError, match="LOCAL_RANK is not set"):
        own_device(torch.device("cuda"))
    set_all(variables, LOCAL_RANK="3", LOCAL_WORLD_SIZE="4")
    assert own_device(torch.device("cuda")) == torch.device("cuda")
    assert chosen == [3]
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="cannot all use cuda:2"):
        own_device(torch.device("cuda:2"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="GPU 3, but this node has 2"):
        own_device(torch.device("cuda"))


@pytest.mark.parametrize(("batch", "size"), [(7, 2), (64, 3), (5, 5), (9, 4)])
def test_rows_cover_a_batch_once(batch: int, size: int) -> None:
    parts = [Processes(replace(LAUNCH, rank=rank, size=size), None).rows(batch)  # type: ignore[arg-type]
             for rank in range(size)]  # fmt: skip
    assert [row for part in parts for row in range(batch)[part]] == list(range(batch))
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) - min(lengths) <= 1


def test_batches_and_models_that_cannot_be_divided() -> None:
    processes = Processes(replace(LAUNCH, size=8), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a batch of 7 cannot be divided among 8"):
        processes.describe(7)
    assert processes.describe(8) == "8 processes: batches of 8 snippets, 1 per process"
    with pytest.raises(ConfigError, match="1 is a batch normalization"):
        processes.check_model(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


class Noisy(nn.Module):
    """Draws in every way that a model may: with a generator and without, in place, in dropout."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 16, 0.3, batch_first=True, norm_first=True)
        self.decoder, self.dropout = nn.TransformerDecoder(layer, 2), nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        rows = len(inputs)
        drawn = [
            torch.randn(inputs.shape, generator=generator),
            torch.rand(rows, 1, 1, generator=generator),
            torch.randint(5, (rows, 1, 1), generator=generator),
            torch.randint(2, 7, (rows, 1, 1)),
            torch.normal(0.0, 1.0, (rows, 1, 1)),
            torch.randn_like(inputs),
            torch.empty(rows, 1, 8).uniform_(generator=generator),
            torch.empty(6, rows, 8).transpose(0, 1).contiguous().normal_(),
            self.dropout(inputs.transpose(1, 2)).transpose(1, 2),
        ]
        shared = torch.randn(6, 8, generator=generator)
        return self.decoder(inputs + sum(drawn), inputs + shared)


@pytest.mark.parametrize("size", [2, 3])
def test_draws_of_some_rows_are_those_of_the_batch(size: int) -> None:
    torch.manual_seed(0)
    model, inputs = Noisy(), torch.randn(7, 6, 8)

    def run(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        given = values.clone().requires_grad_()
        found = model(given, torch.Generator().manual_seed(2))
        (gradient,) = torch.autograd.grad(found.square().sum(), given)
        return found, gradient

    whole = run(inputs)
    for rank in range(size):
        own = Processes(replace(LAUNCH, rank=rank, size=size), None).rows(7)  # type: ignore[arg-type]
        with OwnRows(own, 7):
            found = run(inputs[own])
        for one, two in zip(found, whole, strict=True):
            torch.testing.assert_close(one, two[own])


@pytest.mark.parametrize(
    "draw",
    [
        lambda rows: torch.bernoulli(torch.full((rows, 2), 0.5)),
        lambda rows: torch.normal(0.0, torch.ones(rows, 2)),
        torch.randperm,
    ],
)
def test_a_draw_that_cannot_be_divided_is_refused(draw: Any) -> None:
    with OwnRows(slice(0, 3), 6):
        draw(4)  # no value per row
        with pytest.raises(LwdctlError, match="draws random numbers with"):
            draw(3)


def test_copies_of_a_signal_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with delayed_signals(60.0) as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
            assert not heard
        assert heard == [signal.SIGTERM]
        with delayed_signals(1e-6):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            assert len(heard) == 2  # this one is not a copy
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def met(size: int, software: list[str] | None = None) -> Any:
    """Yield the peers of several processes, which are threads of this one."""
    port = free_port()
    launches = [Launch(rank, size, "127.0.0.1", port, rank, size) for rank in range(size)]
    stores = [
        dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0,
                      timeout=timedelta(seconds=20), wait_for_workers=False)
        for rank in range(size)
    ]  # fmt: skip
    given = software or ["one"] * size
    found = [Peers(*each) for each in zip(launches, stores, given, strict=True)]
    try:
        yield found
    finally:
        for one in found:
            one.stop()


def meet(found: list[Peers]) -> list[BaseException | None]:
    errors: list[BaseException | None] = [None] * len(found)

    def arrive(number: int) -> None:
        try:
            found[number].meet()
        except BaseException as error:  # noqa: BLE001
            errors[number] = error

    threads = [threading.Thread(target=arrive, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def never(seconds: float) -> bool:
    time.sleep(0.02)
    return False


def test_a_process_that_does_not_arrive_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "ARRIVAL_SECONDS", 0.3)
    with met(4) as found:
        errors = meet([found[0], found[2]])
        assert all("rank 1, 3 of the training did not arrive within" in str(e) for e in errors)


def test_processes_of_other_software_are_refused() -> None:
    with met(2, ["torch 1", "torch 2"]) as found:
        errors = meet(found)
    assert all("runs torch" in str(error) for error in errors)


def test_a_process_that_falls_silent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWDCTL_RANK_TIMEOUT", "1")
    with met(3) as found:
        assert meet(found) == [None] * 3
        found[1].stop()
        for one in (found[0], found[2]):
            with pytest.raises(LostProcessError, match=r"rank 1 \(.*has not answered for 1 s"):
                one.wait(never)


def test_a_process_that_gets_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "STALLED_SECONDS", 0.5)
    monkeypatch.setenv("LWDCTL_RANK_TIMEOUT", "1")
    with met(3) as found:
        meet(found)
        found[2].wait(lambda seconds: True)
        time.sleep(0.2)  # its next sign of life says so
        with pytest.raises(LostProcessError, match=r"waited 0 s for rank 1 \(") as caught:
            found[0].wait(never)
        assert "rank 2" not in caught.value.message
        found[1].wait(lambda seconds: True)
        time.sleep(0.2)
        found[0].entered = 0
        with pytest.raises(LostProcessError, match="waited 0 s for the network: all processes"):
            found[0].wait(never)


def test_others_end_with_the_error_of_one_and_one_of_them_reports_it() -> None:
    with met(3) as found:
        meet(found)
        error = LwdctlError("the disk is full", "free some")
        error.exit_code = 7
        assert found[1].end(error, will_say=True)
        for one in (found[0], found[2]):
            seen = one.noticed()
            assert seen is not None
            assert (seen.message, seen.hint, seen.exit_code) == ("the disk is full", "free some", 7)
            assert not one.end(seen, will_say=True)
        assert all(one.others_have_ended() for one in found)


def test_signals_of_another_process_are_told_as_exit_codes() -> None:
    with met(2) as found:
        meet(found)
        found[1].end(KeyboardInterrupt(), will_say=False)
        seen = found[0].noticed()
        assert seen is not None
        assert seen.exit_code == 130
        assert found[0].end(seen, will_say=True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), EXIT_USER),
        (OSError(errno.ENOSPC, "No space left on device"), EXIT_USER),
        (FileNotFoundError(errno.ENOENT, "No such file"), EXIT_BUG),
        (ValueError("x"), EXIT_BUG),
    ],
)
def test_all_processes_end_with_the_exit_code_of_the_one_that_failed(
    error: Exception, code: int
) -> None:
    with met(2) as found:
        meet(found)
        found[1].end(error, will_say=True)
        seen = found[0].noticed()
        assert seen is not None
        assert seen.exit_code == code


@pytest.mark.slow
def test_a_dead_process_of_this_machine_is_noticed_at_once() -> None:
    with met(2) as found:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        found[1]._myself = replace(found[1]._myself, pid=ended.pid)
        wait_for(found[1]._myself.has_ended)  # a zombie
        meet(found)
        with pytest.raises(LostProcessError, match=f"rank 1 .process {ended.pid} on .* has ended"):
            found[0].wait(never)
        ended.wait()


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf"])
def test_a_time_out_that_is_no_number_of_seconds(text: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("LWDCTL_RANK_TIMEOUT", text)
    with pytest.raises(ConfigError, match=f"LWDCTL_RANK_TIMEOUT={text}"):
        Peers(LAUNCH, None, "")


def test_nothing_of_it_is_there_in_a_single_process(tmp_path: Path, variables: Any) -> None:
    assert loop_module.join() is None
    train("mlp", tmp_path, 2)
    assert not dist.is_initialized()
