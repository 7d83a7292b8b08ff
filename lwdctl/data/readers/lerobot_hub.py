"""Downloading LeRobot datasets from the Hugging Face Hub, without their videos."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from lwdctl.artifacts.files import sha256_of
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import Progress
from lwdctl.data.fetch import fetch, reason

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = re.compile(r"(meta|data)/[\w./-]+\.(json|jsonl|parquet)")


def download_lerobot(name: str, folder: Path, progress: Progress) -> bool:
    """Download `meta` and `data` of a dataset into `folder/name`; return whether anything was.

    Files that are complete are not downloaded again, and a broken one is resumed. When all are
    there, `folder/name.sha256` holds their digests.

    Args:
        name: `USER/NAME` on the Hub.
        folder: Where to put it.
        progress: Where to report.

    Raises:
        ConfigError: `name` is not of that form.
        DataError: The Hub does not respond or has no such dataset, the dataset is no LeRobot
            dataset, or a file is not the published one.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"'{name}' is not the name of a dataset of the Hub",
            "write USER/NAME, as in lerobot/pusht",
        )
    root = folder / name
    record = root.with_name(f"{root.name}.sha256")
    if record.exists():
        _check(record)
        return False
    revision, files = _listing(name)
    total = sum(size for size, _ in files.values())
    progress.message(f"downloading {name}: {len(files)} files, {total:,} bytes, no videos")
    lines = []
    for file, (size, published) in files.items():
        path = root / file
        if path.exists():
            digest = sha256_of(path)
            _compare(path, digest, published or digest)
        else:
            url = _url(name, revision, file)
            digest = fetch(url, path, progress, sha256=published, size=size)
        lines.append(f"{digest}  {root.name}/{file}\n")
    record.write_text("".join(lines), encoding="utf-8")
    return True


def _check(record: Path) -> None:
    """Compare the files of a complete download with their recorded digests."""
    for line in record.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        path = record.parent / name
        _compare(path, sha256_of(path) if path.is_file() else "", expected, record)


def _compare(path: Path, digest: str, expected: str, record: Path | None = None) -> None:
    if digest != expected:
        problem = f"exists, but its SHA-256 is {digest}" if digest else "is missing"
        removed = shlex.join(map(str, filter(None, [path, record])))
        raise DataError(
            f"{path}: {problem}, expected {expected}",
            f"rm -f {removed}, and run the same command again",
        )


def _listing(name: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """Return the newest revision, and size and SHA-256 ("" for unknown) of every file of use."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=hub_endpoint(), token=False).dataset_info(name, files_metadata=True)
    except Exception as error:
        # The errors of the Hub's HTTP library have no base class that the Hub exports.
        raise DataError(
            f"the Hugging Face Hub does not respond for the dataset {name} ({reason(error)})",
            "check name and connection, or copy the dataset's folders meta and data by other means",
        ) from error
    files = {
        item.rfilename: (int(item.size or 0), str(item.lfs.sha256) if item.lfs else "")
        for item in info.siblings or ()
        if _WANTED.fullmatch(item.rfilename) and ".." not in item.rfilename
    }
    if "meta/info.json" not in files:
        raise DataError(f"the dataset {name} of the Hub has no meta/info.json: no LeRobot dataset")
    return str(info.sha), files


def _url(name: str, revision: str, file: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(name, file, repo_type="dataset", revision=revision, endpoint=hub_endpoint())


def hub_endpoint() -> str | None:
    """Return the address of the Hub that the user names, None for the usual one."""
    return os.environ.get("HF_ENDPOINT") or None
