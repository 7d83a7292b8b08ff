"""What goes through the minari package: downloading datasets and exporting snippet stores.

The package is imported only when it is needed. Minari keeps one more observation than actions; an
exported episode whose observation after the last action is unknown loses that action, so that
every transition written was recorded. A single observation key becomes a `Box` space, several
become a `Dict` space under their names, with dots for slashes, of which minari would make groups.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lwdctl
from lwdctl.artifacts.files import whole_directory
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError, DataError, MissingExtraError, install_extra
from lwdctl.core.plain_text import listed
from lwdctl.core.progress import Progress, SilentProgress
from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.data.export_choice import chosen_episodes
from lwdctl.data.fetch import reason
from lwdctl.data.files.guarded_file import GuardedFile

ROOT_VARIABLE = "MINARI_DATASETS_PATH"
# Settings that the environment's constructor takes as well.
_CONSTRUCTOR_SETTINGS = frozenset({"use_contact_forces"})


def minari_module(name: str = "minari") -> Any:
    """Import the package or one of its modules.

    Raises:
        MissingExtraError: minari is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            "Minari datasets need the package 'minari', which is not installed",
            install_extra("minari"),
        ) from error


def check_name(identifier: str) -> None:
    """Check the name of a dataset.

    Raises:
        ConfigError: minari does not accept it.
        MissingExtraError: minari is not installed.
    """
    try:
        minari_module("minari.dataset.minari_dataset").parse_dataset_id(identifier)
    except (ValueError, TypeError):  # the latter where the version is missing
        raise ConfigError(
            f"'{identifier}' is not the name of a Minari dataset",
            "write NAMESPACE/NAME-vN, as in mujoco/halfcheetah/expert-v0",
        ) from None


@contextmanager
def minari_root(folder: Path) -> Iterator[None]:
    """Make minari keep its datasets in `folder`, and hide its warnings."""
    before = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = str(folder.absolute())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        if before is None:
            del os.environ[ROOT_VARIABLE]
        else:
            os.environ[ROOT_VARIABLE] = before


def download_minari(identifier: str, root: Path, progress: Progress) -> bool:
    """Download a dataset into `root` unless it is there already; return whether it was not.

    Raises:
        ConfigError: `identifier` is not the name of a dataset.
        DataError: minari cannot download it.
        MissingExtraError: minari is not installed.
    """
    minari = minari_module()
    check_name(identifier)
    path = root / identifier
    if _is_complete(path):
        return False
    root.mkdir(parents=True, exist_ok=True)
    progress.message(f"downloading {identifier} through minari")
    with minari_root(root), _hub_log(quiet=isinstance(progress, SilentProgress)):
        try:
            # Without force, minari takes what a broken download left for the whole.
            minari.download_dataset(identifier, force_download=path.exists())
        except Exception as error:
            # minari raises whatever its server's library raises.
            raise DataError(
                f"minari cannot download {identifier} ({reason(error)})",
                "check the connection and run the same command again to resume, or copy the "
                f"dataset from another machine's ~/.minari/datasets/{identifier} to {path}",
            ) from error
    if not _is_complete(path):
        raise DataError(f"{path}: minari downloaded {identifier}, but it has no HDF5 file")
    return True


@contextmanager
def _hub_log(*, quiet: bool) -> Iterator[None]:
    """Hide, if `quiet`, the retries that the Hub's library (which minari uses) logs."""
    import huggingface_hub.utils  # sets the level when it is imported, not later

    logger = logging.getLogger(huggingface_hub.__name__)
    before = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_complete(path: Path) -> bool:
    """Return whether a dataset is complete: minari names each file when it is."""
    return all((path / "data" / name).is_file() for name in ("metadata.json", "main_data.hdf5"))


@dataclass(frozen=True)
class MinariTarget:
    """What to export and where.

    Attributes:
        identifier: Minari's name, `NAMESPACE/NAME-vN`.
        root: Folder of Minari datasets.
        task: The one task to export; "" when the store has no more than one.
        label: Export only episodes with this behavior label; "" for all.
        description: One line for the dataset's metadata.
    """

    identifier: str
    root: Path
    task: str = ""
    label: str = ""
    description: str = ""


