"""`lwdctl download`: public demonstrations, ready to be ingested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import DEBUG, JSON, QUIET
from lwdctl.cli.list import size_text
from lwdctl.cli.output import print_json, print_table, print_text, reserved_stdout
from lwdctl.core.errors import ConfigError

if TYPE_CHECKING:
    from lwdctl.data.download import Downloaded


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to fetch: robomimic lift mh, pusht, d4rl halfcheetah-medium-v2, "
            "minari mujoco/halfcheetah/expert-v0.",
            metavar="WORDS...",
        ),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show everything that can be fetched.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder to put it in.", metavar="DIR")] = Path(
        "data"
    ),
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Fetch public demonstrations and check them; a broken download goes on where it stopped.

    What is there already is not fetched again.
    """
    del debug_mode
    if show_list:
        _show(as_json=as_json)
        return
    if not words:
        raise ConfigError("nothing to download is named", "see: lwdctl download --list")
    from lwdctl.data.download import download

    progress = make_progress(quiet=be_quiet)
    with reserved_stdout():
        done = download(words, output, progress)
    _print(done, as_json=as_json)


def _print(done: Downloaded, *, as_json: bool) -> None:
    if as_json:
        summary = {
            "words": done.source.words, "fetched": done.fetched, "sha256": done.sha256,
            "checked": done.checked, "next": done.next_command,
        }  # fmt: skip
        print_json(None, done.path, summary)
        return
    print_text(f"{'fetched' if done.fetched else 'already here'}: {done.path}")
    if done.sha256:
        compared = f"as {done.checked} says" if done.checked else "no published checksum"
        print_text(f"  SHA-256 {done.sha256} ({compared})")
    print_text(f"next: {done.next_command}")


def _show(*, as_json: bool) -> None:
    from lwdctl.data.download_table import SOURCES

    if as_json:
        rows = [
            {
                "words": item.words, "format": item.format, "bytes": item.size or None,
                "sha256": item.sha256 or None, "checksum": item.checksum,
                "url": item.url or None, "place": item.place,
            }
            for item in SOURCES
        ]  # fmt: skip
        print_json(None, None, {"sources": rows})
        return
    print_table(
        ["lwdctl download ...", "size", "checksum"],
        [
            [" ".join(item.words), size_text(item.size) if item.size else "-", item.checksum]
            for item in SOURCES
        ],
    )
    print_text("any other data set of minari's server: lwdctl download minari NAME")
