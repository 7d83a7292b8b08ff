"""Checks of a machine: packages, simulators, rendering, device, disk.

This room is the lowest that sees simulators and learning together, and already keeps simulators
in processes that may die. Whatever could crash or hang runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lwdctl.core.installation import (
    BROKEN,
    MISSING,
    OK,
    WARNING,
    Finding,
    check_conflicts,
    check_packages,
)
from lwdctl.core.progress import Progress
from lwdctl.core.registry import Registry, Row
from lwdctl.envs.mujoco_rendering import HINT, OFF_SCREEN
from lwdctl.envs.table import SIMULATORS

TIMEOUT = 180.0
"""Seconds a check in its own process may take (numba compiles in some simulators)."""
ENOUGH_DISK = 5e9
_PROBE = "lwdctl.evaluation.probe"


def examine(
    workspace: Path,
    progress: Progress,
    simulators: Registry = SIMULATORS,
    timeout: float = TIMEOUT,
) -> list[Finding]:
    """Check everything.

    Args:
        workspace: Where artifacts go, existing or not.
        progress: Where to report.
        simulators: The environment table.
        timeout: Seconds that one check in its own process may take.
    """
    checks: list[Callable[[], list[Finding]]] = [
        check_packages,
        check_conflicts,
        lambda: [_learning(timeout)],
        *(_simulator_check(name, simulators.rows[name], timeout) for name in simulators),
        lambda: _rendering(timeout),
        lambda: [_disk(workspace)],
    ]
    found: list[Finding] = []
    with progress.task("doctor", len(checks), "check") as task:
        for check in checks:
            found += check()
            task.advance()
    return found


def _simulator_check(name: str, row: Row, timeout: float) -> Callable[[], list[Finding]]:
    return lambda: [_simulator(name, row, timeout)]


def _simulator(name: str, row: Row, timeout: float) -> Finding:
    answer = ask("simulator", name, row.target, row.extra, timeout=timeout)
    if "missing" in answer:
        return Finding("simulator", name, MISSING, answer["missing"], answer["hint"])
    if "error" in answer:
        return Finding("simulator", name, BROKEN, answer["error"], answer["hint"])
    detail = f"'{answer['task']}' builds and steps ({answer['seconds']:.1f} s)"
    return Finding("simulator", name, OK, detail)


def _learning(timeout: float) -> Finding:
    answer = ask("learning", timeout=timeout)
    if "error" in answer:
        hint = answer["hint"] or "make a fresh environment with constraints.txt"
        return Finding("device", "torch", BROKEN, answer["error"], hint)
    if answer["devices"]:
        return Finding("device", "cuda", OK, "; ".join(answer["devices"]))
    if answer["built_for"]:
        detail = f"torch is built for CUDA {answer['built_for']} but finds no device"
        return Finding("device", "cuda", WARNING, detail, "check the driver with nvidia-smi")
    return Finding("device", "cpu", OK, f"{answer['threads']} threads; no CUDA build of torch")


def _rendering(timeout: float) -> list[Finding]:
    """Try each headless backend, and what this shell would use."""
    hint = f"{HINT}; only pictures and videos need it"
    found, working = [], []
    for backend in OFF_SCREEN:
        answer = ask("rendering", timeout=timeout, MUJOCO_GL=backend)
        if "error" in answer:
            detail = f"draws nothing ({answer['error']})"
            found.append(Finding("rendering", backend, MISSING, detail, hint))
        else:
            working.append(backend)
            found.append(Finding("rendering", backend, OK, "draws a frame"))
    chosen = os.environ.get("MUJOCO_GL", "")
    if working and chosen and chosen not in working and chosen in OFF_SCREEN:
        detail = f"is set to {chosen}, which does not work here"
        instead = f"export MUJOCO_GL={working[0]}"
        found.append(Finding("rendering", "MUJOCO_GL", WARNING, detail, instead))
    return found


def _disk(workspace: Path) -> Finding:
    place = workspace.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free / 1e9:.1f} GB free at {place}"
    if free < ENOUGH_DISK:
        hint = "make room, or choose another place with --workspace"
        return Finding("disk", "workspace", WARNING, detail, hint)
    return Finding("disk", "workspace", OK, detail)


def ask(*words: str, timeout: float, **environment: str) -> Mapping[str, Any]:
    """Run a probe in a process of its own.

    Args:
        words: The probe and its arguments.
        timeout: Seconds it may take.
        environment: Variables set for it.

    Returns:
        Its answer; `error` and `hint` where it failed, crashed or hung.
    """
    command = [sys.executable, "-m", _PROBE, *words]
    variables = {**os.environ, **environment}
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command, capture_output=True, text=True, timeout=timeout, env=variables, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {timeout:.0f} s", "hint": ""}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": _crash(done.returncode, done.stderr), "hint": ""}
    return answer


def _crash(code: int, said: str) -> str:
    what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = (said.strip().splitlines() or [""])[-1]
    return f"crashed ({what}) {last}".strip()
