"""Programs that `lwdctl doctor` runs in processes of their own, so that they may crash.

`python -m lwdctl.evaluation.probe PROBE [WORD...]` prints one JSON object.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lwdctl.core.errors import LwdctlError, MissingExtraError
from lwdctl.core.records import EnvSpec
from lwdctl.core.registry import Registry, Row
from lwdctl.envs.mujoco_rendering import open_renderer
from lwdctl.envs.table import make_simulator, task_names

SEED = 100_000
MODEL = """<mujoco><worldbody><light pos="0 0 3"/>
<geom type="box" size=".3 .3 .3" rgba="1 0 0 1"/></worldbody></mujoco>"""


def learning() -> dict[str, Any]:
    """Import what trains, and say on what it would compute."""
    for name in ("diffusers", "hypnettorch.hnets", "zarr", "h5py", "safetensors.torch"):
        importlib.import_module(name)
    # Its schedulers are imported lazily, and that is where a foreign torchvision strikes.
    getattr(importlib.import_module("diffusers"), "DDIMScheduler")  # noqa: B009
    import torch

    devices = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "devices": [f"{item.name}, {item.total_memory / 1e9:.0f} GB" for item in devices],
        "built_for": torch.version.cuda or "",
    }


def simulator(name: str, target: str, extra: str) -> dict[str, Any]:
    """Import, build, reset and step one row of the environment table."""
    begun = time.monotonic()
    table = Registry("environment", {name: Row(target, "", extra)})
    task = task_names(name, table)[0]
    built = make_simulator(EnvSpec(name, (task,)), task, table)
    try:
        built.reset(SEED)
        built.step(np.array(built.action.low, dtype=np.float32))
    finally:
        built.close()
    return {"task": task, "seconds": time.monotonic() - begun}


def rendering() -> dict[str, Any]:
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
    "learning": learning,
    "simulator": simulator,
    "rendering": rendering,
}


def main(words: list[str]) -> None:
    """Run one probe and print its answer, or why there is none."""
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # simulators greet on stdout
    try:
        answer = PROBES[words[0]](*words[1:])
    except MissingExtraError as error:
        answer = {"missing": error.message, "hint": error.hint}
    except LwdctlError as error:
        answer = {"error": error.message, "hint": error.hint}
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        first = next(iter(str(error).splitlines()), "")
        answer = {"error": f"{type(error).__name__}: {first}", "hint": ""}
    answer_to.write(json.dumps(answer))
    answer_to.flush()
    # Some OpenGL drivers crash while Python takes them down, after all has worked.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
