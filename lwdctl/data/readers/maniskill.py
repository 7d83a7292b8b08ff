"""Reader of ManiSkill's trajectory files, 2 and 3: an HDF5 file beside a JSON file.

Every group `traj_N` holds `actions` (time, action), `obs` with one row more (an array, or a group
of them), and `success`, `fail`, `terminated`, `truncated` per step. The JSON file says which task,
control mode and seed an episode has. The control mode says what the actions are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import listed
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, SourceSpec
from lwdctl.core.simulator_facts import OBSERVATION
from lwdctl.core.suggest import did_you_mean
from lwdctl.core.untrusted import read_json
from lwdctl.data.checks import (
    NonFiniteError,
    check_components,
    choose_observations,
    numeric_order,
    without_dropped,
)
from lwdctl.data.files.array_kinds import components, why_not_observed
from lwdctl.data.files.contents import ArrayEntry, Contents
from lwdctl.data.named_environments import requested_env
from lwdctl.data.reader import EPISODE_OPTIONS, EpisodeOutline
from lwdctl.data.readers.array_reader import ArrayReader
from lwdctl.data.readers.gym_envs import value_text
from lwdctl.data.readers.keyed_arrays import Hdf5Arrays

REPLAY = "python -m mani_skill.trajectory.replay_trajectory"
_TRAJECTORY = re.compile(r"traj_\d+")
_CAMERA = ("sensor_param", "camera_param")
# Modes of the Panda, whose last component commands the gripper, by the size of the action.
_PANDA = {"pd_joint_delta_pos": 8, "pd_ee_delta_pose": 7, "pd_ee_delta_pos": 4}


class ManiSkillFile(ArrayReader):
    """One trajectory file; a `FileReader`.

    The behavior label is `--label`, `--label-from`, or how the file was made (`source_type`).

    Raises:
        DataError: The structure is not ManiSkill's, or the file has no observations.
    """

    opener = Hdf5Arrays
    what = "a ManiSkill file"
    unused = (*EPISODE_OPTIONS, "terminals")

    @staticmethod
    def recognize(contents: Contents) -> str:
        """Return by what a file is recognized as ManiSkill's, or ""."""
        if contents.container != "hdf5":
            return ""
        groups = [name for name in contents.children() if _TRAJECTORY.fullmatch(name)]
        found = (f"{name}/actions" for name in groups if contents.has(f"{name}/actions"))
        return next(found, "")

    # --- structure

    def _scan(self, config: IngestConfig) -> None:
        self._action = config.action_key or "actions"
        self._metadata = self._read_json()
        self._names = self._find_trajectories()
        self._paths = self._find_observations(self._names[0])
        default = self._default_keys()
        sizes = {key: components(self._entry(path)) for key, path in self._observed().items()}
        requested = [self._known_name(key) for key in config.observation_keys]
        observations = choose_observations(
            requested or without_dropped(config.drop, default, str(self.path)),
            default,
            sizes,
            f"{self.path}: {self._names[0]}/obs",
        )
        self._check_trajectories([item.name for item in observations])
        self._rewards = self._per_step("rewards")
        self._success = self._per_step("success")
        self._describe(observations, config)
        self._note_rest([item.name for item in observations])

    def _find_trajectories(self) -> list[str]:
        """Return the groups that hold steps, in numeric order."""
        groups = sorted(
            {key.partition("/")[0] for key in self._file.arrays if _TRAJECTORY.match(key)},
            key=numeric_order,
        )
        kept: list[str] = []
        without: list[str] = []
        for name in groups:
            entry = self._file.arrays.get(f"{name}/{self._action}")
            (kept if entry is not None and entry.shape[:1] > (0,) else without).append(name)
        if not kept:
            raise self._no_actions(groups)
        if without:
            message = f"trajectories without steps: {listed(without)}"
            self._report("left-out", "", message, names=without)
        return kept

    def _no_actions(self, groups: Sequence[str]) -> DataError:
        """Return the error of a file in which no trajectory has the action key."""
        if not groups:
            return DataError(f"{self.path}: holds no group traj_N")
        prefix = f"{groups[0]}/"
        found = [key.removeprefix(prefix) for key in self._file.arrays if key.startswith(prefix)]
        parts = [key for key in found if key.startswith(f"{self._action}/")]
        if parts:
            return DataError(
                f"{self.path}: {prefix}{self._action}: is a group of {len(parts)} arrays"
                f" ({', '.join(parts)}), one per agent",
                f"--action-key {shlex.quote(parts[0])}",
            )
        where = f"{self.path}: {prefix}{self._action}"
        return DataError(f"{where}: is missing", did_you_mean(self._action, found))

    def _find_observations(self, name: str) -> dict[str, str]:
        """Return the path below a trajectory of every observation, by its name.

        Raises:
            DataError: The trajectory has none.
        """
        prefix = f"{name}/obs"
        if prefix in self._file.arrays:
            return {OBSERVATION: "obs"}
        found = {
            key.removeprefix(f"{prefix}/").replace("/", "."): key.removeprefix(f"{name}/")
            for key in self._file.arrays
            if key.startswith(f"{prefix}/")
        }
        if not found:
            raise DataError(
                f"{self.path}: {name}/obs: is missing: the file was recorded without observations"
                " (obs_mode none)",
                self._replay("--use-env-states"),
            )
        return found

    def _entry(self, path: str) -> ArrayEntry:
        return self._file.arrays[f"{self._names[0]}/{path}"]

    def _observed(self) -> dict[str, str]:
        """Return the observations that are numbers, by name."""
        return {key: path for key, path in self._paths.items() if self._entry(path).is_numeric}

    def _why_not(self, key: str) -> str:
        """Return why an observation is not among the default ones, or ""."""
        path = self._paths[key]
        if any(part in _CAMERA for part in path.split("/")):
            return "camera parameters"
        missing = [name for name in self._names if f"{name}/{path}" not in self._file.arrays]
        if missing:
            return f"missing in {listed(missing)}"
        return why_not_observed(path, self._entry(path))

    def _default_keys(self) -> tuple[str, ...]:
        default = tuple(key for key in self._paths if not self._why_not(key))
        if not default:
            raise DataError(
                f"{self.path}: {self._names[0]}/obs: holds no low-dimensional observation:"
                f" {listed([f'{key} ({self._why_not(key)})' for key in self._paths])}",
                self._replay("--use-env-states"),
            )
        return default

    def _replay(self, option: str) -> str:
        """Return the command that replays the trajectories into a file with states observed."""
        return f"{REPLAY} --traj-path {shlex.quote(str(self.path))} {option} -o state --save-traj"

    def _known_name(self, key: str) -> str:
        """Return an observation's name where the user gave its path (`agent/qpos`)."""
        return key.removeprefix("obs/").replace("/", ".") if key not in self._paths else key

    def _check_trajectories(self, observations: Sequence[str]) -> None:
        """Check every trajectory's shapes against each other and the first one."""
        size = components(self._entry(self._action))
        self._final = True
        for name in self._names:
            actions = self._file.arrays[f"{name}/{self._action}"]
            where = f"{self.path}: {name}"
            if not actions.is_numeric or len(actions.shape) != 2:
                raise DataError(f"{where}/{self._action}: has shape {actions.shape}, not 2 axes")
            check_components(components(actions), size, f"{where}/{self._action}")
            steps = actions.shape[0]
            for key in observations:
                path = self._paths[key]
                entry = self._file.arrays.get(f"{name}/{path}")
                if entry is None or not entry.is_numeric or not entry.shape:
                    raise DataError(f"{where}/{path}: is missing, or holds no rows of numbers")
                if entry.shape[0] not in (steps, steps + 1):
                    raise DataError(
                        f"{where}/{path}, row {min(entry.shape[0], steps + 1)}: has"
                        f" {entry.shape[0]} rows, expected {steps + 1} (one more than actions)"
                    )
                self._final &= entry.shape[0] == steps + 1
                first = components(self._entry(path))
                check_components(components(entry), first, f"{where}/{path}")
        if not self._final:
            self._report("adjusted", "", "observations have no row after the last action")

    def _per_step(self, name: str) -> str:
        """Return the name of an array of one finite number per step in all trajectories, or ""."""
        for group in self._names:
            entry = self._file.arrays.get(f"{group}/{name}")
            steps = self._file.arrays[f"{group}/{self._action}"].shape[0]
            if entry is None or not entry.is_numeric or entry.shape not in ((steps,), (steps, 1)):
                found = "is missing" if entry is None else f"has shape {entry.shape}"
                self._report("left-out", "", f"{name}: {found} in {group}: none is read")
                return ""
            try:
                finite = np.isfinite(self._file.rows(f"{group}/{name}")).all()
            except NonFiniteError:
                finite = False
            if not finite:
                problem = f"holds NaN or infinity, or was never written, in {group}"
                self._report("left-out", "", f"{name}: {problem}: none is read")
                return ""
        return name

    # --- metadata

    def _read_json(self) -> dict[str, Any]:
        """Return the content of the JSON file beside this one, {} where there is none."""
        beside = self.path.with_suffix(".json")
        try:
            found = read_json(beside, DataError, allow_nan=True)
            problem = f"{beside}: is not a JSON object"
        except DataError as error:
            found, problem = None, error.message
        if isinstance(found, dict):
            return found
        message = f"{problem}; task, control mode and seeds are unknown"
        self._report("metadata", "", message, "warning")
        return {}

    def _env_info(self) -> dict[str, Any]:
        found = self._metadata.get("env_info")
        return found if isinstance(found, dict) else {}

    def _episode_fields(self) -> dict[str, dict[str, Any]]:
        """Return what the JSON file says of every trajectory, by its group."""
        entries = self._metadata.get("episodes")
        entries = entries if isinstance(entries, list) else []
        fields = {
            f"traj_{item.get('episode_id')}": item for item in entries if isinstance(item, dict)
        }
        if self._metadata:
            unknown = [name for name in self._names if name not in fields]
            absent = [name for name in fields if f"{name}/{self._action}" not in self._file.arrays]
            for names, what in ((unknown, "are not in the JSON file"), (absent, "are only there")):
                if names:
                    message = f"{len(names)} trajectories {what}: {listed(names)}"
                    self._report("metadata", "", message, "warning", names=names[:100])
        return fields

    def _describe(self, observations: Any, config: IngestConfig) -> None:
        """Set the specification and the outlines."""
        env_info, self._fields = self._env_info(), self._episode_fields()
        adapter, requested = requested_env(config)
        task = requested or str(env_info.get("env_id") or "")
        column, label = None, config.label
        if label is None:
            column, label = config.label_from, str(self._metadata.get("source_type") or "")
        self.episodes = [
            EpisodeOutline(
                name,
                self._file.arrays[f"{name}/{self._action}"].shape[0],
                self._text(config.task_from, "--task-from", name, task),
                self._text(column, "--label-from", name, label),
                seed=_seed(self._fields.get(name, {})),
            )
            for name in self._names
        ]
        self._check_fields()
        limit = env_info.get("max_episode_steps")
        steps = limit if isinstance(limit, int) and limit > 0 else 0
        kwargs = env_info.get("env_kwargs")
        settings = {key: env_info[key] for key in ("env_id", "env_kwargs") if env_info.get(key)}
        self.spec = SourceSpec(
            observations=observations,
            action=self._describe_action(config, kwargs if isinstance(kwargs, dict) else {}),
            env=EnvSpec(
                adapter,
                tuple(dict.fromkeys(item.task for item in self.episodes if item.task)),
                settings,
                config.max_steps or steps,
            ),
            labels=(),
            source_format="maniskill",
        )

    def _text(self, field: str | None, option: str, name: str, default: str) -> str:
        """Return a field of a trajectory as text, `default` where none is requested."""
        if not field:
            return default
        known: dict[str, Any] = {
            key: value
            for key, value in {
                **self._file.attributes(name),
                **self._env_info(),
                **{key: self._metadata.get(key) for key in ("source_type", "source_desc")},
                **self._fields.get(name, {}),
            }.items()
            if isinstance(value, str | bytes | int | float | np.generic)
        }
        if field not in known:
            raise DataError(
                f"{self.path}: {option}: trajectory {name} has no field '{field}'",
                did_you_mean(field, known),
            )
        return value_text(known[field])

    def _check_fields(self) -> None:
        """Compare what the JSON file says of the trajectories with their rows."""
        steps, outcomes = [], []
        for item in self.episodes:
            said = self._fields.get(item.source, {})
            if said.get("elapsed_steps", item.length) != item.length:
                steps.append(item.source)
            outcome = said.get("success")
            is_known = self._success and isinstance(outcome, bool)
            if is_known and outcome != self._ended_well(item.source):
                outcomes.append(item.source)
        for names, what in ((steps, "elapsed_steps"), (outcomes, "success")):
            if names:
                message = (
                    f"{what} of {len(names)} trajectories contradicts their rows: {listed(names)};"
                    " the rows are trusted"
                )
                self._report("metadata", "", message, "warning", names=names[:100])

    def _ended_well(self, name: str) -> bool:
        return bool(self._file.rows(f"{name}/{self._success}")[-1])

    def _describe_action(self, config: IngestConfig, env_kwargs: Mapping[str, Any]) -> ActionSpec:
        """Describe the actions by the control mode."""
        found = (self._fields.get(name, {}).get("control_mode") for name in self._names)
        modes = sorted({mode for mode in found if isinstance(mode, str) and mode})
        if len(modes) > 1:
            raise DataError(
                f"{self.path}: trajectories have different control modes ({', '.join(modes)})",
                self._replay(f"-c {modes[0]}"),
            )
        mode = modes[0] if modes else str(env_kwargs.get("control_mode") or "")
        size = components(self._entry(self._action))
        semantics, units = semantics_of(mode)
        if config.actions == "recorded-absolute":
            semantics, units = "absolute", "unknown"
        elif not semantics and config.actions == "delta":
            semantics, units = "delta", "unknown"
        elif not semantics:
            semantics, units = "absolute", "unknown"
            self._semantics(
                f"control mode '{mode}' does not say whether actions are targets or motions: they"
                " are stored as targets"
            )
        if "vel" in mode.split("_"):
            self._semantics(f"control mode '{mode}' commands velocities, stored as {semantics}")
        gripper: tuple[int, ...] = ()
        if semantics == "delta" and _PANDA.get(mode) == size:
            gripper = (size - 1,)
            self._report("semantics", "", f"component {size - 1} is taken for the Panda's gripper")
        if semantics == "delta":
            self._check_range(mode)
        return ActionSpec(size, semantics, units, (), (), gripper=gripper, limits="")

    def _semantics(self, message: str) -> None:
        hint = "--actions delta for motions, --actions recorded-absolute for targets"
        self._report("semantics", "", message, "warning", hint)

    def _check_range(self, mode: str) -> None:
        """Warn of motions beyond [-1, 1], to which ManiSkill's controllers of motions clip."""
        outside, total, largest = 0, 0, 0.0
        for name in self._names:
            try:
                values = np.abs(self._file.rows(f"{name}/{self._action}"))
            except NonFiniteError:  # `read` says so
                continue
            outside, total = outside + int((values > 1).sum()), total + values.size
            largest = max(largest, float(np.nanmax(values, initial=0.0)))
        if outside:
            fraction = outside / total
            self._report(
                "outside-limits",
                "",
                f"{fraction:.1%} of the action values leave [-1, 1] (the largest is"
                f" {largest:.4g}), to which ManiSkill clips motions ('{mode}')",
                "warning",
                "--action-limits=-1,1 --clip-actions",
                fraction=fraction,
                largest=largest,
            )

    def _note_rest(self, observations: Sequence[str]) -> None:
        """List what is not read, with the reason."""
        reasons: dict[str, list[str]] = {}
        for key in self._paths:
            if key not in observations:
                reasons.setdefault(self._why_not(key) or "not asked for", []).append(key)
        prefix = f"{self._names[0]}/"
        used = (self._action, *self._paths.values(), self._rewards, self._success, "rewards")
        rest = [key.removeprefix(prefix) for key in self._file.arrays if key.startswith(prefix)]
        reasons["not needed to clone"] = [key for key in rest if key not in used]
        for reason, names in reasons.items():
            if names:
                self._report("left-out", "", f"{listed(names)}: {reason}", keys=names)

    # --- reading

    def read(self, index: int) -> Episode:
        """Load one trajectory.

        Raises:
            DataError: NaN or infinity, or damaged bytes.
        """
        outline = self.episodes[index]
        name, length = outline.source, outline.length
        rows = {
            item.name: self._rows(f"{name}/{self._paths[item.name]}")
            for item in self.spec.observations
        }
        final = {key: values[length] for key, values in rows.items()} if self._final else None
        return Episode(
            source=name,
            observations={key: values[:length] for key, values in rows.items()},
            actions=self._rows(f"{name}/{self._action}"),
            rewards=self._rows(f"{name}/rewards")[:, 0] if self._rewards else None,
            final_observation=final,
            success=self.succeeded(index),
        )

    def succeeded(self, index: int) -> bool | None:
        """Return whether a trajectory ended in success, None where neither file says."""
        name = self.episodes[index].source
        if self._success:
            return self._ended_well(name)
        outcome = self._fields.get(name, {}).get("success")
        return outcome if isinstance(outcome, bool) else None


def semantics_of(mode: str) -> tuple[str, str]:
    """Return what the actions of a control mode are, and their units; "" for an unknown one.

    ManiSkill's controllers of motions and velocities take values from -1 to 1; those of targets
    take joint positions or poses as they are.
    """
    words = mode.split("_")
    if "delta" in words or ("vel" in words and not {"pos", "pose"} & set(words)):
        return "delta", "normalized"
    if "pos" in words or "pose" in words:
        return "absolute", "meters and radians" if "ee" in words else "radians"
    return "", ""


def _seed(fields: Mapping[str, Any]) -> int | None:
    """Return the seed that an episode was reset with."""
    reset = fields.get("reset_kwargs")
    for value in (
        fields.get("episode_seed"),
        reset.get("seed") if isinstance(reset, dict) else None,
    ):
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(one, int) and not isinstance(one, bool) and one >= 0:
            return one
    return None