@dataclass
class Exported:
    """What was exported.

    Attributes:
        path: Directory of the dataset.
        episodes: Number of episodes.
        steps: Number of actions.
        shortened: Episodes that lost their last action.
        left_out: Episodes of one action, of which nothing would have been left.
        has_rewards: Whether the rewards are the store's; otherwise they are zeros.
        has_environment: Whether the dataset names an environment that Gymnasium knows.
        observations: Names of the observation arrays.
    """

    path: Path
    episodes: int = 0
    steps: int = 0
    shortened: int = 0
    left_out: int = 0
    has_rewards: bool = True
    has_environment: bool = False
    observations: tuple[str, ...] = ()


def export_minari(store: SnippetStore, target: MinariTarget, progress: Progress) -> Exported:
    """Export a store as a dataset, which appears under its name as a whole or not at all.

    Raises:
        ConfigError: A malformed name, a task or label that is missing or unknown, or observations
            whose names differ only in dots and slashes.
        DataError: The dataset exists already, or no episode could be written.
        MissingExtraError: minari is not installed.
    """
    check_name(target.identifier)
    chosen = _choose(store, target)
    path = target.root / target.identifier
    if path.exists():
        raise DataError(f"{path}: exists already", "give the new dataset another version (-v1)")
    gym_spec = _gym_spec(store.spec.env)
    result = Exported(
        path,
        has_rewards=store.has_rewards,
        has_environment=gym_spec is not None,
        observations=_exported_names(store),
    )
    with whole_directory(path) as fresh:
        with minari_root(target.root), progress.task("export", len(chosen), "episode") as task:
            storage = _new_storage(store, target, fresh / "data", gym_spec)
            _write(storage, _buffers(store, chosen, result, task))
            names = minari_module("minari.namespace")
            namespace = target.identifier.rpartition("/")[0]
            if namespace and namespace not in names.list_local_namespaces():
                names.create_namespace(namespace)
        if not result.episodes:
            raise DataError("no episode of the store has two steps or a last observation")
    if result.shortened:
        progress.message(
            f"{result.shortened} episodes lost their last action: the store has no observation"
            " after it"
        )
    if result.left_out:
        progress.message(f"{result.left_out} episodes of one such action were left out")
    if not result.has_rewards:
        progress.message("the store has no rewards: zeros were written")
    return result


def _choose(store: SnippetStore, target: MinariTarget) -> npt.NDArray[np.int64]:
    """Return the episodes of the wanted task and label."""
    if not target.task and len(set(store.episodes.task.tolist())) > 1:
        tasks = store.spec.env.tasks
        raise ConfigError(
            f"the store holds {len(tasks)} tasks ({listed(tasks, 10)}), a Minari dataset is one"
            " environment",
            f"name one: --task {shlex.quote(tasks[0])}",
        )
    return chosen_episodes(store, target.task, target.label)


def _exported_names(store: SnippetStore) -> tuple[str, ...]:
    """Return the names under which the observations are written."""
    names = tuple(item.name.replace("/", ".") for item in store.spec.observations)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two observations would be called '{name}' in a Minari dataset",
                "ingest the data with --rename OLD=NEW",
            )
    return names


def _new_storage(store: SnippetStore, target: MinariTarget, path: Path, gym_spec: Any) -> Any:
    from gymnasium import spaces

    storage_class = minari_module("minari.dataset.minari_storage").MinariStorage
    boxes = {
        name: spaces.Box(-np.inf, np.inf, (item.size,), np.float32)
        for name, item in zip(_exported_names(store), store.spec.observations, strict=True)
    }
    action = store.spec.action
    low, high = (np.array(limit, dtype=np.float32) for limit in (action.low, action.high))
    storage = storage_class.new(
        path,
        observation_space=spaces.Dict(boxes) if len(boxes) > 1 else next(iter(boxes.values())),
        action_space=spaces.Box(low, high, dtype=np.float32),
        env_spec=gym_spec,
        data_format="hdf5",
    )
    storage.update_metadata(
        {
            "dataset_id": target.identifier,
            "minari_version": minari_module().__version__,
            "description": _description(store, target),
            "algorithm_name": "unknown",
        }
    )
    return storage


