"""Random changes of the layout of a file: names, shapes, types, missing and additional parts.

Each container has a function that applies one `Mutation` to it. The result is a file that its
library wrote, as it may come from anybody; `damage.py` damages bytes instead.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from hypothesis import strategies as st

NAMES = (
    "obs", "actions", "observations", "observation.state", "data", "meta", "episode_ends", "action",
    "rewards", "dones", "terminals", "timeouts", "next_obs", "states", "infos", "mask", "reward",
    "demo_0", "demo_2", "demo_", "demo_x", "demo_-1", "demo_1e3", "demo_99999999999999999999",
    "episode_3", "episode_", "episode_-7", "episode_x", "traj_0", "qpos", "qvel", "index",
    "x" * 300, "a b", "tab\t", "line\nbreak", "ünï", "🤖", "%s{0}", "..", "-", "1", "00", "~",
)  # fmt: skip
KINDS = ("f2", "f4", ">f8", "i1", "u1", "i8", "u8", "?", "c8", "S5", "U3")
SHAPES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda rows: rows[:-1],
    lambda rows: rows[:1],
    lambda rows: rows[:0],
    lambda rows: rows[..., :1],
    lambda rows: rows[..., :0],
    lambda rows: rows[..., 0],
    lambda rows: rows[:, None],
    lambda rows: rows[None],
    lambda rows: rows.T,
    lambda rows: rows.reshape(-1),
    lambda rows: np.concatenate([rows, rows[-1:]]),
    lambda rows: np.concatenate([rows, rows], axis=-1),
    lambda rows: rows.reshape(-1)[:1].reshape(()),
    lambda rows: rows[::-1],
)
VALUES: tuple[Any, ...] = (
    float("nan"), float("inf"), 1e300, -1.0, 0.0, 1.0, 0.5, 2.0**53, -(2.0**63), 255.0,
)  # fmt: skip
JSONS: tuple[Any, ...] = (
    None, True, -1, 0, 3, 2**70, 0.5, 1e308, "", "x", "../../x", [], [1], ["a"], {}, {"a": {}},
    [[]],
)  # fmt: skip
TEXTS = ("", "{", "null", "[]", "1", '{"type": []}', '{"env_kwargs": 3}', "ü", '{"env_name": {}}')


@dataclass(frozen=True)
class Mutation:
    """One change: what is done, to which of the parts, and which of the choices it takes."""

    operation: int
    target: int
    choice: int

    def of(self, options: Any) -> Any:
        """Return one of several options, by `choice`."""
        return options[self.choice % len(options)]

    def part(self, parts: list[Any]) -> Any:
        """Return one of the parts, by `target`."""
        return parts[self.target % len(parts)]


MUTATIONS = st.lists(
    st.builds(Mutation, st.integers(0, 99), st.integers(0, 999), st.integers(0, 999)),
    min_size=1, max_size=3,
)  # fmt: skip


def changed(values: np.ndarray, mutation: Mutation) -> np.ndarray | None:
    """Return an array with another shape, type or values; None where that is impossible."""
    try:
        with np.errstate(all="ignore"):
            if mutation.operation % 3 == 0:
                return np.ascontiguousarray(mutation.of(SHAPES)(values))
            if mutation.operation % 3 == 1:
                return values.astype(mutation.of(KINDS))
            copy = values.copy()
            copy.reshape(-1)[mutation.target % max(copy.size, 1) :: 7] = mutation.of(VALUES)
            return copy
    except (IndexError, ValueError, TypeError, OverflowError):
        return None


# HDF5


def mutate_hdf5(path: Path, mutation: Mutation) -> None:
    """Change one group, array or attribute of an HDF5 file."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        if not names:
            return
        name = mutation.part(names)
        operation = _HDF5[mutation.operation % len(_HDF5)]
        operation(file, name, mutation)


def _delete(file: h5py.File, name: str, _: Mutation) -> None:
    del file[name]


def _rename(file: h5py.File, name: str, mutation: Mutation) -> None:
    file.move(name, f"{name.rpartition('/')[0]}/{mutation.of(NAMES)}")


def _add(file: h5py.File, name: str, mutation: Mutation) -> None:
    file.copy(name, f"{name.rpartition('/')[0]}/{mutation.of(NAMES)}")


def _replace(file: h5py.File, name: str, mutation: Mutation) -> None:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.dtype.kind == "O" or item.shape is None:
        return
    values = changed(item[()], mutation)
    if values is None:
        return
    attributes = dict(item.attrs)
    del file[name]
    if values.dtype.kind == "U":
        values = values.astype(h5py.string_dtype())
    chunked = mutation.choice % 2 and values.ndim and values.size
    options = {"chunks": True, "compression": "gzip"} if chunked else {}
    file.create_dataset(name, data=values, **options).attrs.update(attributes)


