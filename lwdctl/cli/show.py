"""`lwdctl show`: one artifact in full."""

from __future__ import annotations

from typing import Annotated

import typer

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE
from lwdctl.cli.list import size_text
from lwdctl.cli.output import format_value, print_json, print_summary, print_table, print_text

REFERENCE_HELP = "NAME, NAME:v2, NAME:latest, KIND/NAME:v2, or the path of an artifact directory."


def command(
    reference: Annotated[str, typer.Argument(help=REFERENCE_HELP)],
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Show an artifact: its numbers, settings, inputs, files and where it was made."""
    del be_quiet, debug_mode
    artifact = Workspace.locate(workspace_path or None).resolve("", reference)
    manifest = artifact.manifest
    if as_json:
        inputs = [{"type": item.type, "reference": item.reference} for item in manifest.inputs]
        extra = {"config": manifest.config, "inputs": inputs, "provenance": manifest.provenance}
        print_json(artifact.reference, artifact.path, {**manifest.summary, "manifest": extra})
        return
    print_text(f"{artifact.reference}  {artifact.path}")
    print_text("summary")
    print_summary(manifest.summary)
    for title, values in (("configuration", manifest.config), ("made", manifest.provenance)):
        print_text(title)
        print_summary(values)
    print_text("inputs")
    for item in manifest.inputs:
        print_text(f"  {item.reference}")
    print_text(f"files ({len(manifest.files)})")
    largest = sorted(manifest.files, key=lambda file: -file.size)[:10]
    rows = [[file.path, format_value(size_text(file.size)), file.sha256] for file in largest]
    print_table(["path", "size", "SHA-256"], rows)
