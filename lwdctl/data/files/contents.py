"""What a file or directory holds, found without reading its arrays: the ground of recognition.

`look_into` lists names, shapes and attributes of an HDF5 file, a zarr store, an npz file or a
directory. Nothing outside the path is followed, nothing is unpickled or executed. `file_type` tells
by its first bytes what a file is that holds no demonstrations, and what to do then.
"""

from __future__ import annotations

import io
import lzma
import os
import shlex
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from lwdctl.core.errors import DataError, first_line
from lwdctl.core.untrusted import parse_json, read_bytes
from lwdctl.data.checks import NUMBER_KINDS, check_path, numeric_order
from lwdctl.data.files.bounds import MOST_VALUE_BYTES, memory_limit
from lwdctl.data.files.zip_errors import ZIP_ERRORS

Container = Literal["hdf5", "zarr", "npz", "directory", "file"]
Kind = Literal["low-dimensional", "scalar", "image", "several axes", "text", "not numeric"]
CHANNELS = (1, 3, 4)
"""Of a picture: gray, red, green and blue, and these with depth or opacity."""
PICTURE_TYPES = ("image", "video")
"""Element types by which LeRobot datasets declare pictures that lie in files of their own."""
SMALLEST_SIDE = 8
"""Of a picture in pixels; smaller arrays of several axes are matrices."""
# Enough to see a structure; files of many demonstrations repeat it hundreds of times.
MAX_CHILDREN = 64
MAX_ENTRIES = 2000
MAX_DEPTH = 6
MAX_METADATA_BYTES = 2**20
"""Largest JSON file whose values are listed."""
MOST_NPY_HEADER = 2**16
"""Bytes of the header of an array in an npz file; NumPy evaluates up to 10,000."""
MAX_MEMBERS = 2
"""Files of a directory that are looked into: they stand for the others."""
SMALLEST_USER_BLOCK = 512
UNREADABLE = "unreadable"
"""Element type of an array whose declaration is damaged."""
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class ArrayEntry:
    """One array as its file declares it.

    Attributes:
        shape: Its shape.
        dtype: NumPy's name of its element type (`"float32"`, `"object"`); `"str"` for texts of any
            length.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_numeric(self) -> bool:
        """Whether its elements are numbers or booleans."""
        try:
            return np.dtype(self.dtype).kind in NUMBER_KINDS
        except (TypeError, ValueError):  # a compound, or an array of arrays
            return False

    @property
    def kind(self) -> Kind:
        """What it holds, told by shape and element type."""
        if self.dtype in PICTURE_TYPES:
            return "image"
        if not self.is_numeric:
            text = self.dtype.lstrip("<>|=")[:1] in ("S", "U") or "str" in self.dtype.lower()
            return "text" if text else "not numeric"
        if not self.shape:
            return "scalar"
        steps = self.shape[1:]
        if sum(size != 1 for size in steps) <= 1:
            return "low-dimensional"
        sides = sorted(steps)[-2:]
        pixels = self.dtype == "uint8" or (len(steps) >= 3 and min(steps) in CHANNELS)
        return "image" if pixels and sides[0] >= SMALLEST_SIDE else "several axes"


@dataclass(frozen=True)
class Contents:
    """Names, shapes and attributes of what a path holds.

    Attributes:
        path: The path.
        container: What kind of container it is, told by its bytes, not by its name.
        arrays: Arrays by their path from the root (`"data/demo_0/actions"`). Of groups with
            many children the first ones (in numeric order) stand for all.
        groups: Number of children of every group listed, by its path (`""` is the root).
        attributes: Attributes by the path of their group or array, then name; texts and numbers.
        scalars: Texts and numbers that stand alone in the file, by their path
            (`"metadata/algorithm"`).
        files: Of a directory, the files in it (`"meta/info.json"`), the first ones if many.
    """

    path: Path
    container: Container
    arrays: Mapping[str, ArrayEntry] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scalars: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def has(self, *keys: str) -> bool:
        """Return whether all of these arrays or groups exist."""
        return all(key in self.arrays or key in self.groups for key in keys)

    def children(self, group: str = "") -> list[str]:
        """Return the names listed directly below a group, in numeric order."""
        prefix = f"{group}/" if group else ""
        names = {
            key.removeprefix(prefix).partition("/")[0]
            for key in (*self.arrays, *self.groups)
            if key.startswith(prefix) and key != group
        }
        return sorted(names - {""}, key=numeric_order)


def look_into(path: Path) -> Contents:
    """List what a path holds, without reading any array.

    Raises:
        DataError: No such path, an empty file, or one that cannot be opened.
    """
    check_path(path)
    try:
        return _look_into_directory(path) if path.is_dir() else _look_into_file(path)
    except (OSError, ValueError, *ZIP_ERRORS) as error:
        raise DataError(f"{path}: cannot be opened ({first_line(error)})") from None


def _look_into_directory(path: Path) -> Contents:
    if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zmetadata")):
        return _look_into_zarr(path)
    return Contents(path, "directory", files=_files_in(path))


def _look_into_file(path: Path) -> Contents:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    if _is_hdf5(path):
        return _look_into_hdf5(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return _look_into_npz(path)
        return _look_into_zarr(path)
    return Contents(path, "file")


def look_into_members(contents: Contents) -> Contents:
    """Add to a directory's contents what its data and metadata files hold.

    Values of its JSON files become attributes under the file's name; the arrays of its first data
    files are listed below the file's name. Anything else is returned as it is.
    """
    if contents.container != "directory":
        return contents
    arrays, groups = dict(contents.arrays), dict(contents.groups)
    attributes = dict(contents.attributes)
    opened = 0
    for name in contents.files:
        path = contents.path / name
        if path.is_symlink() or not path.is_file():
            continue
        if name.endswith(".json"):
            values = _json_mapping(path)
            attributes[name] = _plain_values(values)
            arrays |= _declared_features(values)
            continue
        try:
            held = look_into(path) if opened < MAX_MEMBERS else Contents(path, "file")
        except DataError:
            continue  # whoever reads it reports it
        opened += held.container != "file"
        arrays |= {f"{name}/{key}": entry for key, entry in held.arrays.items()}
        groups |= {f"{name}/{key}".rstrip("/"): count for key, count in held.groups.items()}
    return replace(contents, arrays=arrays, groups=groups, attributes=attributes)


def _json_mapping(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where it holds none."""
    try:
        content = read_bytes(path, DataError, MAX_METADATA_BYTES)
        values = parse_json(content, str(path), DataError, allow_nan=True)
    except DataError:
        return {}
    return values if isinstance(values, dict) else {}