def _strange(file: h5py.File, name: str, mutation: Mutation) -> None:
    """Put something that is no array of numbers in the place of a part."""
    rows = np.arange(6.0)
    del file[name]
    vlen = np.empty(6, object)
    vlen[:] = [np.arange(n, dtype="f4") for n in range(6)]
    mutation.of(
        (
            lambda: file.create_group(name),
            lambda: file.create_dataset(name, data=h5py.Empty("f4")),
            lambda: file.create_dataset(name, data="text"),
            lambda: file.create_dataset(name, data=vlen, dtype=h5py.vlen_dtype("f4")),
            lambda: file.create_dataset(name, data=np.array([(1, 2.0)] * 6, "i4,f4")),
            lambda: file.create_dataset(name, (6,), np.dtype(("f4", (3,)))),
            lambda: file.create_dataset(name, (6,), h5py.ref_dtype),
            lambda: file.create_dataset(name, (6, 2), h5py.enum_dtype({"a": 0, "b": 1}, "i1")),
            lambda: file.create_dataset(name, data=np.void(b"bytes")),
            lambda: file.create_dataset(name, (6, 10**7), "f8", chunks=(1, 1000)),
            lambda: file.create_dataset(name, data=rows, maxshape=(None,), chunks=(1,)),
            lambda: file.__setitem__(name, h5py.SoftLink("/")),
            lambda: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
            lambda: file.__setitem__(name, h5py.ExternalLink("none.hdf5", "/")),
            lambda: file.__setitem__(name, file["/"]),
            lambda: file.__setitem__(name, np.dtype("f4")),
        )
    )()


def _attribute(file: h5py.File, name: str, mutation: Mutation) -> None:
    """Change an attribute that some part has, or delete it."""
    owners = [item for item in ("/", *_paths(file)) if file[item].attrs]
    if not owners:
        _new_attribute(file, name, mutation)
        return
    attributes = file[mutation.part(owners)].attrs
    key = mutation.part(list(attributes))
    _set_attribute(attributes, key, mutation)


def _new_attribute(file: h5py.File, name: str, mutation: Mutation) -> None:
    keys = ("num_samples", "env_args", "total_steps", "seed", "id", "operator", "task", "success",
            "model_file", "label", "total", "ep_meta", "problem_info", "env", "ü")  # fmt: skip
    _set_attribute(file[name].attrs, keys[mutation.target % len(keys)], mutation)


def _set_attribute(attributes: Any, key: str, mutation: Mutation) -> None:
    vlen = np.empty(2, object)
    vlen[:] = [np.arange(2), np.arange(3)]
    options = (
        None, h5py.Empty("S1"), h5py.Empty("f4"), np.bytes_(b"\xff\xfe"), np.float64("nan"), -1,
        np.uint64(2**64 - 1), np.arange(3), np.zeros((0,)), np.array(["a", "b"], object), True,
        np.array([(1, 2.0)], "i4,f4"), np.complex64(1j), vlen, 0, 10**6, *TEXTS,
    )  # fmt: skip
    value = mutation.of(options)
    if value is None:
        attributes.pop(key, None)
    elif value is vlen:
        attributes.create(key, value, dtype=h5py.vlen_dtype("i8"))
    else:
        attributes[key] = value


def _odd_bytes(file: h5py.File, name: str, mutation: Mutation) -> None:
    """Rename a part to bytes that are no UTF-8."""
    odd = mutation.of((b"\xff", b"demo_\xe9", b"episode_\xc3"))
    parent = file[name.rpartition("/")[0] or "/"]
    parent.id.links.move(name.rpartition("/")[2].encode(), odd)


