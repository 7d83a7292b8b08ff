"""Checks of a machine: packages, environments, other plug-ins, rendering, device, disk.

Whatever could crash or hang runs as a probe in a process of its own:
`python -m lwdctl.evaluation.doctor PROBE [ARGUMENT]` prints one JSON object.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.core.errors import LwdctlError, MissingExtraError
from lwdctl.core.installation import (
    BROKEN,
    MISSING,
    OK,
    WARNING,
    Finding,
    check_conflicts,
    check_packages,
    installed_version,
)
from lwdctl.core.launch import launched
from lwdctl.core.progress import Progress
from lwdctl.core.records import EnvSpec
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.data.formats import READERS
from lwdctl.envs.mujoco_rendering import HINT, OFF_SCREEN, VARIABLE, open_renderer
from lwdctl.envs.table import ENVIRONMENTS, make_simulator, task_names
from lwdctl.methods import METHODS
from lwdctl.models import DENOISERS

PLUGGABLE = {table.noun: table for table in (READERS, METHODS, DENOISERS)}
"""What plug-ins may add beside environments, each of which is tried as a simulator."""
TIMEOUT = 180.0
"""Seconds a probe may take (numba compiles in some simulators)."""
ENOUGH_DISK = 5e9
"""Bytes below which free disk space is a warning."""
MODEL = """<mujoco><worldbody><light pos="0 0 3"/>
<geom type="box" size=".3 .3 .3" rgba="1 0 0 1"/></worldbody></mujoco>"""


def examine(workspace: Path, progress: Progress, timeout: float = TIMEOUT) -> list[Finding]:
    """Check everything.

    Args:
        workspace: Where artifacts go, existing or not.
        progress: Where to report.
        timeout: Seconds that one probe may take.
    """
    checks: list[Callable[[], list[Finding]]] = [
        check_packages,
        check_conflicts,
        lambda: [_check_device(timeout)],
        lambda: [_check_launch()],
        *(partial(_check_environment, name, timeout) for name in ENVIRONMENTS),
        *(
            partial(_check_plugin, noun, name, timeout)
            for noun, table in PLUGGABLE.items()
            for name in table.plugins()
        ),
        lambda: _check_rendering(timeout),
        lambda: [_check_disk(workspace)],
    ]
    found: list[Finding] = []
    with progress.task("doctor", len(checks), "check") as task:
        for check in checks:
            found += check()
            task.advance()
    return found


def _check_environment(name: str, timeout: float) -> list[Finding]:
    answer = probe("environment", name, timeout=timeout)
    if "missing" in answer:
        return [Finding("simulator", name, MISSING, answer["missing"], answer["hint"])]
    if "error" in answer:
        return [Finding("simulator", name, BROKEN, answer["error"], answer["hint"])]
    detail = f"'{answer['task']}' builds and steps ({answer['seconds']:.1f} s)"
    return [Finding("simulator", name, OK, detail)]


def _check_plugin(noun: str, name: str, timeout: float) -> list[Finding]:
    row = PLUGGABLE[noun].plugins()[name]
    answer = probe("plugin", noun, name, timeout=timeout)
    if "error" in answer:
        return [Finding("plug-in", name, BROKEN, answer["error"], answer["hint"])]
    package = f"{row.plugin} {installed_version(row.plugin)}".strip()
    return [Finding("plug-in", name, OK, f"{noun} of {package} ({row.target})")]


def _check_device(timeout: float) -> Finding:
    answer = probe("device", timeout=timeout)
    if "error" in answer:
        hint = answer["hint"] or "make a fresh environment with constraints.txt"
        return Finding("device", "torch", BROKEN, answer["error"], hint)
    if answer["devices"]:
        return Finding("device", "cuda", OK, "; ".join(answer["devices"]))
    if answer["built_for"]:
        detail = f"torch is built for CUDA {answer['built_for']} but finds no device"
        return Finding("device", "cuda", WARNING, detail, "check the driver with nvidia-smi")
    return Finding("device", "cpu", OK, f"{answer['threads']} threads; no CUDA build of torch")


def _check_launch() -> Finding:
    """Check the variables by which a launcher starts one training in several processes."""
    try:
        launch = launched()
    except LwdctlError as error:
        return Finding("training", "processes", BROKEN, error.message, error.hint)
    if launch is None:
        return Finding("training", "processes", OK, "one, as no launcher has set WORLD_SIZE")
    where = f"they meet at {launch.address}:{launch.port}"
    detail = f"{launch.size}, of which this is rank {launch.rank}; {where}"
    return Finding("training", "processes", OK, detail)


def _check_rendering(timeout: float) -> list[Finding]:
    """Try each headless backend, and the one that this shell selects."""
    found, working = [], []
    for backend in OFF_SCREEN:
        answer = probe("rendering", timeout=timeout, **{VARIABLE: backend})
        if "error" in answer:
            detail = f"cannot draw ({answer['error']})"
            found.append(Finding("rendering", backend, MISSING, detail))
        else:
            working.append(backend)
            found.append(Finding("rendering", backend, OK, "draws a frame"))
    if not working:  # one backend is enough
        hint = f"{HINT}; only pictures and videos need it"
        found = [replace(item, hint=hint) for item in found]
    chosen = os.environ.get(VARIABLE, "")
    if working and chosen and chosen not in working and chosen in OFF_SCREEN:
        detail = f"is set to {chosen}, which does not work here"
        instead = f"export {VARIABLE}={working[0]}"
        found.append(Finding("rendering", VARIABLE, WARNING, detail, instead))
    return found


def _check_disk(workspace: Path) -> Finding:
    folder = workspace.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free at {folder}"
    if free < ENOUGH_DISK:
        hint = "free some space, or choose another disk with --workspace"
        return Finding("disk", "workspace", WARNING, detail, hint)
    return Finding("disk", "workspace", OK, detail)


def probe(name: str, *arguments: str, timeout: float, **variables: str) -> Mapping[str, Any]:
    """Run one of `PROBES` in a process of its own.

    Args:
        name: A key of `PROBES`.
        arguments: Arguments of the probe.
        timeout: Seconds the probe may take.
        variables: Environment variables to set for the probe.

    Returns:
        What the probe returned; `error` and `hint` where it failed, crashed or hung.
    """
    command = [sys.executable, "-m", "lwdctl.evaluation.doctor", name, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **variables},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {timeout:.0f} s", "hint": ""}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        code, last = done.returncode, (done.stderr.strip().splitlines() or [""])[-1]
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"error": f"crashed ({reason}) {last}".strip(), "hint": ""}
    return answer


def probe_device() -> dict[str, Any]:
    """Import what training needs, and list the devices that it would compute on."""
    for name in ("diffusers", "hypnettorch.hnets", "zarr", "h5py", "safetensors.torch"):
        importlib.import_module(name)
    # Its schedulers are imported lazily, and there a torchvision of another build fails.
    getattr(importlib.import_module("diffusers"), "DDIMScheduler")  # noqa: B009
    import torch

    devices = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "devices": [f"{item.name}, {item.total_memory / 1e9:.0f} GB" for item in devices],
        "built_for": torch.version.cuda or "",
    }


def probe_environment(name: str) -> dict[str, Any]:
    """Import, build, reset and step one row of the environment table."""
    begun = time.monotonic()
    task = task_names(name)[0]
    built = make_simulator(EnvSpec(name, (task,)), task)
    try:
        built.reset(EVALUATION_SEED_START)
        built.step(np.array(built.action.low, dtype=np.float32))
    finally:
        built.close()
    return {"task": task, "seconds": time.monotonic() - begun}


def probe_plugin(noun: str, name: str) -> dict[str, Any]:
    """Import what a plug-in adds to one of the tables."""
    PLUGGABLE[noun].load(name)
    return {}


def probe_rendering() -> dict[str, Any]:
    """Draw one frame with the backend that `MUJOCO_GL` names."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = open_renderer(model)
    renderer.update_scene(data)
    image = renderer.render()
    if int(image.max()) == int(image.min()):
        raise RuntimeError("the frame is empty")
    return {}


PROBES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "device": probe_device,
    "environment": probe_environment,
    "plugin": probe_plugin,
    "rendering": probe_rendering,
}


def main(arguments: Sequence[str]) -> None:
    """Run one probe and print what it returns, or why it failed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # simulators print banners on stdout
    try:
        answer = PROBES[arguments[0]](*arguments[1:])
    except MissingExtraError as error:
        answer = {"missing": error.message, "hint": error.hint}
    except LwdctlError as error:
        answer = {"error": error.message, "hint": error.hint}
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        first = next(iter(str(error).splitlines()), "")
        answer = {"error": f"{type(error).__name__}: {first}", "hint": ""}
    answers.write(json.dumps(answer))
    answers.flush()
    # Some OpenGL drivers crash while Python shuts them down, after everything has worked.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
