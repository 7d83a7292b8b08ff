"""Pushing an artifact with its lineage and a model card to the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lwdctl.artifacts.references import MAKERS
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import Progress
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.fetch import UNIT
from lwdctl.sharing.card import CARD, FIGURE, Card
from lwdctl.sharing.hub import (
    LOG_IN,
    Address,
    Remote,
    connect,
    endpoint,
    has_token,
    quiet_client,
    state_of,
    understood,
)
from lwdctl.sharing.plan import PushPlan
from lwdctl.sharing.shared_set import SET_NAME

LICENSES = (
    "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0",
    "gpl-3.0", "lgpl-3.0", "openrail", "other",
)  # fmt: skip
"""Identifiers of the Hub that are named in hints; it knows more."""
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_OURS = re.compile(rf"({'|'.join(MAKERS)})/[^/]+/v\d{{4,}}/.+")
_BATCH_FILES = 100
_BATCH_BYTES = 64_000_000


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        repository: `user/name`.
        revision: The commit that holds it.
        url: Its page.
        plan: What it holds.
    """

    repository: str
    revision: str
    url: str
    plan: PushPlan


def check_license(name: str) -> None:
    """Check that a license is named, in the form that the Hub expects.

    Raises:
        ConfigError: It is not.
    """
    listed = ", ".join(LICENSES)
    if not name:
        raise ConfigError(
            "no license is named: others must know what they may do with the artifact",
            f"--license apache-2.0 (or {listed.partition(', ')[2]})",
        )
    if not _LICENSE.fullmatch(name):
        close = did_you_mean(name, LICENSES)
        raise ConfigError(
            f"'{name}' is no license identifier of the Hub",
            f"{close}; all: https://huggingface.co/docs/hub/repositories-licenses",
        )


def push_plan(
    plan: PushPlan, address: Address, card: Card, *, public: bool, progress: Progress
) -> Pushed:
    """Send a plan to the Hub as one commit; files that are there already are not sent again.

    Args:
        plan: What to push.
        address: The repository; it is made where there is none.
        card: Its model card.
        public: Whether a new repository is public, and an existing one may be.
        progress: Where to report.

    Raises:
        ConfigError: A revision is named, or the repository is not what `public` says.
        DataError: The Hub refuses or does not respond, or the repository holds something else.
    """
    if address.revision:
        raise ConfigError(
            "a push makes a revision; it cannot name one", f"write {address.repository}"
        )
    if not has_token():
        raise DataError("pushing to the Hugging Face Hub needs a token that may write", LOG_IN)
    with quiet_client(progress):
        remote = state_of(address)
        if remote is not None:
            _check_remote(remote, public=public)
        with understood(address, "run the same command again: what was sent is kept"):
            api = connect()
            if remote is None:
                api.create_repo(address.repository, private=not public, exist_ok=True)
                visible_to = "public" if public else "private"
                progress.message(f"made the {visible_to} repository {address.repository}")
            operations = list(_operations(plan, card, remote))
            _upload(api, address, operations, progress)
            info = api.create_commit(
                address.repository,
                operations,
                commit_message=f"{plan.shared.artifact}, lwdctl {plan.shared.lwdctl}",
                parent_commit=remote.commit if remote and remote.commit else None,
            )
    url = f"{endpoint()}/{address.repository}"
    return Pushed(address.repository, str(info.oid), url, plan)


def _check_remote(remote: Remote, *, public: bool) -> None:
    """Check that an existing repository may be pushed to.

    Raises:
        ConfigError: It is public and `public` was not said, or private and it was.
        DataError: It holds something that lwdctl did not push.
    """
    name = remote.repository
    if public == remote.private:
        now, wanted = ("private", "public") if remote.private else ("public", "private")
        option = "leave out --public" if public else "add --public"
        raise ConfigError(
            f"the repository {name} is {now}",
            f"{option}, or change it first: hf repos settings {name} --{wanted}",
        )
    if CARD in remote.files and SET_NAME not in remote.files:
        raise DataError(
            f"the repository {name} holds something that lwdctl did not push",
            "choose another name: its model card would be replaced",
        )


def _operations(plan: PushPlan, card: Card, remote: Remote | None) -> Iterator[Any]:
    """Yield what one commit changes: files to add, and those of earlier pushes to remove."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    contents: dict[str, Any] = {**plan.sources, SET_NAME: plan.shared.to_bytes()}
    contents[CARD] = card.text.encode()
    if card.figure:
        contents[FIGURE] = card.figure
    for name, content in contents.items():
        yield CommitOperationAdd(name, content)
    for name in sorted(set(remote.files if remote else ()) - contents.keys()):
        if _OURS.fullmatch(name) or name == FIGURE:
            yield CommitOperationDelete(name)


def _upload(api: Any, address: Address, operations: Iterable[Any], progress: Progress) -> None:
    """Send large files a batch at a time, so that an interrupted push goes on after the last."""
    from huggingface_hub import CommitOperationAdd

    additions = [item for item in operations if isinstance(item, CommitOperationAdd)]
    total = sum(item.upload_info.size for item in additions)
    title = f"push {address.repository}"
    with progress.task(title, max(total // UNIT, 1), "kB") as task:
        done = 0
        for batch in _batches(additions):
            api.preupload_lfs_files(address.repository, batch, free_memory=False)
            end = done + sum(item.upload_info.size for item in batch)
            task.advance(end // UNIT - done // UNIT)
            done = end


def _batches(additions: list[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for item in additions:
        if batch and (len(batch) == _BATCH_FILES or size + item.upload_info.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.upload_info.size
    yield batch
