"""`lwdctl inspect`: what is in files of demonstrations, before anything is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from lwdctl.artifacts.files import user_path, write_durably
from lwdctl.cli.generate import Options, Shared, bare_option
from lwdctl.cli.output import print_json, print_lines, print_text, reserved_stdout
from lwdctl.cli.report import check_writable
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError

if TYPE_CHECKING:
    from lwdctl.data.inspection import Inspections

# What decides which of the episodes that were read are stored is left to `ingest`.
_CONFIG = Annotated[
    IngestConfig,
    Options(
        "inspect",
        (
            "format", "paths", "filter_key", "label", "label_from", "task_from", "env",
            "observation_keys", "drop", "action_key", "episode_ends", "terminals_key",
            "lengths_key", "actions", "action_limits", "clip_actions", "terminals", "max_steps",
            "max_bytes",
        ),
        {"paths": "Files or directories to look into."},
    ),
]  # fmt: skip
_HTML = Annotated[
    str,
    bare_option(
        "Page to write as well, with plots: one HTML file that needs no other file.", "--html",
        metavar="FILE",
    ),
]  # fmt: skip


def command(shared: Shared, config: _CONFIG, html: _HTML = "") -> None:
    """Say what is in files before anything is made of them.

    The data format is recognized by content. Shown are episodes, keys, action arrays, ranges,
    lengths and returns, what `ingest` would take and leave out, everything that is doubtful,
    worst first, and the command that ingests the file. Where `ingest` would refuse a file, its
    contents are shown all the same, and the exit code is 1.

    \b
    --json prints one object; its `summary` has
      files         one object per path: path, bytes, container, format,
                    recognized_by, not_recognized, files, arrays,
                    arrays_left_out, recorded, episodes, steps, splits,
                    stored, observations, action, environment, statistics,
                    findings, error, hint, command, can_be_ingested
      agree         whether one store can hold them all; null for one path
      disagreement  why not
      command       the command that ingests all of them, or ""
    """  # noqa: D301
    from lwdctl.data.inspection import inspect_files
    from lwdctl.data.reader import paths_of
    from lwdctl.envs.table import with_outside_environment

    page = user_path(html) if html else None
    if page is not None:
        check_writable(page, "--html FILE")
    with reserved_stdout():
        found = inspect_files(
            paths_of(config.paths), config, shared.progress, with_outside_environment
        )
    if page is not None:
        from lwdctl.analysis.report.inspection import render_inspections

        write_durably(page, render_inspections(found).encode())
    if shared.as_json:
        print_json(None, page, found.to_mapping())
    else:
        print_lines(str(found))
        if page is not None:
            print_text()
            print_text(f"page: {page}")
    _check_ingestible(found)


def _check_ingestible(found: Inspections) -> None:
    """Check that `ingest` would take every file.

    Raises:
        DataError: It would not; the message says why, with the reader's or check's own hint.
    """
    refused = [item for item in found.files if not item.can_be_ingested]
    if not refused:
        return
    first = refused[0].errors[0]
    count = f"{len(refused)} of {len(found.files)} files cannot be ingested; the first: "
    place = "" if refused[0].path in first.message else f"{refused[0].path}: "
    message = f"{count if len(found.files) > 1 else ''}{place}{first.message}"
    raise DataError(message, first.hint)
