"""The commands about a workspace: `lwdctl list`, `show`, `lineage`, `verify` and `gc`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.leftovers import Leftover
from lwdctl.artifacts.references import MAKERS
from lwdctl.artifacts.run_in_progress import RunRecord
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.generate import Shared, bare_option
from lwdctl.cli.output import print_json, print_summary, print_table, print_text
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.plain_text import listed, size_text
from lwdctl.core.suggest import did_you_mean

_DEEP = (
    "For artifacts of unknown origin: also decode every chunk, read every JSON file and compare"
    " model files with their descriptions. Nothing in them is executed or followed."
)
_NAME_WORKSPACE = "name its directory with --workspace DIR or $LWDCTL_WORKSPACE"
_REFERENCE_HELP = "NAME, NAME:v2, NAME:latest, TYPE/NAME:v2, or the path of an artifact directory."


def list_command(
    shared: Shared,
    artifact_type: Annotated[
        str, typer.Argument(help="Artifact type to list (vae, latents, ...).", metavar="TYPE")
    ] = "",
) -> None:
    """List finished artifacts, oldest first, then damaged and unfinished ones, then leftovers."""
    workspace = shared.workspace
    known = artifact_type in ("", *MAKERS) or (workspace.root / artifact_type).is_dir()
    if not known:
        raise ConfigError(
            f"no artifact type is called '{artifact_type}'", did_you_mean(artifact_type, MAKERS)
        )
    usable, damaged = workspace.inventory(artifact_type)
    summary = {
        "artifacts": [_finished(item) for item in usable],
        "damaged": [
            {"artifact": item.reference, "path": str(item.path), "reason": item.reason}
            for item in damaged
        ],
        "unfinished": [_unfinished(item) for item in workspace.unfinished(artifact_type)],
        "leftovers": [] if artifact_type else [_leftover(item) for item in workspace.leftovers()],
    }
    if shared.as_json:
        print_json(None, workspace.root, summary)
        return
    rows = []
    for item in summary["artifacts"]:
        inputs = ", ".join(item["inputs"]) or "-"
        size, method = size_text(item["bytes"]), item["method"] or "-"
        rows.append([item["artifact"], method, item["finished"][:19], size, inputs])
    rows += [[item["artifact"], "-", "damaged", "-", item["reason"]] for item in summary["damaged"]]
    rows += [
        [item["artifact"], item["method"] or "-", item["state"], "-", item["path"]]
        for item in summary["unfinished"]
    ]
    listed = {item["path"] for item in summary["unfinished"]}
    rows += [
        ["-", "-", "left behind", size_text(item["bytes"]), item["path"]]
        for item in summary["leftovers"]
        if item["path"] not in listed
    ]
    if rows:
        print_table(["artifact", "method", "finished (UTC)", "size", "derived from"], rows)
    elif workspace.root.is_dir():
        nothing = f"there is no {artifact_type} in {workspace.root}"
        print_text(nothing if artifact_type else f"{workspace.root} is empty")
    else:
        _say_missing(shared)
    if summary["leftovers"]:
        shared.progress.message("see what `lwdctl gc` would remove")


def show_command(
    shared: Shared,
    reference: Annotated[str, typer.Argument(help=_REFERENCE_HELP)],
) -> None:
    """Show an artifact: its numbers, settings, inputs, files and provenance."""
    artifact = shared.workspace.resolve("", reference)
    manifest, origin = artifact.manifest, artifact.origin
    if shared.as_json:
        inputs = [{"type": item.type, "reference": item.reference} for item in manifest.inputs]
        extra = {
            "config": manifest.config, "inputs": inputs, "provenance": manifest.provenance,
            "pulled": origin and asdict(origin),
        }  # fmt: skip
        print_json(artifact.reference, artifact.path, {**manifest.summary, "manifest": extra})
        return
    print_text(f"{artifact.reference}  {artifact.path}")
    if origin:
        print_text(f"pulled from {origin.address}, {origin.pulled[:16]}")
        print_text(f"  files that were left out: {listed(origin.left_out) or 'none'}")
    for title, values in (
        ("summary", manifest.summary),
        ("configuration", manifest.config),
        ("provenance", manifest.provenance),
    ):
        print_text(title)
        print_summary(values)
    print_text("inputs")
    for item in manifest.inputs:
        print_text(f"  {item.reference}")
    print_text(f"files ({len(manifest.files)})")
    largest = sorted(manifest.files, key=lambda file: -file.size)[:10]
    rows = [[file.path, size_text(file.size), file.sha256] for file in largest]
    print_table(["path", "size", "SHA-256"], rows)


def lineage_command(
    shared: Shared,
    reference: Annotated[str, typer.Argument(help=_REFERENCE_HELP)],
) -> None:
    """Show what an artifact was derived from; every link is checked by its digest."""
    workspace = shared.workspace
    artifact = workspace.resolve("", reference)
    tree = _tree(workspace, artifact)
    if shared.as_json:
        print_json(artifact.reference, artifact.path, {"lineage": tree})
        return
    for depth, node in _walk(tree, 0):
        print_text(f"{'  ' * depth}{node['artifact']}  {node['path']}")


def verify_command(
    shared: Shared,
    references: Annotated[
        list[str] | None,
        typer.Argument(help=f"{_REFERENCE_HELP} Default: every artifact.", metavar="REFERENCE..."),
    ] = None,
    deep: Annotated[bool, bare_option(_DEEP, "--deep")] = False,
) -> None:
    """Re-read artifacts in full and compare every digest; exit with 1 if one is damaged."""
    workspace = shared.workspace
    if not references and not workspace.root.is_dir():
        raise ArtifactError(
            f"there is no workspace at {workspace.root}",
            _NAME_WORKSPACE,
        )
    chosen, problems = _chosen(workspace, references or ())
    verified: dict[str, int] = {}
    verify: Callable[[Artifact], int] = Artifact.verify
    if deep:
        # Imported here: it loads torch.
        from lwdctl.stages.deep_check import check_deeply

        verify = check_deeply
    with shared.progress.task("verifying", len(chosen), "artifact") as task:
        for artifact in chosen:
            try:
                verified[artifact.reference] = verify(artifact)
            except ArtifactError as error:
                problems.append(error.message)
            task.advance()
    if shared.as_json:
        entries = [{"artifact": name, "bytes": count} for name, count in verified.items()]
        print_json(None, workspace.root, {"verified": entries, "problems": problems})
    else:
        for name, count in verified.items():
            print_text(f"{name}  ok, {size_text(count)} read")
        if not verified and not problems:
            print_text(f"{workspace.root} is empty")
    if problems:
        raise ArtifactError(
            "; ".join(problems), "make the damaged artifacts again, or restore copies"
        )


def _chosen(workspace: Workspace, references: Sequence[str]) -> tuple[list[Artifact], list[str]]:
    """Return the artifacts that are meant, and why others cannot be read."""
    if not references:
        return workspace.artifacts(), [item.reason for item in workspace.damaged()]
    chosen, problems = [], []
    for reference in references:
        try:
            chosen.append(workspace.resolve("", reference))
        except ArtifactError as error:
            if len(references) == 1:
                raise
            problems.append(error.message)
    return chosen, problems


def gc_command(
    shared: Shared,
    delete: Annotated[bool, bare_option("Remove what is listed.", "--delete")] = False,
    resumable: Annotated[
        bool,
        bare_option(
            "Include runs that --resume could continue. Without this option they are left alone"
            " unless the same run has finished since.",
            "--resumable",
        ),
    ] = False,
) -> None:
    """List what interrupted commands left behind and nothing needs; remove it with --delete.

    Finished artifacts are never removed, and neither are runs that a process is working on.
    """
    exists = shared.workspace.root.is_dir()
    found = everything = shared.workspace.leftovers(resumable=True)
    if not resumable:
        found = shared.workspace.leftovers()
    paths = {item.path for item in found}
    kept = [item for item in everything if item.path not in paths]
    removed = {item.path for item in found if delete and item.remove()}
    entries = [{**_leftover(item), "removed": item.path in removed} for item in found]
    freed = sum(item.bytes for item in found if item.path in removed or not delete)
    if shared.as_json:
        summary = {"leftovers": entries, "bytes": freed, "kept": [_leftover(item) for item in kept]}
        print_json(None, shared.workspace.root, summary)
        return
    if not exists:
        _say_missing(shared)
        return
    if found:
        print_table(
            ["path", "size", "why"],
            [[item["path"], size_text(item["bytes"]), item["reason"]] for item in entries],
        )
        again = "lwdctl gc --resumable --delete" if resumable else "lwdctl gc --delete"
        print_text(
            f"removed {len(removed)} of {len(found)}, {size_text(freed)}"
            if delete
            else f"{size_text(freed)} can be freed with: {again}"
        )
    else:
        print_text(f"nothing is left behind in {shared.workspace.root}")
    if kept:
        size = size_text(sum(item.bytes for item in kept))
        print_text(
            f"kept, because they can be resumed: {len(kept)}, {size}; `lwdctl gc --resumable` lists"
            " them, and with --delete removes them"
        )


def _say_missing(shared: Shared) -> None:
    print_text(f"{shared.workspace.root} does not exist: {_NAME_WORKSPACE}")


def _leftover(item: Leftover) -> dict[str, Any]:
    return {"path": str(item.path), "reason": item.reason, "bytes": item.bytes}


def _finished(artifact: Artifact) -> dict[str, Any]:
    return {
        "artifact": artifact.reference,
        "path": str(artifact.path),
        "method": artifact.method,
        "finished": artifact.manifest.provenance["finished"],
        "bytes": sum(file.size for file in artifact.manifest.files),
        "inputs": [item.reference for item in artifact.manifest.inputs],
    }


def _unfinished(run: RunRecord) -> dict[str, Any]:
    state = "running" if run.active else "resumable" if run.resumable else "abandoned"
    return {
        "artifact": f"{run.type}/{run.name}",
        "path": str(run.path),
        "method": str(run.config.get("method", "")) if run.type == "baseline" else "",
        "started": run.started,
        "state": state,
    }


def _tree(workspace: Workspace, artifact: Artifact) -> dict[str, Any]:
    return {
        "artifact": artifact.reference,
        "path": str(artifact.path),
        "digest": artifact.digest,
        "inputs": [_tree(workspace, item) for item in workspace.inputs_of(artifact)],
    }


def _walk(node: dict[str, Any], depth: int) -> Iterator[tuple[int, dict[str, Any]]]:
    yield depth, node
    for item in node["inputs"]:
        yield from _walk(item, depth + 1)
