"""The metadata of a zarr store of unknown origin, read without zarr and without opening arrays."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lwdctl.core.errors import DataError, first_line
from lwdctl.core.untrusted import parse_json
from lwdctl.data.checks import check_path
from lwdctl.data.files.zip_errors import ZIP_ERRORS

_MAX_METADATA_BYTES = 2**24
"""Bytes of all metadata of a store together."""
_MAX_DEPTH = 8
_ATTRIBUTES = ".zattrs"
_TEXT_TYPES = {"fixed_length_utf32": ("U", 4), "null_terminated_bytes": ("S", 1)}
"""Letter and bytes per character of NumPy's types, by their names in version 3."""
_METADATA = (".zarray", _ATTRIBUTES, ".zgroup", "zarr.json")


def read_zarr_metadata(path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the folder of a zip file that the store lies in, and the metadata of every node.

    Version 2 keeps the attributes in files of their own; they are `"attributes"` here as well.

    Raises:
        DataError: No such path, or no zarr group.
    """
    check_path(path)
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is neither a zarr directory nor an intact zip file of one")
    try:
        files = _bounded(_in_folder(path, path, 0) if path.is_dir() else _in_zip(path))
        root = _root_of(path, files)
        documents: dict[str, dict[str, Any]] = {}
        for name in sorted(files, key=lambda name: (name.endswith(_ATTRIBUTES), name)):
            node, _, file = name.removeprefix(root).rpartition("/")
            if name.startswith(root) and file != _ATTRIBUTES:
                documents[node] = _parsed(files[name], name.removeprefix(root))
            elif name.startswith(root) and node in documents:
                documents[node]["attributes"] = _parsed(files[name], name.removeprefix(root))
    except (OSError, ValueError, *ZIP_ERRORS) as error:
        raise DataError(f"{path}: is not a zarr group ({first_line(error)})") from None
    if "" not in documents or is_array(documents[""]):
        raise DataError(f"{path}: is not a zarr group")
    return root, documents


def _bounded(found: Iterator[tuple[str, bytes]]) -> dict[str, bytes]:
    """Return the content of metadata files by name.

    Raises:
        ValueError: They are too large together.
    """
    files: dict[str, bytes] = {}
    size = 0
    for name, content in found:
        files[name] = content
        size += len(content)
        if size > _MAX_METADATA_BYTES:
            raise ValueError(f"its metadata have more than {_MAX_METADATA_BYTES:,} bytes")
    return files


def _in_folder(folder: Path, root: Path, depth: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the metadata files below a folder; links are not followed."""
    deepest = depth > _MAX_DEPTH
    for file in (folder / name for name in _METADATA):
        if file.is_symlink():
            raise ValueError(f"{file.name} is a link, which is not followed")
        if not file.exists():
            continue
        if not file.is_file():  # zarr would wait for a pipe
            raise ValueError(f"{file.name} is no regular file")
        if file.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes")
        name, content = file.relative_to(root).as_posix(), file.read_bytes()
        deepest |= file.name != _ATTRIBUTES and is_array(_parsed(content, name))
        yield name, content
    if not deepest:  # below an array there are only chunks, possibly very many
        for entry in sorted(os.scandir(folder), key=lambda item: item.name):
            if entry.is_symlink() and entry.is_dir():
                raise ValueError(f"{entry.name} is a link, which is not followed")
            if entry.is_dir(follow_symlinks=False):
                yield from _in_folder(Path(entry.path), root, depth + 1)


def _in_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.filename.endswith(_METADATA) and Path(item.filename).name in _METADATA:
                if item.file_size > _MAX_METADATA_BYTES:
                    raise ValueError(f"{item.filename} declares {item.file_size:,} bytes")
                yield item.filename, archive.read(item)


def _root_of(path: Path, files: Iterable[str]) -> str:
    """Return the folder of the outermost group, "" or with a slash at its end."""
    folders = sorted({name.rpartition("/")[0] for name in files})
    if path.is_dir() or "" in folders or not folders:
        return ""
    outer: list[str] = []
    for folder in folders:
        if not any(folder.startswith(f"{other}/") for other in outer):
            outer.append(folder)
    if len(outer) > 1:
        raise ValueError(f"it holds several stores: {', '.join(outer)}")
    return f"{outer[0]}/"


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    """Return the metadata in a file; damaged ones of a node other than the root are {}."""
    try:
        document = parse_json(content, name, DataError, allow_nan=True)
    except DataError as error:
        if "/" not in name and name != _ATTRIBUTES:
            raise ValueError(error.message) from None
        return {}
    return document if isinstance(document, dict) else {}


def is_array(document: Mapping[str, Any]) -> bool:
    """Return whether metadata are an array's; damaged ones count as one."""
    return "shape" in document or document.get("node_type") == "array" or not document


def declared_of(document: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """Return shape and NumPy's name of the element type of an array, "" where they are damaged."""
    shape = document.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        return (), ""
    declared = document.get("dtype", document.get("data_type"))
    if isinstance(declared, dict):
        declared = _text_type(declared)
    if declared == "string":
        return tuple(shape), "object"
    try:
        return tuple(shape), str(np.dtype(declared)) if isinstance(declared, str) else "object"
    except TypeError:
        return tuple(shape), str(declared)


def _text_type(declared: Mapping[str, Any]) -> str | None:
    """Return NumPy's name of a type of texts of one length, as version 3 declares it, or None."""
    configuration, name = declared.get("configuration"), str(declared.get("name"))
    length = configuration.get("length_bytes") if isinstance(configuration, dict) else None
    if name not in _TEXT_TYPES or not isinstance(length, int) or not 0 <= length < 2**31:
        return None
    letter, width = _TEXT_TYPES[name]
    return f"{letter}{length // width}"


def codec_names(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all codecs, also of those inside a sharding codec."""
    lists = [document.get(name) for name in ("filters", "codecs")]
    several = [item for found in lists if isinstance(found, list) for item in found]
    for item in (document.get("compressor"), *several):
        if isinstance(item, dict):
            name = str(item.get("id") or item.get("name"))
            yield name.removeprefix("numcodecs.")
            inside = item.get("configuration") or {}
            if isinstance(inside, dict):
                yield from codec_names(inside)
