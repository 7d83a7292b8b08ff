"""The minari package, reached where it is needed only, with its data sets in a given folder."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lwdctl.core.errors import ConfigError, MissingExtraError

ROOT_VARIABLE = "MINARI_DATASETS_PATH"


def minari_module(name: str = "minari") -> Any:
    """Import the package or one of its modules.

    Raises:
        MissingExtraError: minari is not installed.
    """
    try:
        # Its extra for the Hugging Face server asks for nothing that is not installed anyway.
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            "Minari data sets need the package 'minari', which is not installed",
            "pip install 'lwdctl[minari]'",
        ) from error


def check_name(identifier: str) -> None:
    """Check the name of a data set.

    Raises:
        ConfigError: minari would not take it.
        MissingExtraError: minari is not installed.
    """
    try:
        minari_module("minari.dataset.minari_dataset").parse_dataset_id(identifier)
    except (ValueError, TypeError):  # the latter where the version is missing
        raise ConfigError(
            f"'{identifier}' is no name of a Minari data set",
            "it reads NAME/task/level-v0: a namespace if wanted, a name, a version",
        ) from None


@contextmanager
def minari_root(folder: Path) -> Iterator[None]:
    """Make `folder` the place where minari keeps its data sets; its advice is not shown."""
    before = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = str(folder.absolute())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        if before is None:
            del os.environ[ROOT_VARIABLE]
        else:
            os.environ[ROOT_VARIABLE] = before
