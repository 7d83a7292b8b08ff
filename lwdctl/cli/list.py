"""`lwdctl list`: what is in the workspace."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lwdctl.artifacts.references import MAKERS
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE
from lwdctl.cli.output import print_json, print_table, print_text
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean


def command(
    kind: Annotated[str, typer.Argument(help="Only this kind (vae, latents, ...).")] = "",
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """List finished artifacts, oldest first, then damaged and unfinished ones."""
    del be_quiet, debug_mode
    workspace = Workspace.locate(workspace_path or None)
    if kind and kind not in MAKERS and not (workspace.root / kind).is_dir():
        raise ConfigError(f"there is no kind '{kind}'", did_you_mean(kind, MAKERS))
    finished = [_finished(item) for item in workspace.artifacts(kind)]
    damaged = [
        {"artifact": item.reference, "path": str(item.path), "reason": item.reason}
        for item in workspace.damaged(kind)
    ]
    drafts = [_draft(item) for item in workspace.unfinished(kind)]
    if as_json:
        summary = {"artifacts": finished, "damaged": damaged, "unfinished": drafts}
        print_json(None, workspace.root, summary)
        return
    _print(workspace, finished, damaged, drafts)


def _finished(artifact: Any) -> dict[str, Any]:
    return {
        "artifact": artifact.reference,
        "path": str(artifact.path),
        "finished": artifact.manifest.provenance["finished"],
        "bytes": sum(file.size for file in artifact.manifest.files),
        "inputs": [item.reference for item in artifact.manifest.inputs],
    }


def _draft(item: Any) -> dict[str, Any]:
    record = item.record
    state = "running" if item.active else "resumable" if record.resumable else "abandoned"
    return {
        "artifact": f"{record.type}/{record.name}",
        "path": str(record.path),
        "started": record.started,
        "state": state,
    }


def _print(
    workspace: Workspace,
    finished: list[dict[str, Any]],
    damaged: list[dict[str, Any]],
    drafts: list[dict[str, Any]],
) -> None:
    if not finished and not damaged and not drafts:
        print_text(f"nothing in {workspace.root} yet")
        return
    rows = [
        [item["artifact"], item["finished"][:19], size_text(item["bytes"]), *_joined(item)]
        for item in finished
    ]
    rows += [[item["artifact"], "damaged", "-", item["reason"]] for item in damaged]
    rows += [[item["artifact"], item["state"], "-", item["path"]] for item in drafts]
    print_table(["artifact", "finished (UTC)", "size", "made from"], rows)


def _joined(item: dict[str, Any]) -> list[str]:
    return [", ".join(item["inputs"]) or "-"]


def size_text(count: int) -> str:
    """Write a number of bytes for people."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
