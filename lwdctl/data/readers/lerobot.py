"""Reader of LeRobot datasets, versions 2.0 to 3.x, through pyarrow alone (extra `parquet`).

A dataset is a directory with `meta/info.json` and parquet files under `data`: one per episode in
version 2, many episodes per file in version 3. Columns of numbers are observations under their own
names; images and videos are not read. The columns `episode_index` and `frame_index` decide which
rows are an episode; what `meta` says is compared with them. The format says neither whether actions
are targets or motions nor what limits they have: the environment may (`--env`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.records import Episode, SourceSpec
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import ReportsFindings, choose_observations, closed_on_error, finite_rows
from lwdctl.data.files.contents import Contents
from lwdctl.data.named_environments import requested_env
from lwdctl.data.reader import EPISODE_OPTIONS, EpisodeOutline, check_unused
from lwdctl.data.readers.gym_envs import value_text
from lwdctl.data.readers.lerobot_checks import check_frames, check_metadata, check_range, names_of
from lwdctl.data.readers.lerobot_meta import (
    INFO,
    EpisodeFacts,
    Folder,
    data_files,
    read_episodes,
    read_info,
    read_range,
    read_texts,
)
from lwdctl.data.readers.lerobot_rows import (
    DONE,
    REWARD,
    SUCCESS,
    Recording,
    RowIndex,
    recordings_of,
)

if TYPE_CHECKING:
    from lwdctl.data.readers.lerobot_files import Columns

WHAT = "a LeRobot dataset"
VALIDATION_SPLITS = ("validation", "val", "valid")


@dataclass(frozen=True)
class _Origin:
    """Where the value of a label or a task stands: a column of the rows, or of the metadata."""

    column: str = ""
    texts: Mapping[int, str] = field(default_factory=dict)
    fact: str = ""

    def text(self, recording: Recording, facts: EpisodeFacts | None) -> str:
        """Return the value of an episode as text, "" for none."""
        if self.fact:
            value = facts.values.get(self.fact) if facts else None
        else:
            value = recording.runs[0].values[self.column]
        values: list[Any] = value if isinstance(value, list) else [value]
        texts = (
            item if isinstance(item, list | dict) else self.texts.get(item, item) for item in values
        )
        return ", ".join(value_text(item) for item in texts if item is not None)


class LeRobotDataset(ReportsFindings):
    """One LeRobot dataset; a `FileReader`.

    Tasks are the texts of `task_index`; rewards are `next.reward`; success is `next.success`, else
    the episode's `success` in the metadata, else `next.done` where only some episodes have it.

    Raises:
        DataError: The structure is not a LeRobot dataset's; the message names file and key.
        MissingExtraError: pyarrow is not installed.
    """

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a directory is recognized as a LeRobot dataset, or ""."""
        # Thousands of data files can crowd this file out of the listing.
        path = contents.path / INFO
        if contents.container != "directory" or not path.is_file():
            return ""
        try:
            info = read_info(Folder(contents.path))
        except DataError:
            # The Hub's cache is made of links; the constructor says what to do about them.
            inside = path.resolve().is_relative_to(contents.path.resolve())
            return "" if inside else f"{INFO}, a link"
        return f"{INFO} with features of LeRobot {info.version}".rstrip()

    def __init__(self, path: Path, config: IngestConfig) -> None:
        self.path = path
        self.findings = []
        check_unused(config, path, WHAT, "terminals", *EPISODE_OPTIONS)
        self._config = config
        self._folder = Folder(path, config.max_bytes)
        self._info = read_info(self._folder)
        names, others = data_files(self._folder, self._info.data_path)
        from lwdctl.data.readers.lerobot_files import DataFiles  # needs pyarrow

        if others:
            message = (
                f"{len(others)} parquet files beside those of data_path are not read: "
                f"{', '.join(others[:5])}"
            )
            self._report("left-out", "", message, "warning", files=others[:10])
        self._files = DataFiles(self._folder, names, self.findings)
        with closed_on_error(self._files):
            self._scan()

    def _scan(self) -> None:
        from lwdctl.data.readers.lerobot_files import Columns

        config = self._config
        columns = Columns(self.path, self._files.types, self._info, config)
        self._action = columns.action_key()
        default = columns.default_keys(self._action)
        known = [name for name in columns.vectors() if name != self._action]
        chosen = [key for key in config.observation_keys or default if key in known]
        sizes = self._files.measure([*chosen, self._action])
        observations = choose_observations(
            config.observation_keys,
            default,
            {**dict.fromkeys(known, 0), **sizes},
            f"{self.path}: features",
        )
        self._compare_shapes(columns, sizes)
        self._range = read_range(self._folder, self._action, sizes[self._action])
        self._facts = self._read_facts()
        index, recordings = self._recordings(sizes)
        self._describe(index, recordings)
        action, env, found = columns.describe_action(self._action, sizes[self._action])
        tasks = tuple(dict.fromkeys(item.task for item in self.episodes if item.task))
        self.spec = SourceSpec(
            observations=observations,
            action=action,
            env=replace(env, tasks=tasks),
            labels=(),
            source_format="lerobot",
        )
        self.findings += [*columns.left_out([*sizes]), *found]

    def _compare_shapes(self, columns: Columns, sizes: Mapping[str, int]) -> None:
        """Compare the numbers of components with those of the metadata."""
        for key, size in sizes.items():
            shape = columns.feature(key).shape
            if shape and math.prod(shape) != size:
                message = (
                    f"{INFO} declares the shape {list(shape)} of {key}, but the rows have {size}"
                    " components, which are taken"
                )
                values = {"key": key, "declared": list(shape), "found": size}
                self._report("metadata", "", message, "warning", **values)

    def _read_facts(self) -> dict[int, EpisodeFacts]:
        """Return the metadata of the episodes, which are not needed to read them."""
        try:
            facts = read_episodes(self._folder)
        except DataError as error:
            message = f"metadata of the episodes: {error.message}"
            self._report("metadata", "", message, "warning")
            return {}
        if not facts:
            self._report("metadata", "", "there are no metadata of the episodes", "warning")
        return facts

    def _recordings(self, sizes: Mapping[str, int]) -> tuple[RowIndex, dict[int, list[Recording]]]:
        """Arrange the rows as recordings, by `episode_index` and then as they stand in the files.

        Raises:
            DataError: There is none, or the index is no index.
        """
        config = self._config
        self._label = self._origin("--label-from", config.label_from)
        self._task = self._origin("--task-from", config.task_from)
        extra = [item.column for item in (self._label, self._task) if item and item.column]
        index = self._files.index(sizes, list(dict.fromkeys(extra)))
        if not index.runs:
            raise DataError(f"{self.path}: holds no rows")
        found: dict[int, list[Recording]] = {}
        repeated: dict[int, int] = {}
        unnumbered = [] if index.has_frames else sorted(index.runs)
        for episode in sorted(index.runs):
            found[episode], count, numbered = recordings_of(index.runs[episode])
            if count:
                repeated[episode] = count
            if not numbered:
                unnumbered.append(episode)
        self._has_rewards = REWARD in index.columns and not index.bad_rewards
        rewards = {REWARD: 1} if self._has_rewards else {}
        self._files.prepare(
            {**sizes, **rewards}, [item for items in found.values() for item in items]
        )
        copies = {episode: self._copies(items) for episode, items in found.items()}
        if any(copies.values()):
            places = [episode for episode, count in copies.items() if count]
            message = (
                f"{sum(copies.values())} recordings that repeat another one of the same"
                f" episode_index: episode {names_of(places)}"
            )
            self._report("left-out", "", message, "warning", episodes=places[:10])
        self.findings += check_frames(self.path, found, repeated, unnumbered)
        self.findings += check_metadata(
            self.path, self._info, self._facts, found, index, self._file_indices
        )
        return index, found

    def _copies(self, recordings: list[Recording]) -> int:
        """Remove recordings whose rows equal those of an earlier one; return how many."""
        for count, item in enumerate(recordings[1:]):
            same = [one for one in recordings[: 1 + count] if one.length == item.length]
            rows = self._columns(item) if same else {}
            for one in same:
                others = self._columns(one)
                if all(np.array_equal(rows[key], others[key], equal_nan=True) for key in rows):
                    recordings.remove(item)
                    return 1 + self._copies(recordings)
        return 0

    def _columns(self, recording: Recording) -> dict[str, Any]:
        parts = [self._files.rows(run) for run in recording.runs]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _file_indices(self, file: int) -> tuple[int, int] | None:
        """Return chunk and file index in the path of a data file of version 3."""
        match = re.search(r"chunk-(\d+)/file-(\d+)\.parquet$", self._files.name(file))
        return (int(match[1]), int(match[2])) if match else None

    def _origin(self, option: str, name: str | None) -> _Origin | None:
        """Find where the values of `--label-from` or `--task-from` stand.

        Raises:
            DataError: There is nothing of that name.
        """
        if name is None:
            return None
        types = self._files.types
        if name in types:
            return _Origin(name)
        if f"{name}_index" in types and (texts := read_texts(self._folder, name)):
            return _Origin(f"{name}_index", texts)
        known = {key for facts in self._facts.values() for key in facts.values}
        if name in known:
            return _Origin(fact=name)
        raise DataError(
            f"{self.path}: {option} {name}: is no column of the rows or of the episodes' metadata",
            did_you_mean(name, {*types, *known}),
        )

    # Episodes

    def _describe(self, index: RowIndex, found: Mapping[int, list[Recording]]) -> None:
        """Name the episodes, and find their tasks, labels, splits and success."""
        config = self._config
        spans = self._spans()
        if config.filter_key is not None and config.filter_key not in self._info.splits:
            raise DataError(
                f"{self.path}: {WHAT} has no subset '{config.filter_key}'; its splits are"
                f" {', '.join(self._info.splits) or 'not named'}"
            )
        texts = {} if self._task or requested_env(config)[1] else read_texts(self._folder, "task")
        chosen = self._info.splits.get(config.filter_key or "", (0, max(found) + 1))
        self.episodes: list[EpisodeOutline] = []
        self._order: list[tuple[int, Recording, EpisodeFacts | None]] = []
        for episode, recordings in found.items():
            if not chosen[0] <= episode < chosen[1]:
                continue
            for number, recording in enumerate(recordings, 1):
                facts = self._facts.get(episode) if len(recordings) == 1 else None
                self._order.append((episode, recording, facts))
                self.episodes.append(
                    EpisodeOutline(
                        f"episode_{episode}" + (f".{number}" if number > 1 else ""),
                        recording.length,
                        self._task_of(recording, facts, texts),
                        self._label_of(recording, facts),
                        next((name for name, a, b in spans if a <= episode < b), ""),
                    )
                )
        if not self.episodes:
            raise DataError(f"{self.path}: the split '{config.filter_key}' has no episodes")
        self._report_tasks()
        self._set_success(index)
        if REWARD in index.columns and index.bad_rewards:
            problem = f"{index.bad_rewards} rows have none (null, NaN or infinity)"
            self._report("left-out", "", f"{REWARD} is not read: {problem}")

    def _spans(self) -> list[tuple[Literal["train", "validation"], int, int]]:
        """Return the splits that `meta/info.json` names, if one is for validation."""
        splits = self._info.splits
        held_out = [splits[name] for name in VALIDATION_SPLITS if name in splits]
        if not held_out:
            return []
        trained = [splits["train"]] if "train" in splits else []
        return [("train", *span) for span in trained] + [("validation", *s) for s in held_out]

    def _label_of(self, recording: Recording, facts: EpisodeFacts | None) -> str:
        if self._config.label is not None:
            return self._config.label
        return self._label.text(recording, facts) if self._label else ""

    def _task_of(
        self, recording: Recording, facts: EpisodeFacts | None, texts: Mapping[int, str]
    ) -> str:
        _, name = requested_env(self._config)
        if name or self._task:
            return self._task.text(recording, facts) if self._task else name
        task = recording.runs[0].task
        if task in texts:
            return texts[task]
        return facts.tasks[0] if facts and len(facts.tasks) == 1 else ""

    def _report_tasks(self) -> None:
        if self._task or requested_env(self._config)[1]:
            return
        nameless = [
            episode
            for (episode, *_), outline in zip(self._order, self.episodes, strict=True)
            if not outline.task
        ]
        if nameless:
            message = f"no text for the task of episode {names_of(nameless)}"
            hint = "--task-from NAME takes the task from a column"
            self._report("metadata", "", message, "warning", hint, episodes=nameless[:10])
        changing = [
            episode
            for episode, item, _ in self._order
            if not all(run.one_task and run.task == item.runs[0].task for run in item.runs)
        ]
        if changing:
            message = (
                f"the task changes within episode {names_of(changing)}: the task of the first row"
                " is taken for all"
            )
            hint = "--task-from NAME takes the task from another column"
            self._report("adjusted", "", message, "warning", hint, episodes=changing[:10])

    def _set_success(self, index: RowIndex) -> None:
        """Find out which episodes succeeded."""
        done = [any(run.done for run in item.runs) for _, item, _ in self._order]
        said = [facts.values.get("success") if facts else None for *_, facts in self._order]
        self._success: list[bool | None] = [None] * len(self._order)
        if SUCCESS in index.columns:
            self._success = [any(run.success for run in item.runs) for _, item, _ in self._order]
        elif any(isinstance(value, bool) for value in said):
            self._success = [value if isinstance(value, bool) else None for value in said]
        elif DONE in index.columns and not all(done) and any(done):
            self._success = list(done)
            places = f"{sum(done)} of {len(done)} episodes, which count as successful"
            self._report("success", "", f"{DONE} occurs in {places}")
        elif DONE in index.columns:
            places = "every" if all(done) else "no"
            problem = "says nothing of success, which is unknown"
            self._report("success", "", f"{DONE} occurs in {places} episode and {problem}")

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN, infinity or null, or damaged bytes.
        """
        _, recording, _ = self._order[index]
        parts: dict[str, list[Any]] = {}
        for run in recording.runs:
            file, row = self._files.place(run)
            for key, values in self._files.rows(run).items():
                parts.setdefault(key, []).append(finite_rows(values, f"{file}: {key}", row))
        columns = {key: np.concatenate(values) for key, values in parts.items()}
        source = self.episodes[index].source
        if self._range and (
            finding := check_range(self.path, self._range, columns[self._action], source)
        ):
            self._range = None  # one finding per dataset
            self.findings.append(finding)
        return Episode(
            source=source,
            observations={item.name: columns[item.name] for item in self.spec.observations},
            actions=columns[self._action],
            rewards=columns[REWARD][:, 0] if self._has_rewards else None,
            success=self.succeeded(index),
        )

    def succeeded(self, index: int) -> bool | None:
        """Return whether an episode solved its task, None where the dataset does not say."""
        return self._success[index]

    def close(self) -> None:
        """Close the files."""
        self._files.close()
