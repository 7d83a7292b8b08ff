"""LeRobot datasets that are damaged, lead elsewhere, or are larger than they seem."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from lerobot_maker import (
    ACTION,
    STATE,
    change_info,
    check_equal,
    findings,
    opened,
    read_all,
    write_table,
    write_v2,
    write_v3,
)

sys.path.pop(0)

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.reader import open_source


def test_values_that_are_not_finite_name_file_and_row(write, episodes):
    episodes[2][STATE][7][1] = float("nan")
    root = write(episodes)
    with opened(root) as source, pytest.raises(NonFiniteError) as caught:
        source.read(2)
    # The file of version 2.1 holds one episode, that of version 3.0 two.
    assert "observation.state, row 7: value is nan" in caught.value.message


@pytest.mark.parametrize("where", ["element", "row", "all"])
def test_null_is_no_number(write, episodes, where):
    if where == "element":
        episodes[2][STATE][7][1] = None
    elif where == "row":
        episodes[2][STATE][7] = None
    else:
        episodes[2][STATE] = [None] * 12
    types = {STATE: pa.list_(pa.float32())}
    with opened(write(episodes, types=types)) as source:
        np.testing.assert_array_equal(source.read(3).actions, np.float32(episodes[3][ACTION]))
        with pytest.raises(NonFiniteError, match=r"observation\.state, row"):
            source.read(2)


def message_of(root, **options):
    with pytest.raises(DataError) as caught:
        read_all(root, **options)
    assert "\n" not in caught.value.message
    assert str(root) in caught.value.message
    return caught.value.message


def test_ragged_lists_are_refused(write, episodes):
    episodes[2][STATE][7] = [1.0, 2.0]
    assert "has 2 components, expected 3" in message_of(write(episodes))


def test_files_of_other_sizes_are_refused(tmp_path, episodes):
    episodes[2][STATE] = [[1.0, 2.0]] * 12
    root = write_v2(tmp_path / "set", episodes)
    message = message_of(root)
    assert "episode_000002.parquet: observation.state, row 0: has 2 components" in message


def drop_column(root, name):
    file = max(root.glob("data/*/*.parquet"))
    pq.write_table(pq.read_table(file).drop_columns([name]), file)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: (root / "meta/info.json").unlink(), "info.json: is missing"),
        (lambda root: (root / "meta/info.json").write_text("{"), "info.json: not valid JSON"),
        (lambda root: (root / "meta/info.json").write_text("[" * 10**5), "levels of nesting"),
        (lambda root: (root / "meta/info.json").write_text("[]"), "features: is missing"),
        (lambda root: shutil.rmtree(root / "data"), "holds no parquet files"),
        (lambda root: drop_column(root, STATE), "observation.state: is missing"),
        (lambda root: drop_column(root, "episode_index"), "episode_index: is missing"),
        (lambda root: change_info(root, data_path="../{episode_index}.parquet"), "leads out"),
        (lambda root: change_info(root, data_path="/etc/{episode_index}"), "leads out"),
        (lambda root: change_info(root, data_path="data/{0.__class__}"), "has the field"),
        (lambda root: change_info(root, data_path="data/{"), "no path with fields"),
    ],
)
def test_a_damaged_structure_is_one_line(write, episodes, damage, expected):
    root = write(episodes)
    damage(root)
    assert expected in message_of(root)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("episode_index", [None, 0, 0], "episode_index, row 0: is nan, not a whole number"),
        ("episode_index", ["a", "b", "c"], "holds"),
        ("frame_index", [0.5, 1.0, 2.0], "frame_index, row 0: is 0.5, not a whole number"),
        ("frame_index", [[0, 1], [1, 2], [2, 3]], "has 2 components, expected 1"),
        ("action", ["a", "b", "c"], "action: holds string"),
        ("observation.state", [{"x": 1}] * 3, "observation.state: holds struct"),
    ],
)
def test_columns_of_other_types_are_one_line(tmp_path, episodes, name, values, expected):
    root = write_v2(tmp_path / "set", episodes)
    episodes[3][name] = values
    write_table(root / "data/chunk-000/episode_000003.parquet", episodes[3])
    assert expected in message_of(root)


def read_copy(hint):
    """Run the command of a hint that copies a dataset; return the episodes of the copy."""
    command, copy = hint.split(", and read ")
    subprocess.run(shlex.split(command), check=True)
    return read_all(Path(copy))[0]


@pytest.mark.parametrize("place", ["data/chunk-000/file-000.parquet", "data", "meta/info.json"])
def test_links_that_lead_out_are_refused_and_the_hint_works(tmp_path, episodes, place):
    root = write_v3(tmp_path / "set", [episodes])
    outside = tmp_path / "outside"
    (root / place).rename(outside)
    (root / place).symlink_to(outside)
    with pytest.raises(DataError, match="is a link to") as caught:
        read_all(root)
    check_equal(read_copy(caught.value.hint), episodes)


def test_the_cache_of_the_hub_is_recognized_and_refused_with_what_to_do(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate([path for path in root.rglob("*") if path.is_file()]):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    with pytest.raises(DataError, match="is a link to") as caught:
        open_source(None, (root,), IngestConfig())
    check_equal(read_copy(caught.value.hint), episodes)


def test_links_inside_the_directory_are_followed(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    file = root / "data/chunk-000/file-000.parquet"
    file.rename(root / "blob")
    file.symlink_to("../../blob")
    check_equal(read_all(root)[0], episodes)


def test_files_with_other_names_are_left_out_with_a_warning(write, episodes):
    root = write(episodes)
    file = min(root.glob("data/*/*.parquet"))
    shutil.copy(file, file.with_name("copy.parquet"))
    read, source = read_all(root)
    check_equal(read, episodes)
    (found,) = findings(source, "left-out", "copy.parquet")
    assert found.severity == "warning"


@pytest.mark.slow
def test_the_declared_size_is_bounded_before_anything_is_read(tmp_path, episodes):
    rows = 10**6
    long = {
        STATE: pa.array(np.zeros(3 * rows, np.float32).reshape(rows, 3).tolist()),
        ACTION: pa.array(np.zeros((rows, 2), np.float32).tolist()),
        "frame_index": np.arange(rows),
        "episode_index": np.zeros(rows, np.int64),
    }
    root = write_v3(tmp_path / "set", [episodes])
    file = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pa.table(long), file, compression="zstd")
    assert file.stat().st_size < 6e6
    with pytest.raises(DataError, match="declares") as caught:
        opened(root, max_bytes=10**7)
    assert "--max-bytes" in caught.value.hint


def test_a_pointer_of_git_lfs_is_named(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    (root / "data/chunk-000/file-000.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(DataError, match="Git LFS pointer") as caught:
        opened(root)
    assert "git lfs pull" in caught.value.hint


@pytest.mark.slow
def test_random_damage_is_a_data_error_or_harmless(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes])
    names = ["data/chunk-000/file-000.parquet", "meta/tasks.parquet", "meta/info.json"]
    rng = np.random.default_rng(5)
    refused = 0
    for name in names:
        intact = (root / name).read_bytes()
        for _ in range(60):
            content = bytearray(intact)
            for position in rng.integers(len(content), size=4):
                content[position] = int(rng.integers(256))
            (root / name).write_bytes(bytes(content))
            try:
                read_all(root)
            except DataError as error:
                refused += 1
                assert str(root) in error.message  # noqa: PT017 - some damage is harmless
                assert "\n" not in error.message  # noqa: PT017
        (root / name).write_bytes(intact)
    assert refused > 60


def test_damage_in_pages_with_checksums_is_always_noticed(tmp_path, episodes):
    root = write_v3(tmp_path / "set", [episodes], types={STATE: pa.list_(pa.float32())}, options={
        "write_page_checksum": True, "compression": "none", "use_dictionary": False,
    })  # fmt: skip
    file = root / "data/chunk-000/file-000.parquet"
    content = bytearray(file.read_bytes())
    value = np.float32(episodes[2][STATE][5][1]).tobytes()
    content[content.index(value) + 3] ^= 1
    file.write_bytes(bytes(content))
    assert "file-000.parquet" in message_of(root)
