"""`lwdctl push` and `lwdctl pull`: artifacts on the Hugging Face Hub."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lwdctl.api.sharing import pull, push
from lwdctl.cli.generate import Shared, bare_option
from lwdctl.cli.output import print_json, print_table, print_text, reserved_stdout
from lwdctl.core.plain_text import listed, size_text

if TYPE_CHECKING:
    from lwdctl.sharing.push import Pushed

_REFERENCE = Annotated[
    str,
    typer.Argument(
        help="Artifact to push: NAME, NAME:v2, NAME:latest, TYPE/NAME:v2, or its directory.",
        metavar="ARTIFACT",
    ),
]
_REPOSITORY = Annotated[
    str, typer.Argument(help="Repository on the Hub; created if missing.", metavar="USER/NAME")
]
_SOURCE = Annotated[
    str,
    typer.Argument(
        help="Repository on the Hub; REVISION is a branch, a tag or a commit.",
        metavar="USER/NAME[@REVISION]",
    ),
]
_LICENSE = Annotated[
    str,
    bare_option(
        "License of the artifact, as the Hub names it (apache-2.0, mit, cc-by-4.0, ...); required."
        "  [default: asked for on a terminal]",
        "--license",
        metavar="NAME",
    ),
]
_PUBLIC = Annotated[
    bool,
    bare_option("Let everybody see the repository.  [default: private]", "--public"),
]
_PUSH_DATA = Annotated[
    bool, bare_option("Also push the demonstrations and latents.", "--with-data")
]
_PULL_DATA = Annotated[
    bool,
    bare_option("Also pull the demonstrations and latents, if they were pushed.", "--with-data"),
]
_DRY_RUN = Annotated[
    bool,
    bare_option(
        "Only list what would be pushed, with sizes; the Hub is not contacted.", "--dry-run"
    ),
]
_NAME = Annotated[
    str,
    bare_option(
        "Name to give the pulled artifact where another one in the workspace has its own name.",
        "--name",
        metavar="NAME",
    ),
]


def push_command(
    shared: Shared,
    artifact: _REFERENCE,
    repository: _REPOSITORY,
    license_name: _LICENSE = "",
    public: _PUBLIC = False,
    with_data: _PUSH_DATA = False,
    dry_run: _DRY_RUN = False,
) -> None:
    """Push an artifact with its lineage and a model card to the Hugging Face Hub.

    This pushes the manifests, JSON and safetensors files of the artifact and of what it was derived
    from: a diffusion model takes its VAE with it. Logs, videos and pictures are left out, and so
    are demonstrations and latents without --with-data. Manifests contain commands, paths and
    machine names. To continue an interrupted push, run the command again. Log in with
    `hf auth login` first.
    """
    if not (license_name or dry_run or shared.as_json) and _is_terminal():
        license_name = typer.prompt("license (apache-2.0, mit, cc-by-4.0, ...)", err=True).strip()
    with reserved_stdout():
        pushed = push(
            artifact, repository, license=license_name, public=public, with_data=with_data,
            dry_run=dry_run, workspace=shared.workspace, progress=shared.progress,
        )  # fmt: skip
    if shared.as_json:
        summary = {**_summary(pushed), "dry_run": dry_run}
        print_json(pushed.plan.main.reference, pushed.plan.main.path, summary)
        return
    _print_plan(pushed)
    if dry_run:
        print_text(f"would be pushed to {pushed.repository}: nothing was sent")
        return
    print_text(f"pushed to {pushed.url}  {pushed.revision}")
    print_text(f"pull it with: lwdctl pull {pushed.repository}@{pushed.revision}")


def pull_command(
    shared: Shared,
    source: _SOURCE,
    artifact_name: _NAME = "",
    with_data: _PULL_DATA = False,
) -> None:
    """Pull an artifact with its lineage from the Hugging Face Hub into the workspace.

    Every file is compared with its SHA-256, and nothing in it is executed. Artifacts that are in
    the workspace already are not pulled again. To continue an interrupted pull, run the command
    again.
    """
    with reserved_stdout():
        pulled = pull(
            source, name=artifact_name, with_data=with_data, workspace=shared.workspace,
            progress=shared.progress,
        )  # fmt: skip
    artifact = pulled.artifact
    if shared.as_json:
        summary = {
            "repository": pulled.repository, "revision": pulled.revision, "bytes": pulled.bytes,
            "artifacts": pulled.artifacts, "data_left_out": pulled.has_more,
        }  # fmt: skip
        print_json(artifact.reference, artifact.path, summary)
        return
    for reference, state in pulled.artifacts.items():
        print_text(f"{reference}  {state}")
    print_text(f"{artifact.reference}  {artifact.path}")
    print_text(f"  from {pulled.repository}@{pulled.revision}")
    if pulled.has_more:
        print_text("  without the demonstrations and latents: add --with-data for them")


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _summary(pushed: Pushed) -> dict[str, Any]:
    plan = pushed.plan
    return {
        "repository": pushed.repository,
        "url": pushed.url,
        "revision": pushed.revision or None,
        "bytes": plan.shared.size,
        "files": [
            {"path": f"{item.folder}/{file.path}", "bytes": file.size, "sha256": file.sha256}
            for item in plan.shared.artifacts
            for file in item.files
        ],
        "left_out": [
            {"path": f"{item.folder}/{file.path}", "bytes": file.size}
            for item in plan.shared.artifacts
            for file in item.left_out
        ],
        "gone": list(plan.gone),
    }


def _print_plan(pushed: Pushed) -> None:
    plan = pushed.plan
    rows = [
        [f"{item.folder}/{file.path}", size_text(file.size)]
        for item in plan.shared.artifacts
        for file in item.files
        if file.size >= _LARGE or len(item.files) <= _MOST_ROWS
    ]
    print_table(["file", "size"], rows)
    print_text(
        f"{sum(len(item.files) for item in plan.shared.artifacts)} files, "
        f"{size_text(plan.shared.size)}"
    )
    for item in plan.shared.artifacts:
        if item.left_out:
            names = listed(item.left_out_names)
            print_text(f"left out of {item.reference}, {size_text(item.left_out_size)}: {names}")
    for why in plan.gone:
        print_text(f"left out, as it is gone: {why}")


_MOST_ROWS = 30
_LARGE = 1_000_000
"""Of an artifact with many files, only those of so many bytes are listed."""