def _declared_features(values: Mapping[str, Any]) -> dict[str, ArrayEntry]:
    """Return the arrays that the metadata of a LeRobot dataset declare, one row per frame."""
    features, frames = values.get("features"), values.get("total_frames")
    if not (isinstance(features, dict) and isinstance(frames, int)):
        return {}
    found = {}
    for name, item in features.items():
        shape = item.get("shape") if isinstance(item, dict) else None
        if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
            found[name] = ArrayEntry((frames, *shape), str(item.get("dtype")))
    return found


def _plain_values(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the entries that are a text or a number."""
    return {
        str(key): value for key, value in values.items() if isinstance(value, str | int | float)
    }


def _is_hdf5(path: Path) -> bool:
    """Return whether a file has HDF5's signature at its start, or after a user block."""
    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            if file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return True
            place = max(2 * place, SMALLEST_USER_BLOCK)
    return False


def _look_into_hdf5(path: Path) -> Contents:
    import h5py  # readers of other containers do not need it

    from lwdctl.data.files.hdf5 import element_problem, open_shared
    from lwdctl.data.files.hdf5_heaps import check_heaps

    arrays: dict[str, ArrayEntry] = {}
    groups: dict[str, int] = {}
    attributes: dict[str, dict[str, Any]] = {}
    scalars: dict[str, Any] = {}
    try:
        check_heaps(path)
        with open_shared(path) as file:
            stack: list[tuple[str, Any, int]] = [("", file, 0)]
            seen: set[Any] = set()
            while stack and len(arrays) + len(groups) < MAX_ENTRIES:
                key, item, depth = stack.pop()
                if item.id in seen:
                    continue
                seen.add(item.id)
                attributes[key] = _attributes(item)
                if isinstance(item, h5py.Dataset):
                    # Other files may decide about the shape of a virtual dataset.
                    if item.is_virtual or element_problem(item.id.get_type()):
                        arrays[key] = ArrayEntry((), UNREADABLE)
                        continue
                    is_text = h5py.check_string_dtype(item.dtype) and item.dtype.kind == "O"
                    dtype = "str" if is_text else str(item.dtype)
                    arrays[key] = ArrayEntry(tuple(item.shape or ()), dtype)
                    if item.shape == () and not item.external:
                        scalars.update(_plain_scalar(key, item))
                    continue
                names = sorted(item, key=numeric_order)
                groups[key] = len(names)
                if depth == MAX_DEPTH:
                    continue
                stack.extend(
                    (f"{key}/{name}".lstrip("/"), item[name], depth + 1)
                    for name in reversed(names[:MAX_CHILDREN])
                    if isinstance(item.get(name, getlink=True), h5py.HardLink)
                )
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        problem = f"cannot be opened ({first_line(error)})"
        if "truncated" in str(error):
            problem = "is truncated; download it again"
        raise DataError(f"{path}: {problem}") from None
    return Contents(path, "hdf5", arrays, groups, attributes, scalars)


def _plain_scalar(key: str, dataset: Any) -> dict[str, Any]:
    """Return the value of a scalar that is a text or a number, by its key; {} for others."""
    try:
        with memory_limit(4 * MOST_VALUE_BYTES):
            value = dataset[()]
    except (OSError, RuntimeError, TypeError, ValueError, MemoryError):
        return {}  # what cannot be decoded is of no use here
    return {key: value} if (value := _plain_value(value)) is not None else {}


def _attributes(item: Any) -> dict[str, Any]:
    """Return the attributes that are a number or a text."""
    found: dict[str, Any] = {}
    unreadable = (OSError, RuntimeError, TypeError, ValueError, KeyError, MemoryError)
    with memory_limit(4 * MOST_VALUE_BYTES), suppress(*unreadable):
        for name in list(item.attrs)[:MAX_CHILDREN]:
            with suppress(*unreadable):  # an attribute that cannot be decoded is of no use here
                if (plain := _plain_value(item.attrs[name])) is not None:
                    found[name] = plain
    return found


def _plain_value(value: Any) -> str | int | float | None:
    """Return an HDF5 value as a text or number of Python, None for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str | int | float) else None


def _look_into_zarr(path: Path) -> Contents:
    from lwdctl.data.files.zarr_metadata import read_zarr_metadata

    _, documents = read_zarr_metadata(path)
    arrays = zarr_arrays(documents)
    groups = {key: 0 for key in documents if key not in arrays}
    for key in documents:
        if key:
            parent = key.rpartition("/")[0]
            groups[parent] = groups.get(parent, 0) + 1
    recorded = documents[""].get("attributes")
    values = _plain_values(recorded) if isinstance(recorded, dict) else {}
    listed = dict(list(arrays.items())[:MAX_ENTRIES])
    return Contents(path, "zarr", listed, groups, {"": values} if values else {})


def zarr_arrays(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, ArrayEntry]:
    """Return the arrays that the metadata of a zarr store's nodes declare."""
    from lwdctl.data.files.zarr_metadata import declared_of, is_array

    found = {key: declared_of(item) for key, item in documents.items() if key and is_array(item)}
    return {key: ArrayEntry(shape, dtype or UNREADABLE) for key, (shape, dtype) in found.items()}


def _look_into_npz(path: Path) -> Contents:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()[:MAX_ENTRIES]
        arrays = {name.removesuffix(".npy"): npz_entry(archive, name) for name in names}
    return Contents(path, "npz", arrays, {"": len(arrays)})


def npz_entry(archive: zipfile.ZipFile, name: str) -> ArrayEntry:
    """Return what the header of a member declares; a damaged one is of type "unreadable"."""
    try:
        with archive.open(name) as member:
            shape, _, dtype = read_npy_header(member)
            return ArrayEntry(shape, str(dtype))
    except Exception:  # noqa: BLE001 - every compressor raises its own type
        return ArrayEntry((), UNREADABLE)


def read_npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return what an npy file declares: shape, whether it is in Fortran order, and element type.

    Nothing is unpickled.

    Raises:
        ValueError: It is no npy file.
    """
    first = np.lib.format.read_magic(member) == (1, 0)
    length = member.read(2 if first else 4)
    if (size := int.from_bytes(length, "little")) > MOST_NPY_HEADER:
        raise ValueError(f"its header has {size:,} bytes")
    header = io.BytesIO(length + member.read(size))
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(header)
    return tuple(shape), bool(fortran), dtype


def _files_in(path: Path) -> tuple[str, ...]:
    """Return the files below a directory, not more than `MAX_ENTRIES`; links are not followed."""
    found: list[str] = []
    for folder, folders, names in os.walk(path):
        folders.sort(key=numeric_order)
        place = Path(folder).relative_to(path)
        if len(place.parts) >= MAX_DEPTH:
            folders.clear()
        found += [str(place / name) for name in sorted(names, key=numeric_order)]
        if len(found) >= MAX_ENTRIES:
            break
    return tuple(found[:MAX_ENTRIES])


_START = 4096
_TAR_START = 2**20
"""Bytes that hold the first entry of a tar archive, compressed or not."""
_PACKED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}


class FileType(NamedTuple):
    """What a file is, and the command that makes something readable of it, or ""."""

    name: str
    hint: str = ""


_WHOLE = "lwdctl inspect {} (the directory of the whole data set)"
# First bytes, what they belong to, and a command in which {} stands for the path.
_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself", "git lfs pull"),
    (b"\x1f\x8b", "a gzip file", "gunzip --keep {}"),
    (b"BZh", "a bzip2 file", "bunzip2 --keep {}"),
    (b"\xfd7zXZ", "an xz file", "unxz --keep {}"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unzstd {}"),
    (b"PK\x03\x04", "a damaged zip file", ""),
    (b"PAR1", "a Parquet file", _WHOLE),
    (b"ARROW1", "an Arrow file", _WHOLE),
    (b"\x93NUMPY", "a single NumPy array", "put observations and actions into one .npz file"),
    (b"#ROSBAG", "a ROS bag", ""),
    (b"\x89MCAP", "an MCAP recording", ""),
    (b"SQLite format 3", "an SQLite database", ""),
    (b"\x89PNG", "a PNG picture", ""),
    (b"\xff\xd8\xff", "a JPEG picture", ""),
    (b"%PDF", "a PDF document", ""),
)
_WEB_PAGE = (b"<!doctype html", b"<html")


def file_type(path: Path) -> FileType:
    """Tell what a file is by its first bytes.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        return FileType("an empty file")
    if _is_tar(path):
        return FileType("a tar archive", f"tar -xf {shlex.quote(str(path))}")
    for signature, name, hint in _SIGNATURES:
        if start.startswith(signature):
            shown = _data_set_of(path) if hint is _WHOLE else path
            return FileType(name, hint.format(shlex.quote(str(shown))))
    if start.lstrip().lower().startswith(_WEB_PAGE):
        return FileType("a web page: the download gave an error page", "download the file again")
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        hint = "save the arrays with numpy.savez in the program that wrote it"
        return FileType("a pickle, which is never opened because it can run code", hint)
    if start[4:8] == b"ftyp":
        return FileType("an MP4 video")
    return FileType("a text file" if _is_text(start) else "a binary file of an unknown kind")


def _is_tar(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_TAR_START)  # zeros without end would be searched for a compressed block
    kind = next((kind for signature, kind in _PACKED.items() if start.startswith(signature)), "")
    try:
        with tarfile.open(fileobj=io.BytesIO(start), mode=f"r:{kind}") as archive:  # type: ignore[call-overload]
            return archive.next() is not None
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError):
        return False  # damaged, whatever it is


def _data_set_of(path: Path) -> Path:
    """Return the directory above a file that has metadata beside its data, else its own."""
    above = [item for item in path.absolute().parents if (item / "meta" / "info.json").is_file()]
    return above[0] if above else path.parent


def _is_text(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and len(start) == _START  # cut within a character
    return b"\0" not in start
