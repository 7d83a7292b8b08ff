"""What robomimic's `mask/*` lists say: subsets, behavior labels and the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py

from lwdctl.core.errors import DataError
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.hdf5_guard import dataset_at, read_array, text_of

LEVELS = ("better", "okay", "worse")

Masks = Mapping[str, frozenset[str]]


def read_masks(file: h5py.File, demos: Sequence[str], path: Path) -> Masks:
    """Return mask name to demonstration names; {} when the file has no masks.

    Raises:
        DataError: A mask that is not a list of names, or names a missing demonstration.
    """
    group = file.get("mask")
    if group is None:
        return {}
    if not isinstance(group, h5py.Group):
        raise DataError(f"{path}: mask: is not a group")
    known = set(demos)
    masks: dict[str, frozenset[str]] = {}
    for name in group:
        dataset = dataset_at(group, name, path)
        if dataset.dtype.kind not in "SO" or len(dataset.shape or ()) != 1:
            raise DataError(f"{path}: mask/{name}: is not a list of names")
        members = [text_of(item) for item in read_array(dataset, path)]
        for row, member in enumerate(members):
            if member not in known:
                raise DataError(f"{path}: mask/{name}, row {row}: no demonstration '{member}'")
        masks[name] = frozenset(members)
    return masks


def select(demos: Sequence[str], masks: Masks, filter_key: str, path: Path) -> list[str]:
    """Return the demonstrations of the subset `filter_key`, or all of them for "".

    Raises:
        DataError: No such subset.
    """
    if not filter_key:
        return list(demos)
    if filter_key not in masks:
        hint = did_you_mean(filter_key, masks) or "the file has no masks"
        raise DataError(f"{path}: mask/{filter_key}: is missing", hint)
    return [demo for demo in demos if demo in masks[filter_key]]


def labels(masks: Masks) -> dict[str, str]:
    """Return the behavior label of each demonstration that has one.

    Labels are the masks named after operators, else `better`, `okay` and `worse`. Where
    several hold a demonstration, the smallest (finest) one counts.
    """
    base = [name for name in masks if not name.endswith(("_train", "_valid"))]
    names = [name for name in base if "operator" in name]
    names = names or [name for name in LEVELS if name in base]
    result: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (-len(masks[name]), name)):
        result.update(dict.fromkeys(masks[name], name))
    return result


def splits(masks: Masks, filter_key: str, path: Path) -> dict[str, str]:
    """Return `"train"` or `"validation"` for each demonstration the masks assign.

    A subset's own split (`NAME_train`, `NAME_valid`) goes before the file's.

    Raises:
        DataError: A demonstration in both.
    """
    own = f"{filter_key}_train" in masks and f"{filter_key}_valid" in masks
    prefix = f"{filter_key}_" if filter_key and own else ""
    train = masks.get(f"{prefix}train", frozenset())
    valid = masks.get(f"{prefix}valid", frozenset())
    both = sorted(train & valid)
    if both:
        raise DataError(
            f"{path}: mask/{prefix}valid: holds {both[0]}, which mask/{prefix}train holds as well"
        )
    return {**dict.fromkeys(train, "train"), **dict.fromkeys(valid, "validation")}
