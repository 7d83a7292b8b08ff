"""`lwdctl download`: public demonstrations, ready for `lwdctl ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lwdctl.artifacts.files import user_path
from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import DEBUG, JSON, QUIET
from lwdctl.cli.output import print_json, print_table, print_text, reserved_stdout
from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import size_text
from lwdctl.data.download import SOURCES, Downloaded, download


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Dataset to download: robomimic lift mh, pusht, d4rl halfcheetah-medium-v2, "
            "minari mujoco/halfcheetah/expert-v0, lerobot lerobot/pusht.",
            metavar="DATASET",
        ),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="List every dataset that can be downloaded.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder to put it in.", metavar="DIR")] = Path(
        "data"
    ),
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Download public demonstrations and verify them; resume a broken download.

    Datasets that are there already are not downloaded again.
    """
    del debug_mode
    if show_list:
        _show(as_json=as_json)
        return
    if not arguments:
        raise ConfigError("no dataset to download is named", "lwdctl download --list")
    progress = make_progress(quiet=be_quiet)
    with reserved_stdout():
        done = download(arguments, user_path(output), progress)
    _print(done, as_json=as_json)


def _print(done: Downloaded, *, as_json: bool) -> None:
    if as_json:
        summary = {
            "dataset": done.source.arguments, "fetched": done.fetched, "sha256": done.sha256,
            "verified_by": done.verified_by, "next": done.next_command,
        }  # fmt: skip
        print_json(None, done.path, summary)
        return
    print_text(f"{'downloaded' if done.fetched else 'already here'}: {done.path}")
    if done.sha256:
        source = done.verified_by
        note = f"verified, checksum: {source}" if source else "no published checksum"
        print_text(f"  SHA-256 {done.sha256} ({note})")
    print_text(f"next: {done.next_command}")


def _show(*, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "dataset": item.arguments, "format": item.format, "bytes": item.size or None,
                "sha256": item.sha256 or None, "checksum": item.checksum,
                "url": item.url or None, "file": item.file,
            }
            for item in SOURCES
        ]  # fmt: skip
        print_json(None, None, {"sources": rows})
        return
    print_table(
        ["lwdctl download ...", "size", "checksum"],
        [
            [" ".join(item.arguments), size_text(item.size) if item.size else "-", item.checksum]
            for item in SOURCES
        ],
    )
    print_text("any other dataset of minari's server: lwdctl download minari NAME")
    print_text("any LeRobot dataset of the Hugging Face Hub: lwdctl download lerobot USER/NAME")
