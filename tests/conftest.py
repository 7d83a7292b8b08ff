"""Toy stages: a pipeline of three that runs in milliseconds through the real machinery."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Literal

import pytest

from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import DataError
from lwdctl.stages import STAGES
from lwdctl.stages.stage import Stage


def pytest_configure():
    """Let tests signal their children, also in a background job of a script and under `nohup`.

    Those begin with SIGINT or SIGHUP ignored, which children would inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # goes on being ignored here
        signal.signal(signal.SIGHUP, lambda *_: None)


@dataclasses.dataclass(frozen=True)
class SowConfig:
    field_kind: str = option("", "What is sown.", argument=True)
    plots: tuple[str, ...] = option((), "Where.", argument=True)
    rows: int = option(3, "How many rows.", minimum=1, maximum=9)
    sizes: tuple[int, ...] = option((4, 5), "Sizes.")
    depth: float = option(0.5, "How deep.")
    tool: Literal["hand", "plough"] = option("hand", "With what.")
    limit: int | None = option(None, "Stop after so many.")
    water: bool = option(True, "Water afterwards.")
    fail: str = option("", "How to fail.")


@dataclasses.dataclass(frozen=True)
class GrowConfig:
    days: int = option(10, "Days to grow.")
    fail: str = option("", "How to fail.")


@dataclasses.dataclass(frozen=True)
class ReapConfig:
    horizon: int = option(1, "Unused.")


def _publish(kind, config, inputs, context, summary):
    name = context.name or (next(iter(inputs.values())).name if inputs else "field")
    with context.workspace.begin(
        kind, name, config=to_mapping(config), inputs=list(inputs.values()), resume=context.resume
    ) as draft:
        if getattr(config, "fail", "") == "checkpoint":
            (draft.checkpoints / "1").write_text("half way")
            draft.keep = True
            if not draft.resumed:
                raise KeyboardInterrupt
        if getattr(config, "fail", "") == "early":
            raise KeyboardInterrupt
        (draft.path / "data.json").write_text(json.dumps(summary))
        return draft.publish(summary, seed=0)


def sow(config, inputs, context):
    print("a banner that a library prints")  # noqa: T201
    if config.fail == "user":
        raise DataError("plot 3 is a lake", "drain it")
    if config.fail == "bug":
        raise RuntimeError("impossible")
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    with context.progress.task("sowing", config.rows, "row") as task:
        for _ in range(config.rows):
            task.advance(loss=0.25)
    return _publish("seed", config, inputs, context, {"rows": config.rows, "tool": config.tool})


def grow(config, inputs, context):
    return _publish("plant", config, inputs, context, {"days": config.days})


def reap(config, inputs, context):
    cells = [
        {"policy": "lwd", "latent": "sampled", "task": task, "episodes": 10, "success": rate,
         "success_low": rate - 0.1, "success_high": rate + 0.1, "metrics": {"max_overlap": 0.5}}
        for task, rate in (("left", 0.9), ("all", 0.8))
    ]  # fmt: skip
    days = inputs["plant"].manifest.summary["days"]
    only_the_last = {"plant": inputs["plant"]}  # its ancestors go without saying
    return _publish("crop", config, only_the_last, context, {"results": cells, "days": days})


TOY_STAGES = {
    "sow": Stage("sow", "seed", SowConfig, (), sow),
    "grow": Stage("grow", "plant", GrowConfig, ("seed",), grow, resumable=True),
    "reap": Stage("reap", "crop", ReapConfig, ("seed", "plant"), reap),
}


@pytest.fixture
def toy_stages(monkeypatch):
    """Put `sow`, `grow` and `reap` into the stage table."""
    for name, stage in TOY_STAGES.items():
        monkeypatch.setitem(STAGES, name, stage)
    return TOY_STAGES


@pytest.fixture
def workspace_path(tmp_path, monkeypatch):
    """An empty workspace that every command of the test uses."""
    path = tmp_path / "runs"
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(path))
    return path


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function that fills a folder once for all test processes of a run.

    It takes the folder's name and a function that fills an empty folder. Tests must not change it.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def make(name, fill):
        folder, unfinished = base / f"once-{name}", base / f"once-{name}.unfinished"
        with (base / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return make


@pytest.fixture
def interrupt_at(monkeypatch):
    """Interrupt the training step of a number, from 1; return a list that grows with every step."""
    from lwdctl.training.loop import TrainingLoop

    def begin(number):
        step, made = TrainingLoop._step, []

        def interrupted(self, *words):
            made.append(self.state.update)
            if len(made) == number:
                signal.raise_signal(signal.SIGINT)
            return step(self, *words)

        monkeypatch.setattr(TrainingLoop, "_step", interrupted)
        return made

    return begin


@pytest.fixture(scope="session")
def opengl():
    """The environment of a process that can draw without a display, where this machine can.

    Where EGL works the process has to find that out by itself.
    """
    bare = {
        key: value
        for key, value in os.environ.items()
        if key not in {"DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM"}
    }
    draw = (
        "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"
    )
    for backend, answer in (("egl", {}), ("osmesa", {"MUJOCO_GL": "osmesa"})):
        words = [sys.executable, "-c", draw]
        if not subprocess.run(
            words, env={**bare, "MUJOCO_GL": backend}, capture_output=True, check=False
        ).returncode:
            return {**bare, **answer}
    pytest.skip("neither EGL nor OSMesa works on this machine")


@pytest.fixture
def run_drawing(opengl):
    """Return a function that runs code, which must not fail, where it can draw."""

    def run(code):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=opengl,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    return run
