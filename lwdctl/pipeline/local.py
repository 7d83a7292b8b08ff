"""Run the stages of a recipe side by side in processes of this machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from lwdctl.core.errors import ConfigError, LwdctlError
from lwdctl.core.launch import check_one_process
from lwdctl.core.plain_text import plain_text
from lwdctl.core.progress import Progress
from lwdctl.methods import METHODS
from lwdctl.pipeline.executor import Ended, run_with
from lwdctl.pipeline.plan import PlannedStage, RecipeRun
from lwdctl.pipeline.recipe import Step
from lwdctl.pipeline.resources import CORES, DEVICES, Machine, this_machine
from lwdctl.pipeline.runner import Outcome, run_plan
from lwdctl.pipeline.stage_server import main_forked
from lwdctl.stages.stage import REST

MOST_JOBS = 1024
_BLOCK = 1 << 16
_FIRST = ("lwdctl.cli.main", "lwdctl.cli.run", "lwdctl.cli.commands", "typer._adapters")
_WITHOUT_TORCH = ("ingest",)
"""Commands that import no torch: they need not wait for the server to have imported it."""
_MODELS = ("train-vae", "train-diffusion", "train-baseline", "eval")
_TRAINING = ("tensorboard.summary.writer.event_file_writer", "torch.utils.flop_counter")
"""What commands import when they are under way: together longer than a toy training takes."""


def parse_jobs(text: str) -> int | Literal["auto"]:
    """Return the number of stages at once that a text names, or `"auto"`.

    Raises:
        ConfigError: It is neither.
    """
    if text == "auto":
        return "auto"
    if text.isdecimal() and text.isascii() and 1 <= int(text) <= MOST_JOBS:
        return int(text)
    raise ConfigError(
        f"jobs takes a number from 1 to {MOST_JOBS} or auto, not '{plain_text(text, 60)}'",
        "auto chooses by cores, memory and GPUs",
    )


def run_recipe(
    run: RecipeRun,
    progress: Progress,
    *,
    jobs: int | Literal["auto"] = 1,
    server: StageServer | None = None,
) -> list[Outcome]:
    """Run every stage of a recipe that is not up to date, on this machine.

    Args:
        run: The recipe.
        progress: Where to report.
        jobs: Stages at once, each in a process of its own; `"auto"` by cores, memory and GPUs. 1
            runs them one after the other in this process.
        server: One that was started while the recipe was read; it is closed.

    Returns:
        The outcomes in the order of the recipe.

    Raises:
        LwdctlError: A stage failed, or a launcher started several processes.
    """
    check_one_process("lwdctl run")
    if jobs == 1:
        return run_plan(run.steps, run.workspace, progress, run.files, run.tracking)
    server = server or StageServer()
    machine = this_machine()
    count = machine.jobs if jobs == "auto" else jobs
    if jobs == "auto":
        progress.message(f"{count} stages at once, which fit this machine")
    with server:
        executor = LocalExecutor(run, count, machine, server, ("--jobs", str(jobs)))
        return run_with(executor, run, progress)


class StageServer:
    """This process's end of a server that starts stages; see `pipeline.stage_server`.

    The server begins to import at once. Use it as a context manager: leaving it ends the server and
    all processes that it has started.

    Args:
        forked: Whether to fork it from this process, whose imports it then has, where that is safe;
            else it is a fresh interpreter.
    """

    def __init__(self, *, forked: bool = False) -> None:
        self._unread = b""
        start = _fork if forked and can_fork() else _launch
        try:
            self._process, self._requests, self._answers = start()
        except OSError as error:
            raise LwdctlError(f"no process can be started: {error.strerror}") from error

    def __enter__(self) -> StageServer:
        """Return the server itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the server, and with it what is left."""
        del kind, error, traceback
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._process.join()
        self._answers.close()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended by itself."""
        return not self._process.is_alive()

    def ask(self, request: Mapping[str, object]) -> None:
        """Send a request; where the server is gone nothing happens."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()

    def answers(self) -> list[dict[str, Any]]:
        """Return the answers that have come since the last call, without waiting."""
        descriptor = self._answers.fileno()
        while select.select([descriptor], [], [], 0)[0]:
            content = os.read(descriptor, _BLOCK)
            if not content:
                break
            self._unread += content
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]


class _Launched:
    """A process of `subprocess`, with the methods of one of `multiprocessing`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def join(self) -> None:
        self._process.wait()