def _paths(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return found


_HDF5 = (
    _delete, _rename, _add, _replace, _replace, _replace, _strange, _attribute, _attribute,
    _new_attribute, _odd_bytes,
)  # fmt: skip


# zarr


def mutate_zarr(path: Path, mutation: Mutation) -> None:
    """Change one array, group or file of a zarr directory."""
    group = zarr.open_group(path, mode="a")
    arrays = sorted(name for name, item in group.members(max_depth=None) if hasattr(item, "shape"))
    if not arrays:
        return
    name, version = mutation.part(arrays), group.metadata.zarr_format
    place = path / name
    operation = mutation.operation % 8
    if operation == 0:
        shutil.rmtree(place)
    elif operation == 1:
        target = place.with_name(mutation.of([item for item in NAMES if len(item) < 200]))
        if not target.exists():
            place.rename(target)
    elif operation in (2, 3, 4):
        values = changed(group[name][...], mutation)
        if values is not None:
            _write_zarr(group, name, values, mutation)
    elif operation == 5:
        chunks = [item for item in place.rglob("*") if item.is_file() and item.name[0].isdigit()]
        for chunk in chunks[: 1 + mutation.choice % 2]:
            chunk.unlink()
    elif operation == 6:
        shutil.rmtree(place)
        group.create_group(name) if mutation.choice % 2 else place.write_text("no array")
    else:
        mutate_json(place / ("zarr.json" if version == 3 else ".zarray"), mutation)


def _write_zarr(group: zarr.Group, name: str, values: np.ndarray, mutation: Mutation) -> None:
    chunks = tuple(max(1, min(size, 1 + mutation.target % 40)) for size in values.shape)
    codecs: dict[str, Any] = mutation.of(({}, {"compressors": None}))
    group.create_array(name, data=values, chunks=chunks, overwrite=True, **codecs)


# npz


def mutate_npz(path: Path, mutation: Mutation) -> None:
    """Change one array of an npz file."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if not arrays:
        return
    name, operation = mutation.part(sorted(arrays)), mutation.operation % 6
    if operation == 0:
        del arrays[name]
    elif operation == 1:
        arrays[mutation.of([item for item in NAMES if "\n" not in item])] = arrays.pop(name)
    elif operation == 2:
        arrays[name] = np.array([{"a": 1}, None], object)
    else:
        values = changed(arrays[name], mutation)
        arrays[name] = arrays[name] if values is None else values
    np.savez(path, **arrays)


# JSON


def mutate_json(path: Path, mutation: Mutation) -> None:
    """Change one value of a file of JSON or JSON lines, or write something else."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    if mutation.operation % 9 == 0 or not lines:
        path.write_text(mutation.of(TEXTS), encoding="utf-8")
        return
    by_line = path.suffix == ".jsonl"
    number = mutation.target % len(lines) if by_line else 0
    value = json.loads(lines[number] if by_line else "\n".join(lines))
    places = list(_places(value))
    if places:
        owner, key = mutation.part(places)
        if mutation.operation % 4 == 0:
            del owner[key]
        else:
            owner[key] = mutation.of(JSONS)
    else:
        value = mutation.of(JSONS)
    if by_line:
        lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) if by_line else json.dumps(value), encoding="utf-8")


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    if not isinstance(value, dict | list):
        return
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


# parquet


def mutate_parquet(path: Path, mutation: Mutation) -> None:
    """Change one column of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if not table.num_columns:
        return
    name, operation = mutation.part(table.column_names), mutation.operation % 7
    place = table.column_names.index(name)
    rows = table.num_rows
    if operation == 0:
        table = table.drop_columns([name])
    elif operation == 1:
        names = [mutation.of(NAMES) if item == name else item for item in table.column_names]
        table = table.rename_columns(names)
    elif operation == 2:
        table = table.slice(mutation.target % 3, max(0, rows - mutation.choice % 4))
    elif operation == 3:
        table = pa.concat_tables([table, table.slice(0, 3)])
    else:
        columns = (
            pa.array(["x"] * rows), pa.array([None] * rows, pa.float32()), pa.nulls(rows),
            pa.array(range(rows)), pa.array([[1.0] * (n % 3) for n in range(rows)]),
            pa.array([{"bytes": b"x", "path": "y"}] * rows), pa.array([float("nan")] * rows),
            pa.array([[[1.0, 2.0]]] * rows), pa.array([True] * rows), pa.array([-1] * rows),
        )  # fmt: skip
        table = table.set_column(place, name, mutation.of(columns))
    pq.write_table(table, path)


# any source


def mutate(path: Path, mutation: Mutation) -> None:
    """Change one thing in a source, whatever its container, if its library still opens it."""
    with suppress(Exception):  # an earlier change may have left what no library opens
        _mutate(path, mutation)


def _mutate(path: Path, mutation: Mutation) -> None:
    if path.is_file():
        _mutate_file(path, mutation)
    elif any((path / name).is_file() for name in (".zgroup", "zarr.json")):
        mutate_zarr(path, mutation)
    else:
        files = sorted(item for item in path.rglob("*") if item.is_file())
        if not files:
            return
        file = mutation.part(files)
        if mutation.operation % 10 == 9:
            file.unlink()
        else:
            _mutate_file(file, mutation)


def _mutate_file(file: Path, mutation: Mutation) -> None:
    start = file.read_bytes()[:4]
    if start == b"\x89HDF":
        mutate_hdf5(file, mutation)
    elif start == b"PAR1":
        mutate_parquet(file, mutation)
    elif start[:2] == b"PK" and file.suffix == ".npz":
        mutate_npz(file, mutation)
    elif file.suffix in (".json", ".jsonl"):
        mutate_json(file, mutation)
