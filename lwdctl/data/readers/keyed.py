"""Readers of HDF5, zarr and npz files with keys of their own, which the user names.

The steps of all episodes lie end to end in arrays of equal length, and another array says where
episodes end (`--episode-ends`, `--lengths-key`, `--terminals-key`); or each episode is a group,
and the keys are relative to it; or the first axis of every array counts episodes, and the second
one steps. With `--terminals ignore` a file is one episode. Replay buffers of Diffusion Policy and
data sets of DPPO have default keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import Episode, FloatArray, SourceSpec
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import (
    NonFiniteError,
    check_components,
    check_rows,
    choose_observations,
    without_dropped,
)
from lwdctl.data.files.array_kinds import check_no_images, components, why_not_observed
from lwdctl.data.files.contents import UNREADABLE, ArrayEntry, Contents
from lwdctl.data.files.npz_files import NpzFile
from lwdctl.data.files.zarr_files import ZarrFile
from lwdctl.data.named_environments import describe_requested
from lwdctl.data.reader import EPISODE_OPTIONS, EpisodeOutline, check_unused
from lwdctl.data.readers.array_reader import ArrayReader
from lwdctl.data.readers.episode_bounds import (
    Bounds,
    Piece,
    bounds_of_ends,
    bounds_of_flags,
    bounds_of_lengths,
    bounds_of_stack,
    other_option,
)
from lwdctl.data.readers.flags import Rows
from lwdctl.data.readers.gym_envs import value_text
from lwdctl.data.readers.keyed_arrays import (
    FEWEST_STACKED_STEPS,
    Hdf5Arrays,
    Stack,
    StackedArrays,
    stack_of,
)
from lwdctl.data.readers.keyed_proposal import Keys, Layout, groups_with, propose
from lwdctl.data.readers.states import INITIAL_STATE, recorded_state

REWARDS = ("rewards", "reward")
SUCCESSES = ("success", "successes", "is_success")


class KeyedFile(ArrayReader):
    """One file whose arrays the user names; a `FileReader`.

    Raises:
        DataError: Keys are missing (the message lists the arrays, the hint proposes a command),
            or the arrays do not fit together.
    """

    generic = True
    format: ClassVar[str]
    what = "a file with keys of its own"
    unused = ()

    @classmethod
    def recognize(cls, contents: Contents) -> str:
        """Return how many arrays of numbers a file of the format has, "" for another file."""
        if contents.container != cls.format:
            return ""
        count = sum(item.is_numeric and bool(item.shape) for item in contents.arrays.values())
        return f"{count} arrays of numbers" if count else ""

    def _defaults(self) -> Keys:
        """Return the keys of a known layout."""
        return Keys()

    def _scan(self, config: IngestConfig) -> None:
        keys = self._requested(config)
        self._action = keys.action
        self._stack = stack_of(self._file.arrays, keys.observations, keys.action)
        if self._stack:
            self._file = StackedArrays(self._file, self._stack)
        self._pieces, self._names = self._find_pieces(keys, config)
        observations = without_dropped(config.drop, keys.observations, str(self.path))
        self._check_arrays(observations)
        self._refused: set[str] = set()
        self._rewards = self._optional(REWARDS, keys)
        if not self._rewards:
            self._report("no-rewards", "", "no rewards are read; cloning needs none")
        self._success = self._optional(SUCCESSES, keys, per_episode=True)
        self._state = self._find_states(keys)
        self._describe(observations, config)
        self._note_rest(keys)
        self.findings = [*self._file.findings, *self.findings]

    # --- which keys

    def _requested(self, config: IngestConfig) -> Keys:
        """Return the keys that the options and the layout's defaults name."""
        given = [(name, getattr(config, name)) for name in EPISODE_OPTIONS]
        given = [(name, key) for name, key in given if key]
        if len(given) > 1:
            options = " and ".join(f"--{name.replace('_', '-')}" for name, _ in given)
            raise DataError(f"{self.path}: {options}: give only one of them")
        defaults = self._defaults()
        option, key = given[0] if given else (defaults.option, defaults.key)
        keys = Keys(
            tuple(config.observation_keys) or defaults.observations,
            config.action_key or defaults.action,
            option,
            key,
        )
        says_ends = (
            keys.key
            or config.terminals == "ignore"
            or stack_of(self._file.arrays, keys.observations, keys.action)
        )
        complete = keys.observations and keys.action and says_ends
        if not complete and not (keys.observations and groups_with(self._file.arrays, keys.action)):
            raise self._incomplete(keys)
        return keys

    def _incomplete(self, keys: Keys) -> DataError:
        layout = Layout.of(self._file.arrays, keys)
        if keys.action in layout.arrays:  # no command would read actions of several axes
            self._check_vectors(keys.action, layout.arrays[keys.action])
        missing = [
            option
            for option, value in (
                ("--observation-keys", keys.observations),
                ("--action-key", keys.action),
                (
                    "one of --episode-ends, --lengths-key and --terminals-key",
                    keys.key or not layout.needs_ends,
                ),
            )
            if not value
        ]
        problems = [f"needs {', '.join(missing)}"] if missing else []
        if keys.action and keys.action not in layout.arrays:
            inside = " in its groups" if layout.groups else ""
            problems.append(f"has no array '{keys.action}'{inside}")
        return DataError(
            f"{self.path}: {' and '.join(problems)}; it holds {layout.text}",
            propose(self.format, self._file, keys),
        )

    # --- where episodes are

    def _find_pieces(self, keys: Keys, config: IngestConfig) -> tuple[list[Piece], list[str]]:
        """Return where the episodes lie, and their names."""
        groups = groups_with(self._file.arrays, keys.action)
        if not groups:
            return self._find_rows(keys, config)
        check_unused(config, self.path, "a file with a group per episode", "terminals")
        if keys.key:
            raise DataError(
                f"{self.path}: --{keys.option.replace('_', '-')}: every group with"
                f" '{keys.action}' is an episode"
            )
        pieces = [
            Piece(group, 0, self._entry(f"{group}{keys.action}").shape[0], place)
            for place, group in enumerate(groups)
        ]
        empty = [item.prefix.rstrip("/") for item in pieces if not item.stop]
        if empty:
            message = f"groups without steps: {listed(empty)}"
            self._report("left-out", "", message, groups=len(empty))
        kept = [item for item in pieces if item.stop]
        if not kept:
            raise DataError(f"{self.path}: {keys.action}: has no rows in any group")
        return kept, [item.prefix.rstrip("/") for item in kept]

    def _find_rows(self, keys: Keys, config: IngestConfig) -> tuple[list[Piece], list[str]]:
        """Find the episodes of a file whose steps lie end to end."""
        entry = self._entry(keys.action)
        self._check_vectors(keys.action, entry)
        rows = entry.shape[0]
        if not rows:
            raise DataError(f"{self.path}: {keys.action}: has no rows")
        bounds: Bounds = [Rows(0, rows)]
        if self._stack:
            bounds = self._find_stacked(self._stack, keys, config)
        elif keys.key:
            if keys.option != "terminals_key":
                check_unused(config, self.path, f"an array of {keys.key}", "terminals")
            values, where = self._bounding(keys.key), f"{self.path}: {keys.key}"
            if keys.option == "terminals_key":
                bounds, found = bounds_of_flags(values, rows, where, config.terminals)
            else:
                parse = bounds_of_ends if keys.option == "episode_ends" else bounds_of_lengths
                try:
                    bounds, found = parse(values, rows, where)
                except DataError as error:
                    hint = other_option(keys.option, keys.key, values, rows)
                    raise DataError(error.message, hint) from None
            self.findings += found
        self._bounds = bounds
        pieces = [Piece("", *bound, place) for place, bound in enumerate(bounds)]
        kept = [item for item in pieces if item.stop > item.start]
        return kept, [bounds[item.place].name for item in kept]

    def _find_stacked(self, stack: Stack, keys: Keys, config: IngestConfig) -> Bounds:
        """Return where the episodes of a file lie whose arrays have one row per episode."""
        check_unused(config, self.path, "an array of whole episodes", "terminals")
        what = f"{stack.episodes} episodes of {stack.steps} steps"
        if keys.key and keys.option != "lengths_key":
            option = f"--{keys.option.replace('_', '-')}"
            raise DataError(
                f"{self.path}: {option}: {keys.action} holds {what}: (episode, time, action)",
                f"leave {option} out; --lengths-key names the lengths of shorter episodes",
            )
        hint = "" if keys.key else "--lengths-key KEY, where some are shorter"
        message = f"the first two axes of {keys.action} and the observations are read as {what}"
        self._report("adjusted", "", message, "note", hint, episodes=stack.episodes)
        lengths = np.full(stack.episodes, stack.steps)
        if keys.key:
            lengths = self._bounding(keys.key)
            check_rows(len(lengths), stack.episodes, f"{self.path}: {keys.key}", keys.action)
        bounds, found = bounds_of_stack(lengths, stack.steps, f"{self.path}: {keys.key}")
        self.findings += found
        return bounds

    def _bounding(self, key: str) -> npt.NDArray[Any]:
        """Return the array that says where episodes end."""
        self._entry(key)
        self._file.open((), (key,))
        return self._file.rows(key)

    def _entry(self, key: str) -> ArrayEntry:
        """Return what is declared of an array of numbers with at least one axis."""
        entry = self._file.arrays.get(key)
        if entry is None:
            raise DataError(f"{self.path}: no array '{key}'", did_you_mean(key, self._file.arrays))
        if entry.dtype == UNREADABLE:
            raise DataError(f"{self.path}: {key}: is damaged: its declaration cannot be read")
        if not entry.is_numeric:
            raise DataError(f"{self.path}: {key}: holds {entry.dtype}, not numbers")
        if not entry.shape:
            raise DataError(f"{self.path}: {key}: is a single number, not one row per step")
        return entry

    # --- what they hold

    def _check_arrays(self, observations: Sequence[str]) -> None:
        """Check the arrays of every episode against each other, and open them."""
        first = self._pieces[0].prefix
        self._sizes = {key: self._size(f"{first}{key}", key) for key in observations}
        self._action_size = components(self._entry(f"{first}{self._action}"))
        self._check_action(f"{first}{self._action}")
        self._final = True
        for prefix in self._prefixes():
            action = self._entry(f"{prefix}{self._action}")
            where = f"{self.path}: {prefix}"
            check_components(components(action), self._action_size, f"{where}{self._action}")
            for key, size in self._sizes.items():
                entry = self._entry(f"{prefix}{key}")
                found, expected = entry.shape[0], action.shape[0]
                self._final &= bool(prefix) and found == expected + 1
                if not prefix or found != expected + 1:
                    check_rows(found, expected, f"{where}{key}", self._action)
                check_components(components(entry), size, f"{where}{key}")
            self._file.open([f"{prefix}{key}" for key in (*self._sizes, self._action)])

    def _prefixes(self) -> list[str]:
        """Return the groups of the episodes; in a flat file all are in the same one, ""."""
        return list(dict.fromkeys(piece.prefix for piece in self._pieces))

    def _size(self, key: str, name: str) -> int:
        """Return the components of an observation, refusing images."""
        if key not in self._file.arrays:
            group = key.removesuffix(name)
            known = [
                item.removeprefix(group) for item in self._file.arrays if item.startswith(group)
            ]
            raise DataError(f"{self.path}: no observation '{name}'", did_you_mean(name, known))
        entry = self._entry(key)
        hint = "leave it out of --observation-keys"
        check_no_images(entry, f"{self.path}: {key}", hint)
        self._report_shape(name, entry)
        return components(entry)

    def _check_action(self, key: str) -> None:
        entry = self._entry(key)
        whole = np.dtype(entry.dtype).kind in "iub"
        if whole and len(entry.shape) == 1:
            raise DataError(
                f"{self.path}: {key}: holds one whole number ({entry.dtype}) per step: discrete"
                " actions, which are not regressed"
            )
        if whole:
            message = f"{key}: whole numbers ({entry.dtype}) are stored as if they were continuous"
            self._report("discrete", "", message, "warning")
        self._check_vectors(key, entry)
        self._report_shape(key, entry)

    def _check_vectors(self, key: str, entry: ArrayEntry) -> None:
        """Refuse rows with an axis that may be time; a shorter one may be the arms of a robot."""
        if max(entry.shape[1:-1], default=1) >= FEWEST_STACKED_STEPS:
            raise DataError(
                f"{self.path}: {key}: has shape {entry.shape}, expected (time, action)",
                "store its rows as vectors: ARRAY.reshape(len(ARRAY), -1); or, where its axes are"
                " (episode, time, action), give all observations as many episodes and steps, at"
                f" least {FEWEST_STACKED_STEPS} steps",
            )

    def _report_shape(self, name: str, entry: ArrayEntry) -> None:
        """Say where rows are no vectors and become such."""
        if len(entry.shape) != 2:
            shape = entry.shape[1:]
            message = f"{name}: rows of shape {shape} become {components(entry)} components"
            self._report("adjusted", "", message, keys=[name])

    def _optional(self, names: Sequence[str], keys: Keys, *, per_episode: bool = False) -> str:
        """Return the name of an array beside the actions that can be read, or ""."""
        for key in self._beside(keys, names):
            if f"{self._pieces[0].prefix}{key}" not in self._file.arrays:
                continue
            reason = self._why_not(key, per_episode=per_episode)
            if not reason:
                self._report("read", "", f"{key} is read beside the observations", keys=[key])
                return key
            self._report("left-out", "", f"{key}: {reason}", keys=[key])
            self._refused.add(key)
        return ""

    def _beside(self, keys: Keys, names: Sequence[str]) -> list[str]:
        """Return the keys that arrays of these names have beside the actions, and at the top."""
        parent = "" if self._pieces[0].prefix else keys.action.rpartition("/")[0]
        places = dict.fromkeys((f"{parent}/" if parent else "", ""))
        return [f"{place}{name}" for place in places for name in names]

    def _find_states(self, keys: Keys) -> str:
        """Return the key of the states in which episodes begin, "" where there are none to read."""
        arrays, first = self._file.arrays, self._pieces[0].prefix
        for key in self._beside(keys, (INITIAL_STATE,)):
            places = [f"{prefix}{key}" for prefix in self._prefixes()]
            held = [arrays[place] for place in places if place in arrays]
            value = self._file.attributes(first).get(key) if first and not held else None
            if not held and value is None:
                continue
            odd = [f"{item.shape} of {item.dtype}" for item in held if not self._is_state(item)]
            if not held and recorded_state(value) is None:
                odd = ["no numbers"]
            if not odd:
                message = f"{key} is read as the state in which an episode begins"
                self._report("read", "", message, keys=[key])
                return key
            message = f"{key}: holds {odd[0]}, not one state per episode"
            self._report("left-out", "", message, keys=[key])
            self._refused.add(key)
        return ""

    def _is_state(self, entry: ArrayEntry) -> bool:
        """Return whether an array has one state, or in a file without groups one per episode."""
        if self._pieces[0].prefix:
            return entry.is_numeric and len(entry.shape) < 2
        rows = entry.shape[:1] == (len(self._bounds),)
        return entry.is_numeric and rows and len(entry.shape) <= 2

    def _why_not(self, key: str, *, per_episode: bool) -> str:
        """Return why an array of one number per step is not read, "" if it can be."""
        for prefix in self._prefixes():
            entry = self._file.arrays.get(f"{prefix}{key}")
            rows = self._file.arrays[f"{prefix}{self._action}"].shape[0]
            counts = (rows, 1 if prefix else len(self._bounds)) if per_episode else (rows,)
            if entry is None:
                return f"is missing in {prefix.rstrip('/')}"
            found = entry.shape[0] if entry.shape else 1
            if not entry.is_numeric or components(entry) != 1 or found not in counts:
                return f"has shape {entry.shape} of {entry.dtype}, not one number per step"
            try:
                self._file.open((), (f"{prefix}{key}",))
                values = self._file.rows(f"{prefix}{key}")
            except DataError as error:
                return f"cannot be read ({error.message})"
            if not np.isfinite(values).all():
                return "holds NaN or infinity"
        return ""

    def _describe(self, observations: Sequence[str], config: IngestConfig) -> None:
        """Set the specification and the outlines."""
        action, env, found = describe_requested(config, self._action_size, str(self.path))
        self.findings += found
        column = config.label_from if config.label is None else None
        labels = self._texts(column, "--label-from", config.label or "")
        tasks = self._texts(config.task_from, "--task-from", "".join(env.tasks[:1]))
        self.episodes = [
            EpisodeOutline(name, piece.stop - piece.start, task, label)
            for name, piece, task, label in zip(
                self._names, self._pieces, tasks, labels, strict=True
            )
        ]
        env = replace(env, tasks=tuple(dict.fromkeys(filter(None, tasks))))
        self.spec = SourceSpec(
            observations=choose_observations(
                observations, observations, self._sizes, str(self.path)
            ),
            action=action,
            env=env,
            labels=(),
            source_format=self.format,
        )

    def _texts(self, name: str | None, option: str, default: str) -> list[str]:
        """Return per episode the text of an attribute or array, `default` if none is named."""
        if not name:
            return [default] * len(self._pieces)
        return [self._text(name, option, piece) for piece in self._pieces]

    def _text(self, name: str, option: str, piece: Piece) -> str:
        attributes = self._file.attributes(piece.prefix) if piece.prefix else {}
        if name in attributes:
            return self._as_text(attributes[name], name, option)
        key = f"{piece.prefix}{name}"
        if not self._is_column(key, piece):
            names = [item for item in self._file.arrays if self._is_column(item, piece)]
            raise DataError(
                f"{self.path}: {option}: no attribute or array '{key}' with one value per step or"
                " per episode",
                did_you_mean(
                    name,
                    [*(item.removeprefix(piece.prefix) for item in names),
                     *attributes],
                ),
            )  # fmt: skip
        self._file.open((), (key,))
        shape = self._file.arrays[key].shape
        per_step = bool(shape) and shape[0] == self._rows_of(piece)
        row = piece.start if per_step else (0 if piece.prefix else piece.place)
        return self._as_text(self._file.rows(key, row, row + 1), name, option)

    def _as_text(self, value: Any, name: str, option: str) -> str:
        try:
            return value_text(np.asarray(value))
        except ValueError:
            raise DataError(
                f"{self.path}: {option}: '{name}' holds several values, expected one"
            ) from None

    def _rows_of(self, piece: Piece) -> int:
        return self._file.arrays[f"{piece.prefix}{self._action}"].shape[0]

    def _is_column(self, key: str, piece: Piece) -> bool:
        """Return whether an array has one value per step or per episode."""
        entry = self._file.arrays.get(key)
        if entry is None or not key.startswith(piece.prefix):
            return False
        counts = (self._rows_of(piece), 1 if piece.prefix else len(self._bounds))
        return components(entry) == 1 and (entry.shape or (1,))[0] in counts

    def _note_rest(self, keys: Keys) -> None:
        """List the arrays that are not read, with the reason."""
        used = {
            *keys.observations,
            keys.action,
            keys.key,
            self._rewards,
            self._success,
            self._state,
        }
        used |= self._refused
        first, prefixes = self._pieces[0].prefix, set(self._prefixes())
        reasons: dict[str, list[str]] = {}
        for key, entry in self._file.arrays.items():
            parents = (key[: place + 1] for place, letter in enumerate(key) if letter == "/")
            prefix = next((parent for parent in parents if parent in prefixes), "")
            if key.removeprefix(prefix) in used or prefix not in ("", first):
                continue
            reason = why_not_observed(key, entry) or "not asked for"
            reasons.setdefault(reason, []).append(key.removeprefix(prefix))
        for reason, names in reasons.items():
            self._report("left-out", "", f"{listed(names)}: {reason}", keys=names[:100])

    # --- reading

    def read(self, index: int) -> Episode:
        """Load one episode.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        piece = self._pieces[index]
        names = [item.name for item in self.spec.observations]
        stop = piece.stop + 1 if self._final else piece.stop
        rows = {key: self._values(piece, key, stop) for key in names}
        length = piece.stop - piece.start
        rewards = self._values(piece, self._rewards, piece.stop)[:, 0] if self._rewards else None
        return Episode(
            source=self._names[index],
            observations={key: values[:length] for key, values in rows.items()},
            actions=self._values(piece, self._action, piece.stop),
            rewards=rewards,
            final_observation=(
                {key: values[length] for key, values in rows.items()} if self._final else None
            ),
            initial_state=self._initial_state(piece),
            success=self.succeeded(index),
        )

    def _initial_state(self, piece: Piece) -> npt.NDArray[np.float64] | None:
        """Return the state in which an episode begins, None where none is recorded."""
        key, value = f"{piece.prefix}{self._state}", None
        if self._state and key in self._file.arrays:
            rows = (0, None) if piece.prefix else (piece.place, piece.place + 1)
            self._file.open((), (key,))
            value = self._file.rows(key, *rows)
        elif self._state:
            value = self._file.attributes(piece.prefix).get(self._state)
        return None if value is None else recorded_state(value)

    def _values(self, piece: Piece, key: str, stop: int) -> FloatArray:
        """Return rows (time, size) of an array of an episode as finite float32."""
        try:
            return self._rows(f"{piece.prefix}{key}", piece.start, stop)
        except NonFiniteError as error:
            if not self._stack:
                raise
            raise NonFiniteError(
                f"{error.message}; it is a row of episode {piece.place}, as the"
                f" {self._stack.steps} steps of every episode are counted one after the other",
                f"{error.hint}; --lengths-key KEY, where an array holds the lengths of episodes,"
                " leaves out what follows them",
            ) from None

    def succeeded(self, index: int) -> bool | None:
        """Return whether a step or the episode is marked as successful, None without marks."""
        if not self._success:
            return None
        piece = self._pieces[index]
        key = f"{piece.prefix}{self._success}"
        shape = self._file.arrays[key].shape
        if piece.prefix or shape[0] == self._rows_of(piece):
            return bool(np.any(self._file.rows(key, piece.start, piece.stop)))
        return bool(self._file.rows(key, piece.place, piece.place + 1).any())


class KeyedHdf5(KeyedFile):
    """An HDF5 file with keys of its own."""

    format = "hdf5"
    opener = Hdf5Arrays


class KeyedZarr(KeyedFile):
    """A zarr store with keys of its own; Diffusion Policy's replay buffers have default keys.

    They are `data/action`, `meta/episode_ends`, and the other low-dimensional arrays of `data`.
    """

    format = "zarr"
    opener = ZarrFile

    @classmethod
    def recognize(cls, contents: Contents) -> str:
        """Return by what a zarr store is recognized, "" for another file."""
        if contents.container == "zarr" and contents.has("data/action", "meta/episode_ends"):
            return "data/action and meta/episode_ends of a replay buffer"
        return super().recognize(contents)

    def _defaults(self) -> Keys:
        arrays = self._file.arrays
        if "data/action" not in arrays or "meta/episode_ends" not in arrays:
            return Keys()
        rows = arrays["data/action"].shape[:1]
        observations = [
            key
            for key, entry in arrays.items()
            if key.startswith("data/")
            and key != "data/action"
            and entry.shape[:1] == rows
            and not why_not_observed(key, entry)
        ]
        return Keys(tuple(observations), "data/action", "episode_ends", "meta/episode_ends")


class KeyedNpz(KeyedFile):
    """An npz file with keys of its own."""

    format = "npz"
    opener = NpzFile
