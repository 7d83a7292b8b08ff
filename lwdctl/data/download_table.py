"""Where public demonstrations lie, and what is known of each file. A new one is a row here.

Only what a source states stands here:

- robomimic: the registry in `robomimic/__init__.py` of robomimic 0.5 (paths inside its Hugging
  Face repository). The Hub publishes the SHA-256 of every file; the two below were also found
  in independent records of that revision.
- D4RL: `d4rl/infos.py` and `d4rl/gym_mujoco/__init__.py` (which lists `http`; the server speaks
  TLS as well). No checksum is published.
- PushT: the address of Diffusion Policy's README. No checksum is published; the SHA-256 is the
  one that several projects recorded of their own downloads.
- Minari: its own server and names; the minari package finds, checks and stores the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean

HUB_REPOSITORY = "robomimic/robomimic_datasets"
HUB_REVISION = "74fa018461f479cd9fd15b924a16103012096203"
D4RL_SERVER = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
PUSHT_URL = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
MINARI = "minari"


@dataclass(frozen=True)
class Source:
    """One set of demonstrations that can be fetched.

    Attributes:
        words: What is typed after `lwdctl download`.
        format: The reader that `lwdctl ingest` needs for it.
        place: Where the file goes, below the output directory.
        url: Address of a plain download, or "".
        hub_path: Path inside robomimic's Hugging Face repository, or "".
        sha256: Digest that the file must have, or "" when none is known beforehand.
        size: Bytes, or 0 when not known beforehand.
        checksum: Where a digest comes from, in words.
        unpacked: For an archive, what `ingest` reads after unpacking, below the output
            directory; else "".
    """

    words: tuple[str, ...]
    format: str
    place: str
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
_MINARI_SETS = (
    *(f"mujoco/{name}/{level}-v0" for name in _LOCOMOTION for level in _MINARI_LEVELS),
    *(f"D4RL/{name}/{level}-v2" for name in _HANDS for level in _HAND_LEVELS),
)


def _robomimic(task: str, level: str) -> Source:
    sha256, size = _ROBOMIMIC_KNOWN.get(f"{task} {level}", ("", 0))
    return Source(
        words=("robomimic", task, level),
        format="robomimic",
        # The store and all that follows are named after the file.
        place=f"robomimic/{task}_{level}.hdf5",
        hub_path=f"v1.5/{task}/{level}/low_dim_v15.hdf5",
        sha256=sha256,
        size=size,
        checksum="Hugging Face",
    )


def _d4rl(name: str, folder: str, file: str) -> Source:
    return Source(
        words=("d4rl", name),
        format="d4rl",
        place=f"d4rl/{file}",
        url=f"{D4RL_SERVER}/{folder}/{file}",
    )


def minari_source(identifier: str) -> Source:
    """Return the row of a Minari data set, listed or not."""
    return Source(
        words=(MINARI, identifier),
        format=MINARI,
        place=f"{MINARI}/{identifier}",
        checksum="minari's own",
    )


SOURCES: tuple[Source, ...] = (
    *(_robomimic(task, level) for level, tasks in _ROBOMIMIC_TASKS.items() for task in tasks),
    Source(
        words=("pusht",),
        format="pusht",
        place="pusht.zip",
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
    *(minari_source(identifier) for identifier in _MINARI_SETS),
)
"""Everything that can be named; minari takes any other name of its server as well."""


def find_source(words: Sequence[str], sources: Sequence[Source] = SOURCES) -> Source:
    """Return the row that the words name.

    Raises:
        ConfigError: None does; the hint names the closest ones.
    """
    if len(words) == 2 and words[0].lower() == MINARI:
        return minari_source(words[1])
    said = " ".join(words).lower()
    known = {" ".join(source.words).lower(): source for source in sources}
    if said in known:
        return known[said]
    begun = [name for name in known if name.startswith(f"{said} ")]
    hint = f"say which: {', '.join(begun[:12])}" if begun else did_you_mean(said, known)
    raise ConfigError(
        f"nothing to download is called '{said}'", f"{hint} (see: lwdctl download --list)"
    )
