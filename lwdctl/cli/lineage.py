"""`lwdctl lineage`: what an artifact was made from, back to its sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE
from lwdctl.cli.output import print_json, print_text
from lwdctl.cli.show import REFERENCE_HELP


def command(
    reference: Annotated[str, typer.Argument(help=REFERENCE_HELP)],
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Show what an artifact was made from; every link is checked by its digest."""
    del be_quiet, debug_mode
    workspace = Workspace.locate(workspace_path or None)
    artifact = workspace.resolve("", reference)
    tree = _tree(workspace, artifact)
    if as_json:
        print_json(artifact.reference, artifact.path, {"lineage": tree})
        return
    for depth, node in _walk(tree, 0):
        print_text(f"{'  ' * depth}{node['artifact']}  {node['path']}")


def _tree(workspace: Workspace, artifact: Artifact) -> dict[str, Any]:
    return {
        "artifact": artifact.reference,
        "path": str(artifact.path),
        "digest": artifact.digest,
        "inputs": [_tree(workspace, item) for item in workspace.inputs_of(artifact).values()],
    }


def _walk(node: dict[str, Any], depth: int) -> Iterator[tuple[int, dict[str, Any]]]:
    yield depth, node
    for item in node["inputs"]:
        yield from _walk(item, depth + 1)
