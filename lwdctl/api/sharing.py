"""Sharing artifacts through the Hugging Face Hub: `push` and `pull`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.workspace import Place, Workspace
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.sharing.hub import Address, endpoint

if TYPE_CHECKING:
    from lwdctl.sharing.pull import Pulled
    from lwdctl.sharing.push import Pushed


def push(
    source: str | Path | Artifact,
    repository: str,
    *,
    license: str = "",  # noqa: A002 - the word of the Hub's metadata
    public: bool = False,
    with_data: bool = False,
    dry_run: bool = False,
    workspace: Place = None,
    progress: Progress | None = None,
) -> Pushed:
    """Push an artifact to the Hugging Face Hub, as `lwdctl push` does.

    What it derives from goes with it as far as acting and lineage need it: manifests, JSON and
    safetensors files. A model card is written from the newest evaluation in the workspace.

    Args:
        source: A reference (`"diffusion/lift_mh"`), a path or an artifact.
        repository: `user/name` on the Hub.
        license: Identifier of its license, such as `"apache-2.0"`; needed unless `dry_run`.
        public: Whether everybody may see it.
        with_data: Whether demonstrations and latents go with it, too.
        dry_run: Only find what would be pushed; the Hub is not asked.
        workspace: Where the artifact stands.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: No license, or the repository is public and `public` was not said.
        ArtifactError: The artifact or a part of its lineage is missing or damaged.
        DataError: The Hub does not respond or refuses.
    """
    from lwdctl.sharing.card import build_card
    from lwdctl.sharing.plan import plan_push
    from lwdctl.sharing.push import Pushed, check_license, push_plan

    address, progress = Address.parse(repository), progress or TqdmProgress()
    if not dry_run:
        check_license(license)
    place = Workspace.locate(workspace)
    artifact = source if isinstance(source, Artifact) else place.resolve("", str(source))
    plan = plan_push(
        artifact, place.root, with_data=with_data, license_id=license, progress=progress
    )
    if dry_run:
        return Pushed(address.repository, "", f"{endpoint()}/{address.repository}", plan)
    card = build_card(plan, address, place.root, progress)
    return push_plan(plan, address, card, public=public, progress=progress)


def pull(
    source: str,
    *,
    name: str = "",
    with_data: bool = False,
    workspace: Place = None,
    progress: Progress | None = None,
) -> Pulled:
    """Pull an artifact with its lineage from the Hugging Face Hub, as `lwdctl pull` does.

    Args:
        source: `user/name`, or `user/name@revision` for a branch, a tag or a commit.
        name: Name to give it, where its own belongs to another artifact in the workspace.
        with_data: Whether to pull demonstrations and latents, where they were pushed.
        workspace: Where it goes.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: `source` is no such name.
        ArtifactError: Its place in the workspace is taken, or it is not what it claims to be.
        DataError: The Hub does not respond, refuses, or sends something else than was pushed.
    """
    from lwdctl.sharing.pull import pull_artifact

    return pull_artifact(
        Address.parse(source), Workspace.locate(workspace), name=name, with_data=with_data,
        progress=progress or TqdmProgress(),
    )  # fmt: skip
