"""Zarr data whose files or folders are links are refused: they would be read from anywhere."""

from __future__ import annotations

import os

import numpy as np
import pytest
import zarr

from lwdctl.core.errors import DataError
from lwdctl.data.files.zarr_files import ZarrFile


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("what", ["chunk", "metadata", "array", "pipe"])
def test_links_are_refused(tmp_path, version, what):
    path = tmp_path / "data.zarr"
    group = zarr.create_group(path, zarr_format=version)
    array = group.create_array("data/action", shape=(9, 2), chunks=(9, 2), dtype="f4")
    array[:] = np.ones((9, 2))
    folder = path / "data" / "action"
    metadata = "zarr.json" if version == 3 else ".zarray"
    files = (item for item in folder.rglob("*") if item.is_file())
    chunk = next(item for item in files if item.name not in {metadata, ".zattrs"})
    linked = {"metadata": folder / metadata, "array": folder}.get(what, chunk)
    linked.rename(tmp_path / "outside")
    if what == "pipe":
        os.mkfifo(linked)
    else:
        linked.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"link|regular"):
        ZarrFile(path, 2**30).open(["data/action"])
