"""Looking into files before they are ingested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwdctl.configs import IngestConfig
from lwdctl.core.config import from_mapping
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.data.inspection import Inspections, inspect_files
from lwdctl.data.reader import paths_of, source_settings
from lwdctl.envs.table import with_outside_environment


def inspect(*paths: str | Path, progress: Progress | None = None, **settings: Any) -> Inspections:
    """Say what is in files before anything is made of them, as `lwdctl inspect` does.

    Args:
        *paths: Files or directories. The first may be the name of a data format instead
            (`"robomimic"`); without one, the format is recognized by their content.
        progress: Where to report; None draws bars with tqdm.
        **settings: Fields of `lwdctl.IngestConfig` that change what is read.

    Returns:
        What was found: `print` shows the text of the command, `files` holds one
        `lwdctl.Inspection` per file, `to_mapping` gives JSON-ready values. Files that cannot be
        ingested are no error: their `error` and `hint` say why.

    Raises:
        DataError: No path is given.
        ConfigError: An unknown setting, or a value that it does not accept.
    """
    config = from_mapping(IngestConfig, source_settings(paths, settings))
    files, progress = paths_of(config.paths), progress or TqdmProgress()
    return inspect_files(files, config, progress, with_outside_environment)
