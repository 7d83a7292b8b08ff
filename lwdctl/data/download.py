"""Fetches public demonstrations, each to a file or folder that a reader of this room reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lwdctl.artifacts.durable import sha256_of
from lwdctl.core.errors import DataError
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.data.download_table import (
    HUB_REPOSITORY,
    HUB_REVISION,
    MINARI,
    Source,
    find_source,
)
from lwdctl.data.fetch import Remote, by_hand, fetch, reason
from lwdctl.data.minari_package import check_name, minari_module, minari_root
from lwdctl.data.unpack import unpack


@dataclass(frozen=True)
class Downloaded:
    """What is there now.

    Attributes:
        source: The row of the table.
        path: What `lwdctl ingest` reads.
        fetched: Whether anything was loaded; False when it was there already.
        sha256: Digest of the file (of the archive, where it was one), or "" for a folder.
        checked: What the digest was compared with, or "" when there was nothing.
    """

    source: Source
    path: Path
    fetched: bool
    sha256: str
    checked: str

    @property
    def next_command(self) -> str:
        """The command that reads it."""
        return f"lwdctl ingest {self.source.format} {self.path}"


def download(words: Sequence[str], output: Path, progress: Progress) -> Downloaded:
    """Fetch what the words name, unless it is there already.

    Args:
        words: As in the table (`("robomimic", "lift", "mh")`).
        output: Folder to put it in.
        progress: Where to report.

    Raises:
        ConfigError: The words name nothing.
        DataError: It cannot be had, or is not what was published.
        MissingExtraError: A Minari data set without the minari package.
    """
    source = find_source(words)
    if source.format == MINARI:
        return _minari(source, output, progress)
    path, target = output / source.place, output / (source.unpacked or source.place)
    if source.unpacked and target.exists() and not path.exists():  # the archive was tidied away
        return Downloaded(source, target, fetched=False, sha256="", checked="")
    digest, checked, fetched = _file(source, path, progress)
    if source.unpacked and not target.exists():
        unpack(path, source.unpacked, output, progress)
    return Downloaded(source, target, fetched, digest, checked)


def _file(source: Source, path: Path, progress: Progress) -> tuple[str, str, bool]:
    """Return the file's SHA-256, what it was compared with, and whether it was loaded now."""
    record = path.with_name(f"{path.name}.sha256")
    if path.exists():
        return *_present(source, path, record), False
    remote = _remote(source, path)
    progress.message(f"fetching {remote.url}")
    digest = fetch(remote, path, progress)
    record.write_text(f"{digest}  {path.name}\n", encoding="utf-8")  # as sha256sum -c reads it
    return digest, source.checksum if remote.sha256 else "", True


def _present(source: Source, path: Path, record: Path) -> tuple[str, str]:
    """Check a file that is there already.

    Raises:
        DataError: It is not what was published, or not what was fetched.
    """
    noted = record.read_text(encoding="utf-8").split()[:1] if record.exists() else []
    expected = source.sha256 or "".join(noted)
    digest = sha256_of(path)
    if expected and digest != expected:
        raise DataError(
            f"{path}: is there, but its SHA-256 is {digest}, expected {expected}",
            "move it away and run the same command again",
        )
    if source.sha256:
        return digest, source.checksum
    return digest, "the first download" if noted else ""


def _remote(source: Source, path: Path) -> Remote:
    if source.url:
        return Remote(source.url, source.sha256, source.size)
    return _on_the_hub(source, path)


def _on_the_hub(source: Source, path: Path) -> Remote:
    """Ask the Hugging Face Hub for a file's address, digest and size.

    Raises:
        DataError: The Hub cannot be reached or knows no such file.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(
        HUB_REPOSITORY,
        source.hub_path,
        repo_type="dataset",
        revision=HUB_REVISION,
        endpoint=endpoint,
    )
    try:
        found = get_hf_file_metadata(url, token=False, endpoint=endpoint)
    except Exception as error:
        # The errors of the Hub's HTTP library have no base class that the Hub passes on.
        raise DataError(
            f"the Hugging Face Hub does not answer for {source.hub_path} ({reason(error)})",
            f"check the connection, {by_hand(url, path)}",
        ) from error
    # The tag of a file in large-file storage is its SHA-256; of a small one a Git digest.
    published = found.etag if found.etag and len(found.etag) == 64 else ""
    return Remote(url, source.sha256 or published, found.size or source.size)


def _minari(source: Source, output: Path, progress: Progress) -> Downloaded:
    identifier = source.words[1]
    minari = minari_module()
    check_name(identifier)
    root, path = output / MINARI, output / source.place
    if _is_whole(path):
        return Downloaded(source, path, fetched=False, sha256="", checked="")
    root.mkdir(parents=True, exist_ok=True)
    progress.message(f"fetching {identifier} through minari")
    with minari_root(root), _hub_log(quiet=isinstance(progress, SilentProgress)):
        try:
            # Without force, minari takes what a broken download left for the whole.
            minari.download_dataset(identifier, force_download=path.exists())
        except Exception as error:
            # minari raises whatever its server's library raises.
            raise DataError(
                f"minari cannot fetch {identifier} ({reason(error)})",
                "check the connection and run the same command again to go on, or copy the data "
                f"set from another machine's ~/.minari/datasets/{identifier} to {path}",
            ) from error
    if not _is_whole(path):
        raise DataError(f"{path}: minari fetched {identifier}, but no HDF5 file is in it")
    return Downloaded(source, path, fetched=True, sha256="", checked=source.checksum)


@contextmanager
def _hub_log(*, quiet: bool) -> Iterator[None]:
    """Keep the Hub's library, which minari loads through, from telling of retries if `quiet`."""
    import huggingface_hub.utils  # sets the level when it is imported, not later

    logger = logging.getLogger(huggingface_hub.__name__)
    before = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_whole(path: Path) -> bool:
    """Tell whether a data set is complete: each file appears under its name when it is."""
    return all((path / "data" / name).is_file() for name in ("metadata.json", "main_data.hdf5"))