_Started: TypeAlias = tuple[_Launched | BaseProcess, BinaryIO, BinaryIO]
"""A server, where requests to it are written, and where its answers are read."""


def _launch() -> _Started:
    """Start a server in a fresh interpreter."""
    # This process's own paths: it may have been started in another way than the server.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from lwdctl.pipeline.stage_server import main\n"
        f"main({os.getpid()}, {list(_FIRST)!r})"
    )
    # A session of its own: Ctrl-C reaches this process alone, which then ends the stages.
    process = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return _Launched(process), cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)


def _fork() -> _Started:
    """Fork a server from this process."""
    asked, requests = os.pipe()
    answers, answered = os.pipe()
    context = multiprocessing.get_context("fork")
    arguments = (os.getpid(), list(_FIRST), asked, answered)
    process = context.Process(target=main_forked, args=arguments)
    process.start()
    os.close(asked)
    os.close(answered)
    return process, os.fdopen(requests, "wb"), os.fdopen(answers, "rb")


def can_fork() -> bool:
    """Tell whether a process forked from this one can work: it has no other thread, and no torch.

    A lock that another thread holds would never be released, and CUDA does not work after a fork.
    """
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


class LocalExecutor:
    """Runs at most `jobs` stages at once, each in a process that runs one at a time.

    The processes compute with as many threads as a run of one stage after the other, since the
    number of threads decides in which order numbers are summed. What a stage may start beside its
    own work, environment workers and the threads that a training without `--threads` tries out, is
    limited to its fraction of the cores. Each stage sees one CUDA device, the one with the
    fewest stages, and where there are any, no process runs a second stage, so that the memory of
    the first is free; nor does one that was started without torch, which the server imports
    meanwhile.

    Args:
        run: The recipe.
        jobs: Largest number of stages at once.
        machine: What this machine has.
        server: What starts the processes.
        options: The options of `lwdctl run` that chose it.
    """

    queues = False
    poll_seconds = 0.01

    def __init__(
        self,
        run: RecipeRun,
        jobs: int,
        machine: Machine,
        server: StageServer,
        options: tuple[str, ...] = (),
    ) -> None:
        self.options = options or ("--jobs", str(jobs))
        self._run, self._jobs, self._machine, self._server = run, jobs, machine, server
        self._begun: list[PlannedStage] = []
        self._running: dict[str, int] = {}
        self._assistants: dict[int, str] = {}
        self._assist_soon: dict[int, PlannedStage] = {}
        self._assisted: set[str] = set()
        self._devices: dict[str, str] = {}
        self._to_import = _modules(run)

    def has_room(self) -> bool:
        """Return whether fewer stages run than may."""
        return self._busy < self._jobs

    def start(self, stage: PlannedStage, after: Sequence[str]) -> None:
        """Start a stage; it begins when it is known how many others run beside it."""
        del after
        self._begun.append(stage)
        self._running[stage.id] = self._free_number()
        self._devices[stage.id] = self._device(stage)

    def assist(self, stage: PlannedStage) -> None:
        """Start a process that measures conditions of a running evaluation, once it measures."""
        assistants = list(self._assistants.values()).count(stage.id)
        if stage.id not in self._assisted and 1 + assistants < stage.step.parts:
            number = self._free_number()
            self._assistants[number], self._assist_soon[number] = stage.id, stage

    def ended(self) -> Mapping[str, Ended]:
        """Return the stages that have ended since the last call, by id."""
        for stage in self._begun:
            self._send(stage, self._running[stage.id])
        self._begun.clear()
        for number, stage in list(self._assist_soon.items()):
            if self._run.files.read(stage.id).task.title:  # it measures
                del self._assist_soon[number]
                self._send(stage, number, "--part", REST)
        if self._running and self._to_import:  # the first runs meanwhile if it needs no torch
            self._server.ask({"import": self._to_import})
            self._to_import = []
        found: dict[str, Ended] = {}
        for answer in self._server.answers():
            if answer["worker"] in self._assistants:
                self._assisted.add(self._assistants.pop(answer["worker"]))
                continue
            busy = {number: one for one, number in self._running.items() if one not in found}
            identity = busy.get(answer["worker"])
            if identity is not None and answer.get("stage", identity) == identity:
                found[identity] = _ended(answer.get("status", 0))
        if self._server.is_gone:
            gone = Ended(succeeded=False, reason="the process that starts stages has died")
            found |= {one: gone for one in self._running if one not in found}
        for identity, end in found.items():
            del self._running[identity], self._devices[identity]
            self._dismiss(identity, at_once=not end.succeeded)
        return found

    def stop(self) -> None:
        """Let what runs write its checkpoint and end, as SIGTERM does."""
        for stage in self._begun:
            del self._running[stage.id], self._devices[stage.id]
        self._begun.clear()
        self._assist_soon.clear()
        for number in (*self._running.values(), *self._assistants):
            self._server.ask({"worker": number, "signal": signal.SIGTERM})
        while self._running:
            self.ended()
            time.sleep(self.poll_seconds)

    @property
    def _busy(self) -> int:
        return len(self._running) + len(self._assistants)

    def _free_number(self) -> int:
        used = {*self._running.values(), *self._assistants}
        return next(number for number in itertools.count() if number not in used)

    def _dismiss(self, identity: str, *, at_once: bool) -> None:
        """Start no assistants of a stage that has ended; those that run end by themselves."""
        for number in [one for one, stage in self._assistants.items() if stage == identity]:
            if self._assist_soon.pop(number, None):
                del self._assistants[number]
            elif at_once:
                self._server.ask({"worker": number, "signal": signal.SIGTERM})

    def _send(self, stage: PlannedStage, number: int, *options: str) -> None:
        device = self._devices[stage.id] if not options else self._device(stage)
        environment = {CORES: str(max(1, self._machine.cores // self._busy))}
        environment |= {DEVICES: device} if device else {}
        log = self._run.files.log(f"{stage.id}-{REST}-{number}" if options else stage.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._server.ask(
            {
                "worker": number,
                "stage": stage.id,
                "arguments": [*stage.arguments, *options],
                "environment": environment,
                "log": str(log),
                "reuse": not self._machine.gpus and _needs_torch(stage.step),
                "most": self._jobs,
            }
        )

    def _device(self, stage: PlannedStage) -> str:
        """Return the CUDA device that a stage is given; "" where it chooses for itself."""
        gpus = self._machine.gpus
        if not gpus or stage.settings.get("device", "") not in ("auto", "cuda"):
            return ""
        used = list(self._devices.values())
        return min(gpus, key=used.count)


def _modules(run: RecipeRun) -> list[str]:
    """Return what the stages of a recipe import, in the order in which they need it."""
    stages = {step.stage.command: step.stage for step in run.steps if _needs_torch(step)}
    named = [stage.run.partition(":")[0] for stage in stages.values() if isinstance(stage.run, str)]
    models: list[str] = []
    if set(stages) & set(_MODELS):
        models = [row.target.partition(":")[0] for row in METHODS.rows.values()]
    torch = ("torch",) if stages else ()
    return list(dict.fromkeys([*torch, *named, *models, *(_TRAINING if models else ())]))


def _needs_torch(step: Step) -> bool:
    return step.stage.command not in _WITHOUT_TORCH


def _ended(status: Any) -> Ended:
    number = status if isinstance(status, int) else 1
    if number < 0:
        return Ended(succeeded=False, reason=f"killed by {_signal_name(-number)}")
    return Ended(succeeded=number == 0, reason=f"exit status {number}" if number else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
