"""The masks of a robomimic file: subsets of its demonstrations by name, labels and split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py

from lwdctl.core.errors import DataError
from lwdctl.core.plain_text import listed
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.checks import ReportsFindings
from lwdctl.data.files.hdf5 import location, read_array, text_of
from lwdctl.data.readers.robomimic_writer import LEVELS

SHOWN = 3
"""Number of names that a message lists before it counts the others."""


class Masks(ReportsFindings):
    """The masks of one file.

    Args:
        file: The open file; it may have no masks.
        demos: Names of its demonstrations.

    Attributes:
        findings: Masks that cannot be read, and names of demonstrations that do not exist.
    """

    def __init__(self, file: h5py.File, demos: Sequence[str]) -> None:
        self.path, self.findings = Path(file.filename), []
        self._file, self._demos = file, demos
        self._members: dict[str, frozenset[str]] = {}
        self._unreadable: dict[str, str] = {}
        group = file.get("mask", {})
        if isinstance(group, h5py.Dataset):
            self._unreadable[""] = "is not a group"
            group = {}
        known, missing = set(demos), dict[str, list[str]]()
        for name in group:
            names = self._names(group[name], name)
            missing[name] = [member for member in names if member not in known]
            if name not in self._unreadable:
                self._members[name] = frozenset(known.intersection(names))
        self._missing = missing
        self._report_problems({name: names for name, names in missing.items() if names})

    def _names(self, item: h5py.Dataset | h5py.Group, name: str) -> list[str]:
        """Return the names that a mask lists; one that lists none is set aside."""
        is_list = isinstance(item, h5py.Dataset) and len(item.shape or ()) == 1
        if not is_list or item.dtype.kind not in "SO":
            self._unreadable[name] = "is not a list of names"
            return []
        return [text_of(member).removeprefix("data/") for member in read_array(item)]

    def _report_problems(self, missing: dict[str, list[str]]) -> None:
        if self._unreadable:
            shown = [
                f"mask/{name}".rstrip("/") + f" {why}" for name, why in self._unreadable.items()
            ]
            message = f"masks are not read: {listed(shown, SHOWN)}"
            self._report("left-out", "mask", message, "warning", masks=dict(self._unreadable))
        if missing:
            gone = sorted({name for names in missing.values() for name in names})
            message = (
                f"{len(missing)} masks name {len(gone)} demonstrations that the file does not have"
                f" ({listed(gone, SHOWN)}); the other names of these masks are used"
            )
            key = f"mask/{next(iter(missing))}"
            self._report("metadata", key, message, "warning", missing=missing)

    def select(self, filter_key: str) -> list[str]:
        """Return the demonstrations of the subset `filter_key`, or all of them for "".

        Raises:
            DataError: No such subset, one that is not a list of names, or one of no demonstration.
        """
        if not filter_key:
            return list(self._demos)
        where = location(self._file, f"mask/{filter_key}")
        if filter_key in self._unreadable:
            raise DataError(f"{where}: {self._unreadable[filter_key]}")
        if filter_key not in self._members:
            hint = did_you_mean(filter_key, self._members) or "the file has no masks"
            raise DataError(f"{where}: is missing", hint)
        chosen = [demo for demo in self._demos if demo in self._members[filter_key]]
        if not chosen:
            gone = self._missing[filter_key]
            names = f"only others: {listed(gone, SHOWN)}" if gone else "it is empty"
            raise DataError(
                f"{where}: names none of the file's demonstrations ({names})",
                "leave --filter-key out to read all of them",
            )
        return chosen

    def labels(self) -> dict[str, str]:
        """Return the behavior label of each demonstration that has one.

        Labels are the masks named after operators, else `better`, `okay` and `worse`. If
        several hold a demonstration, the smallest (finest) one counts.
        """
        base = [name for name in self._members if not name.endswith(("_train", "_valid"))]
        names = [name for name in base if "operator" in name]
        names = names or [name for name in LEVELS if name in base]
        result: dict[str, str] = {}
        for name in sorted(names, key=lambda name: (-len(self._members[name]), name)):
            result.update(dict.fromkeys(self._members[name], name))
        return result

    def splits(self, filter_key: str) -> dict[str, str]:
        """Return `"train"` or `"validation"` for each demonstration that the masks assign.

        A subset's own split (`NAME_train`, `NAME_valid`) takes precedence over the file's. A
        demonstration in both masks is one of validation, so that nothing that is validated on is
        trained on; where nothing would be left to train on, the masks say nothing.
        """
        own = f"{filter_key}_train" in self._members and f"{filter_key}_valid" in self._members
        prefix = f"{filter_key}_" if filter_key and own else ""
        train = self._members.get(f"{prefix}train", frozenset())
        valid = self._members.get(f"{prefix}valid", frozenset())
        both = sorted(train & valid)
        if both:
            nothing_left = valid.issuperset(self.select(filter_key))
            done = (
                "no demonstration is left to train on, so that the masks are not used and"
                " --validation-fraction decides"
                if nothing_left
                else "they are held out for validation and not trained on"
            )
            message = (
                f"{len(both)} demonstrations are in both mask/{prefix}train and"
                f" mask/{prefix}valid ({listed(both, SHOWN)}): {done}"
            )
            self._report("split", f"mask/{prefix}valid", message, "warning", both=both)
            if nothing_left:
                return {}
        return {**dict.fromkeys(train, "train"), **dict.fromkeys(valid, "validation")}
