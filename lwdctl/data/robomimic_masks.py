"""robomimic's `mask/*` lists: subsets, behavior labels and the validation split."""

from __future__ import annotations

from collections.abc import Sequence

import h5py

from lwdctl.core.errors import DataError
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.hdf5 import dataset_at, location, read_array, text_of

LEVELS = ("better", "okay", "worse")


class Masks:
    """The masks of one file.

    Args:
        file: The open file; it may have no masks.
        demos: Names of its demonstrations.

    Raises:
        DataError: A mask is not a list of names, or names a missing demonstration.
    """

    def __init__(self, file: h5py.File, demos: Sequence[str]) -> None:
        self._file, self._demos = file, demos
        self._members: dict[str, frozenset[str]] = {}
        group = file.get("mask", {})
        if isinstance(group, h5py.Dataset):
            raise DataError(f"{location(group)}: is not a group")
        known = set(demos)
        for name in group:
            dataset = dataset_at(group, name)
            if dataset.dtype.kind not in "SO" or len(dataset.shape or ()) != 1:
                raise DataError(f"{location(dataset)}: is not a list of names")
            members = [text_of(item) for item in read_array(dataset)]
            for row, member in enumerate(members):
                if member not in known:
                    raise DataError(f"{location(dataset)}, row {row}: no demonstration '{member}'")
            self._members[name] = frozenset(members)

    def select(self, filter_key: str) -> list[str]:
        """Return the demonstrations of the subset `filter_key`, or all of them for "".

        Raises:
            DataError: No such subset.
        """
        if not filter_key:
            return list(self._demos)
        if filter_key not in self._members:
            hint = did_you_mean(filter_key, self._members) or "the file has no masks"
            raise DataError(f"{location(self._file, f'mask/{filter_key}')}: is missing", hint)
        return [demo for demo in self._demos if demo in self._members[filter_key]]

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

        A subset's own split (`NAME_train`, `NAME_valid`) takes precedence over the file's.

        Raises:
            DataError: A demonstration is in both.
        """
        own = f"{filter_key}_train" in self._members and f"{filter_key}_valid" in self._members
        prefix = f"{filter_key}_" if filter_key and own else ""
        train = self._members.get(f"{prefix}train", frozenset())
        valid = self._members.get(f"{prefix}valid", frozenset())
        both = sorted(train & valid)
        if both:
            where = location(self._file, f"mask/{prefix}valid")
            raise DataError(f"{where}: holds {both[0]}, which mask/{prefix}train holds as well")
        return {**dict.fromkeys(train, "train"), **dict.fromkeys(valid, "validation")}