def _description(store: SnippetStore, target: MinariTarget) -> str:
    env = store.spec.env
    parts = (
        target.description or "A snippet store",
        f"written by lwdctl {lwdctl.__version__}",
        f"environment {env.adapter}/{target.task or ''.join(env.tasks[:1])}",
        "" if store.has_rewards else "rewards unknown, written as 0",
        "every episode's end is marked as a truncation",
    )
    return "; ".join(filter(None, parts))


def _gym_spec(env: EnvSpec) -> Any:
    """Return Gymnasium's description of the environment, or None where it has none."""
    import gymnasium
    from gymnasium.envs.registration import EnvSpec as GymSpec

    recorded = env.settings.get("env_spec")
    if recorded:
        # What another version of Gymnasium recorded may lack fields, or have others.
        with contextlib.suppress(KeyError, TypeError, ValueError, gymnasium.error.Error):
            return GymSpec.from_json(json.dumps(recorded))
    name = env.settings.get("id", "")
    if name not in gymnasium.registry:
        return None
    spec = copy.deepcopy(gymnasium.registry[name])
    spec.kwargs.update({k: v for k, v in env.settings.items() if k in _CONSTRUCTOR_SETTINGS})
    return spec


def _write(storage: Any, episodes: Iterator[Any]) -> None:
    """Have minari write episodes; a disk that is full ends it with an error.

    Raises:
        OSError: The system refuses to write.
    """
    path = storage.data_path / "main_data.hdf5"
    with contextlib.closing(GuardedFile(path, "r+b")) as file:
        storage._file_path = file  # noqa: SLF001 - minari opens it with h5py, which takes files
        storage.update_episodes(episodes)
        file.check()


def _buffers(
    store: SnippetStore, chosen: npt.NDArray[np.int64], result: Exported, task: Any
) -> Iterator[Any]:
    """Yield minari's form of one episode after another, numbered anew."""
    buffer = minari_module("minari.data_collector.episode_buffer").EpisodeBuffer
    for index in chosen.tolist():
        store.check_episode(index)
        final = store.final_observation(index)
        steps = int(store.episodes.length[index]) - (final is None)
        task.advance()
        if not steps:
            result.left_out += 1
            continue
        result.shortened += final is None
        arrays = _arrays(store, int(store.episodes.start[index]), steps, final)
        seed = int(store.episodes.seed[index])
        success = int(store.episodes.success[index])
        last = np.arange(steps) == steps - 1
        observations = {
            name: arrays[item.name]
            for name, item in zip(result.observations, store.spec.observations, strict=True)
        }
        yield buffer(
            id=result.episodes,
            seed=seed if seed >= 0 else None,
            observations=observations if len(observations) > 1 else observations.popitem()[1],
            actions=arrays["action"],
            rewards=arrays["reward"],
            terminations=np.zeros(steps, dtype=bool),
            truncations=last,
            infos={} if success < 0 else {"success": np.append(False, last & bool(success))},
        )
        result.episodes += 1
        result.steps += steps


def _arrays(
    store: SnippetStore, start: int, steps: int, final: Mapping[str, FloatArray] | None
) -> dict[str, FloatArray]:
    """Return an episode's arrays: each observation one row longer than action and reward."""
    arrays = {}
    for item in store.spec.observations:
        if final is None:
            arrays[item.name] = store.read(item.name, start, start + steps + 1)
        else:
            rows = store.read(item.name, start, start + steps)
            arrays[item.name] = np.concatenate([rows, final[item.name][None]])
    arrays["action"] = store.read("action", start, start + steps)
    arrays["reward"] = np.zeros(steps, dtype=np.float32)
    if store.has_rewards:
        arrays["reward"] = store.read("reward", start, start + steps)[:, 0]
    return arrays
