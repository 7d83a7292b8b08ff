"""MuJoCo's off-screen renderer, or one line that says why there is none."""

from __future__ import annotations

import importlib
import os
import platform
from typing import Any

from lwdctl.core.errors import SimulatorError

RENDER_SIZE = 480
VARIABLE = "MUJOCO_GL"
OFF_SCREEN = ("egl", "osmesa")
WINDOWED = ("", "enable", "enabled", "on", "true", "1", "glfw", "glx")
HINT = "install libegl1 and libgl1-mesa-dri (MUJOCO_GL=egl) or libosmesa6 (MUJOCO_GL=osmesa)"


def backends_to_try() -> tuple[str, ...]:
    """Return the values of `MUJOCO_GL` that may work, the best first.

    What the environment says is the only one; "" leaves the choice to MuJoCo, which opens a
    window. Without a display there is none to open: EGL, then OSMesa.
    """
    chosen = os.environ.get(VARIABLE, "").lower().strip()
    return OFF_SCREEN if not chosen and _no_display() else (chosen,)


def open_renderer(model: Any) -> Any:
    """Return a square `mujoco.Renderer` of 480 pixels for a compiled model.

    Raises:
        SimulatorError: No OpenGL backend works on this machine.
    """
    import mujoco

    backend = backends_to_try()[0]
    # Asking GLFW for a window without a display leaves half-made objects that complain later.
    if backend in WINDOWED and _no_display():
        raise SimulatorError("cannot render: there is no display", HINT)
    try:
        if backend in OFF_SCREEN:
            # MuJoCo reads MUJOCO_GL when it is imported, which may have been long ago.
            chosen = importlib.import_module(f"mujoco.{backend}")
            mujoco.gl_context.GLContext = chosen.GLContext
        model.vis.global_.offwidth = model.vis.global_.offheight = RENDER_SIZE
        return mujoco.Renderer(model, RENDER_SIZE, RENDER_SIZE)
    except Exception as error:
        # Each OpenGL backend fails with an exception type of its own.
        raise SimulatorError(f"cannot render: no OpenGL context ({error})", HINT) from error


def _no_display() -> bool:
    return platform.system() == "Linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
