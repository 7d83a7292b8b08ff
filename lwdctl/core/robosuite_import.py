"""Importing robosuite without its warnings and without its change of the OpenGL backend."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from types import ModuleType

BACKEND = "MUJOCO_GL"
LOGGER = "robosuite_logs"

LOW_DIMENSIONAL = {
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "camera_depths": False,
    "use_object_obs": True,
    "ignore_done": True,
}
"""Arguments of `robosuite.make`: no images, no window, and no episode limit of its own."""


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def import_robosuite() -> ModuleType:
    """Return robosuite.

    robosuite warns about missing private macros and robots at every import, and sets the OpenGL
    backend for the whole process.

    Raises:
        ImportError: It is not installed.
    """
    logging.getLogger(LOGGER).addFilter(_is_error)
    backend = os.environ.get(BACKEND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module("robosuite")
    if backend is None:
        os.environ.pop(BACKEND, None)
    return module
