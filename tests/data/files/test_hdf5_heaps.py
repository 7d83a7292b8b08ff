"""Heaps of texts are found wherever they begin, and each file is looked through once."""

from __future__ import annotations

import pytest

from lwdctl.core.errors import DataError
from lwdctl.data.files import hdf5_heaps
from lwdctl.data.files.hdf5_heaps import check_heaps

BLOCK = 4 * hdf5_heaps._WORDS_AT_ONCE
ENDLESS = hdf5_heaps._HEAP + (4096).to_bytes(8, "little") + bytes(16)


@pytest.mark.parametrize("size", [5000, BLOCK, BLOCK + 3, 2 * BLOCK + 5])
@pytest.mark.parametrize("edge", [0, BLOCK, 2 * BLOCK])
def test_a_heap_without_an_end_is_found_wherever_it_begins(tmp_path, size, edge):
    for start in range(edge - 12, edge + 12):
        if not 0 <= start <= size - len(ENDLESS):
            continue
        path = tmp_path / f"{start}.hdf5"
        path.write_bytes(bytes(start) + ENDLESS + bytes(size - start - len(ENDLESS)))
        with pytest.raises(DataError, match=f"at byte {start:,} has no end"):
            check_heaps(path)


def test_a_heap_with_an_end_is_none_of_these_and_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.hdf5"
    head = hdf5_heaps._HEAP + (4096).to_bytes(8, "little")
    path.write_bytes(head + bytes(8) + (4080).to_bytes(8, "little") + bytes(4064))
    check_heaps(path)
    path.write_bytes(bytes(3) + ENDLESS)
    with pytest.raises(DataError, match="has no end"):
        check_heaps(path)


def test_more_heaps_than_a_file_has_room_for_are_refused_at_once(tmp_path):
    path = tmp_path / "many.hdf5"
    path.write_bytes(hdf5_heaps._HEAP * 2_000_000)
    with pytest.raises(DataError, match="has no end"):
        check_heaps(path)
