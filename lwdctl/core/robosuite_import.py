"""Importing robosuite without its warnings and without its change of the OpenGL backend.

A data file carries its scene (MJCF) as text, which MuJoCo trusts: it opens any path that the text
names. `check_scene` allows the simulator's own files only.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

from lwdctl.core.plain_text import plain_text

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


MOST_CHARACTERS = 2**25
"""Characters of a scene; robosuite's have about 100,000."""
# Elements that are read from elsewhere, or run code of a library, whatever their attributes.
_FOREIGN = ("include", "plugin", "extension")


def check_scene(text: str, assets: Path) -> None:
    """Check what a scene makes MuJoCo open.

    Args:
        text: The scene (MJCF), exactly as MuJoCo will read it.
        assets: Folder of the simulator's meshes and textures.

    Raises:
        ValueError: It is no XML or too long, or an attribute names something else than a file in
            that folder.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, more than {MOST_CHARACTERS:,}")
    # Entities could hide names from one of two parsers; no scene declares any.
    if "<!" in text.replace("<!--", ""):
        raise ValueError("it has a document type declaration, which is not read")
    try:
        root = ET.fromstring(text)  # noqa: S314 - without declarations there are no entities
    except ET.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from error
    for element in root.iter():
        if element.tag in _FOREIGN:
            raise ValueError(f"it has <{plain_text(element.tag)}>, which is not read")
        if element.get("strippath", "false") != "false":
            raise ValueError("it has 'strippath', which changes the names of its files")
        for attribute, value in element.attrib.items():
            if attribute.startswith("file") and value:
                _check_file(f"<{plain_text(element.tag)} {attribute}>", value, assets)


def _check_file(where: str, value: str, assets: Path) -> None:
    # Folders that the scene names have no effect on an absolute path.
    path = Path(value)
    if path.is_absolute() and _is_file_in(path, assets):
        return
    raise ValueError(
        f"{where} names '{plain_text(value, 200)}', which is no file of the simulator's own"
    )


def _is_file_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL character
        return False
