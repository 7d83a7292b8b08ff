"""Downloading public demonstrations, each to a file or folder that `lwdctl ingest` reads.

A new dataset is a row of `SOURCES`, which holds only what a source states:

- robomimic: the registry in `robomimic/__init__.py` of robomimic 0.5 (paths inside its Hugging
  Face repository). The Hub publishes the SHA-256 of every file; the two below were also found
  in independent records of that revision.
- D4RL: `d4rl/infos.py` and `d4rl/gym_mujoco/__init__.py` (which lists `http`; the server speaks
  TLS as well). No checksum is published.
- PushT: the address in Diffusion Policy's README. No checksum is published; the SHA-256 is the
  one that several projects recorded of their own downloads.
- Minari: its own server and names; the minari package finds, checks and stores the files.
- LeRobot: any dataset of the Hugging Face Hub, by its name there; the Hub publishes the SHA-256 of
  the data files.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from lwdctl.artifacts.files import sha256_of
from lwdctl.configs import IngestConfig
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.core.progress import Progress
from lwdctl.data.fetch import by_hand, fetch, reason
from lwdctl.data.files.zip_errors import ZIP_ERRORS
from lwdctl.data.reader import ingest_command
from lwdctl.data.readers.lerobot_hub import download_lerobot, hub_endpoint

HUB_REPOSITORY = "robomimic/robomimic_datasets"
HUB_REVISION = "74fa018461f479cd9fd15b924a16103012096203"
D4RL_SERVER = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
PUSHT_URL = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
MINARI = "minari"
LEROBOT = "lerobot"


@dataclass(frozen=True)
class Source:
    """One dataset that can be downloaded.

    Attributes:
        arguments: What is typed after `lwdctl download`.
        format: Data format, for `lwdctl ingest`.
        file: Where it is stored, below the output directory.
        url: Address of a plain download, or "".
        hub_path: Path inside robomimic's Hugging Face repository, or "".
        sha256: Digest that the file must have, or "" when none is known beforehand.
        size: Bytes, or 0 when not known beforehand.
        checksum: Where the digest comes from.
        unpacked: For an archive, what `ingest` reads after unpacking, below the output
            directory; else "".
    """

    arguments: tuple[str, ...]
    format: str
    file: str
    url: str = ""
    hub_path: str = ""
    sha256: str = ""
    size: int = 0
    checksum: str = "none published"
    unpacked: str = ""


_ROBOMIMIC_TASKS = {
    "ph": ("lift", "can", "square", "transport", "tool_hang"),
    "mh": ("lift", "can", "square", "transport"),
}
_ROBOMIMIC_KNOWN = {
    "lift ph": ("2067777cb8b532e9263dd09fd6448c41cc31224bb27be4a3b734010ae13eb540", 21_084_088),
    "can ph": ("3f2eb92e0a5025d0095e866ac16cc8092d6a762abe27dec90dbaff9027282962", 46_889_752),
}
_LOCOMOTION = ("halfcheetah", "walker2d", "ant", "hopper")
_LOCOMOTION_LEVELS = (
    "random", "medium", "expert", "medium-replay", "medium-expert", "full-replay",
)  # fmt: skip
_HANDS = ("hammer", "door", "pen", "relocate")
_HAND_LEVELS = ("human", "cloned", "expert")
_MINARI_LEVELS = ("simple", "medium", "expert")


def _robomimic(task: str, level: str) -> Source:
    sha256, size = _ROBOMIMIC_KNOWN.get(f"{task} {level}", ("", 0))
    return Source(
        arguments=("robomimic", task, level),
        format="robomimic",
        # The store and everything made from it are named after the file.
        file=f"robomimic/{task}_{level}.hdf5",
        hub_path=f"v1.5/{task}/{level}/low_dim_v15.hdf5",
        sha256=sha256,
        size=size,
        checksum="Hugging Face",
    )


def _d4rl(name: str, folder: str, file: str) -> Source:
    return Source(("d4rl", name), "d4rl", f"d4rl/{file}", url=f"{D4RL_SERVER}/{folder}/{file}")


def _minari(identifier: str) -> Source:
    return Source((MINARI, identifier), MINARI, f"{MINARI}/{identifier}", checksum="minari's own")


def _lerobot(name: str) -> Source:
    return Source((LEROBOT, name), LEROBOT, f"{LEROBOT}/{name}", checksum="Hugging Face")


_BY_NAME = {MINARI: _minari, LEROBOT: _lerobot}

SOURCES: tuple[Source, ...] = (
    *(_robomimic(task, level) for level, tasks in _ROBOMIMIC_TASKS.items() for task in tasks),
    Source(
        arguments=("pusht",),
        format="pusht",
        file="pusht.zip",
        url=PUSHT_URL,
        sha256="63d52a114a3f010861f0181309d165b7d69133ccae426ece2fc94caed147bdf9",
        size=30_988_725,
        checksum="recorded by its users",
        unpacked="pusht/pusht_cchi_v7_replay.zarr",
    ),
    *(
        _d4rl(f"{name}-{level}-v2", "gym_mujoco_v2", f"{name}_{level.replace('-', '_')}-v2.hdf5")
        for name in _LOCOMOTION
        for level in _LOCOMOTION_LEVELS
    ),
    *(
        _d4rl(f"{name}-{level}-v1", "hand_dapg_v1", f"{name}-{level}-v1.hdf5")
        for name in _HANDS
        for level in _HAND_LEVELS
    ),
    *(_minari(f"mujoco/{name}/{level}-v0") for name in _LOCOMOTION for level in _MINARI_LEVELS),
    *(_minari(f"D4RL/{name}/{level}-v2") for name in _HANDS for level in _HAND_LEVELS),
)
"""Everything listed; any other dataset of minari's server or LeRobot's is known by its name."""


@dataclass(frozen=True)
class Downloaded:
    """A dataset that is now on disk.

    Attributes:
        source: The row of the table.
        path: What `lwdctl ingest` reads.
        fetched: Whether anything was downloaded; False when it was there already.
        sha256: Digest of the file (or of the archive), or "" for a folder.
        verified_by: What the digest was compared with, or "" when there was nothing.
    """

    source: Source
    path: Path
    fetched: bool
    sha256: str
    verified_by: str

    @property
    def next_command(self) -> str:
        """The command that reads it."""
        return ingest_command([self.path], IngestConfig(self.source.format))


def find_source(arguments: Sequence[str]) -> Source:
    """Return the row that the arguments name.

    Raises:
        ConfigError: There is none; the hint names the closest ones.
    """
    if len(arguments) == 2 and arguments[0].lower() in _BY_NAME:
        return _BY_NAME[arguments[0].lower()](arguments[1])
    name = " ".join(arguments).lower()
    known = {" ".join(source.arguments).lower(): source for source in SOURCES}
    if name in known:
        return known[name]
    close = [item for item in known if item.startswith(f"{name} ")]
    close = close or get_close_matches(name, known, n=3)
    if name == LEROBOT:
        close = ["lerobot USER/NAME"]
    hint = "; ".join(f"lwdctl download {item}" for item in close[:9])
    raise ConfigError(
        f"no dataset to download is called '{name}'", hint or "lwdctl download --list"
    )


def download(arguments: Sequence[str], output: Path, progress: Progress) -> Downloaded:
    """Download the named dataset unless it is there already.

    Args:
        arguments: As in the table (`("robomimic", "lift", "mh")`).
        output: Folder to put it in.
        progress: Where to report.

    Raises:
        ConfigError: There is no such dataset.
        DataError: It cannot be downloaded, or is not what was published.
        MissingExtraError: A Minari dataset is named and the minari package is not installed.
    """
    source = find_source(arguments)
    path, target = output / source.file, output / (source.unpacked or source.file)
    if source.format == MINARI:
        from lwdctl.data.minari_package import download_minari  # heavy

        fetched = download_minari(source.arguments[1], output / MINARI, progress)
        return Downloaded(source, path, fetched, "", source.checksum if fetched else "")
    if source.format == LEROBOT:
        fetched = download_lerobot(source.arguments[1], output / LEROBOT, progress)
        return Downloaded(source, path, fetched, "", source.checksum)
    if source.unpacked and target.exists() and not path.exists():  # the archive was removed
        return Downloaded(source, target, fetched=False, sha256="", verified_by="")
    fetched = not path.exists()
    record = path.with_name(f"{path.name}.sha256")  # as `sha256sum -c` reads it
    if fetched:
        digest, verified_by = _download(source, path, record, progress)
    else:
        digest, verified_by = _check_present(source, path, record)
    if source.unpacked and not target.exists():
        unpack(path, source.unpacked, output, progress)
    return Downloaded(source, target, fetched, digest, verified_by)


def _download(source: Source, path: Path, record: Path, progress: Progress) -> tuple[str, str]:
    """Return the SHA-256 of the downloaded file and what it was compared with."""
    if source.hub_path:
        source = _on_the_hub(source, path)
    progress.message(f"downloading {source.url}")
    digest = fetch(source.url, path, progress, sha256=source.sha256, size=source.size)
    record.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    return digest, source.checksum if source.sha256 else ""


def _check_present(source: Source, path: Path, record: Path) -> tuple[str, str]:
    """Return the SHA-256 of a file that is there already and what it was compared with."""
    recorded = record.read_text(encoding="utf-8").split()[:1] if record.exists() else []
    expected = source.sha256 or "".join(recorded)
    digest = sha256_of(path)
    if expected and digest != expected:
        raise DataError(
            f"{path}: exists, but its SHA-256 is {digest}, expected {expected}",
            "move it away and run the same command again",
        )
    if source.sha256:
        return digest, source.checksum
    return digest, "the first download" if recorded else ""


def _on_the_hub(source: Source, path: Path) -> Source:
    """Ask the Hugging Face Hub for a file's address, digest and size."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    endpoint = hub_endpoint()
    place = {"repo_type": "dataset", "revision": HUB_REVISION, "endpoint": endpoint}
    url = hf_hub_url(HUB_REPOSITORY, source.hub_path, **place)
    try:
        found = get_hf_file_metadata(url, token=False, endpoint=endpoint)
    except Exception as error:
        # The errors of the Hub's HTTP library have no base class that the Hub exports.
        raise DataError(
            f"the Hugging Face Hub does not respond for {source.hub_path} ({reason(error)})",
            f"check the connection, {by_hand(url, path)}",
        ) from error
    # The tag of a file in large-file storage is its SHA-256; of a small one a Git digest.
    published = found.etag if found.etag and len(found.etag) == 64 else ""
    return replace(
        source, url=url, sha256=source.sha256 or published, size=found.size or source.size
    )


def unpack(archive: Path, wanted: str, folder: Path, progress: Progress) -> None:
    """Unpack the directory `wanted` of a zip archive of unknown origin, as a whole or not at all.

    Raises:
        DataError: No zip file, a member that would leave the folder, or no such directory.
    """
    target = folder / wanted
    fresh = folder / f".{archive.name}.unpacking"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as source:
            members = _members(archive, source, wanted)
            with progress.task(f"unpack {archive.name}", len(members), "file") as task:
                for member in members:
                    source.extract(member, fresh)
                    task.advance()
        target.parent.mkdir(parents=True, exist_ok=True)
        (fresh / wanted).rename(target)
    except ZIP_ERRORS as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({error})", "remove it and try again"
        ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _members(archive: Path, source: zipfile.ZipFile, wanted: str) -> list[zipfile.ZipInfo]:
    """Return the members below `wanted` after checking every one of the archive."""
    for member in source.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(
                f"{archive}: holds '{member.filename}', which leads out of it",
                "it is not unpacked; download the archive again from where it was published",
            )
    found = [item for item in source.infolist() if item.filename.startswith(f"{wanted}/")]
    if not found:
        raise DataError(f"{archive}: holds no '{wanted}'")
    return found
