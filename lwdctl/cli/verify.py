"""`lwdctl verify`: read artifacts in full and compare every byte with its digest."""

from __future__ import annotations

from typing import Annotated

import typer

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE
from lwdctl.cli.list import size_text
from lwdctl.cli.output import print_json, print_text
from lwdctl.cli.show import REFERENCE_HELP
from lwdctl.core.errors import ArtifactError


def command(
    references: Annotated[
        list[str] | None,
        typer.Argument(help=f"{REFERENCE_HELP} Default: every artifact.", metavar="REFERENCE..."),
    ] = None,
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Re-read artifacts in full; a damaged one ends with exit code 1."""
    del debug_mode
    workspace = Workspace.locate(workspace_path or None)
    if references:
        chosen = [workspace.resolve("", item) for item in references]
    else:
        chosen = workspace.artifacts()
    problems = [] if references else [item.reason for item in workspace.damaged()]
    verified: list[dict[str, object]] = []
    with make_progress(quiet=be_quiet).task("verifying", len(chosen), "artifact") as task:
        for artifact in chosen:
            try:
                count = artifact.verify()
                verified.append({"artifact": artifact.reference, "bytes": count})
            except ArtifactError as error:
                problems.append(error.message)
            task.advance()
    if as_json:
        print_json(None, workspace.root, {"verified": verified, "problems": problems})
    else:
        for entry in verified:
            print_text(f"{entry['artifact']}  ok, {size_text(int(str(entry['bytes'])))} read")
    if problems:
        raise ArtifactError("; ".join(problems), "make what is damaged again, or restore a copy")
