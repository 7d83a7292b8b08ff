"""MuJoCo's off-screen renderer, or one line that says why there is none."""

from __future__ import annotations

import os
import platform
from typing import Any

import mujoco

from lwdctl.core.errors import SimulatorError

RENDER_SIZE = 480


def open_renderer(model: Any) -> Any:
    """Return a square `mujoco.Renderer` of 480 pixels for a compiled model.

    Raises:
        SimulatorError: No OpenGL backend works on this machine.
    """
    hint = "set MUJOCO_GL=egl (or osmesa) before starting"
    # Asking GLFW for a window without a display leaves half-made objects that complain later.
    windowed = os.environ.get("MUJOCO_GL", "glfw").lower() in {"", "glfw", "glx"}
    displays = {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if platform.system() == "Linux" and windowed and not displays:
        raise SimulatorError("cannot render: there is no display", hint)
    try:
        model.vis.global_.offwidth = model.vis.global_.offheight = RENDER_SIZE
        return mujoco.Renderer(model, RENDER_SIZE, RENDER_SIZE)
    except Exception as error:
        # Each OpenGL backend fails with an exception type of its own.
        raise SimulatorError(f"cannot render: no OpenGL context ({error})", hint) from error
