"""Sources broken in every way the readers must name: file, key and row, in one line."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.checks import NonFiniteError
from lwdctl.data.files.zarr_files import ZarrFile
from lwdctl.data.formats import READERS
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source, recognize

HDF5_FORMATS = ("robomimic", "d4rl", "minari")


def replace(file, key, values):
    del file[key]
    file[key] = values


def shorten(file, key):
    replace(file, key, file[key][:-1])


def widen(file, key):
    values = file[key][:]
    replace(file, key, np.concatenate([values, values[:, :1]], axis=1))


def emptied(file, name, key):
    """Leave no component of the observations or actions of any episode."""
    for group in (file["data"] if name == "robomimic" else file).values():
        places = [key] if name == "minari" or key == "actions" else ["obs", "next_obs"]
        for place in places:
            item = group[place]
            inner = [item] if isinstance(item, h5py.Dataset) else list(item.values())
            for array in inner:
                replace(file, array.name, array[:, :0])


def named_wide(file, key):
    file["metadata/env"] = "HalfCheetah-v4"
    widen(file, key)


# format, what is done, how, what the message must contain
DAMAGE = [
    ("robomimic", "no data", lambda f: f.__delitem__("data"), "data: is missing"),
    ("robomimic", "no actions", lambda f: f.__delitem__("data/demo_3/actions"),
     "data/demo_3/actions: is missing"),
    ("robomimic", "no obs", lambda f: f.__delitem__("data/demo_3/obs"),
     "data/demo_3/obs/observation: is missing"),
    ("robomimic", "short obs", lambda f: shorten(f, "data/demo_3/obs/observation"),
     "data/demo_3/obs/observation, row 5: has 5 rows, but actions has 6"),
    ("robomimic", "wider obs", lambda f: widen(f, "data/demo_3/obs/observation"),
     "data/demo_3/obs/observation, row 0: has 6 components, earlier episodes have 5"),
    ("robomimic", "wider actions", lambda f: widen(f, "data/demo_3/actions"),
     "data/demo_3/actions, row 0"),
    ("robomimic", "no steps at all",
     lambda f: [replace(f, f"data/demo_{i}/actions", np.zeros((0, 4))) for i in range(12)],
     "data/demo_0/actions: has no rows"),
    ("robomimic", "discrete actions",
     lambda f: [replace(f, f"data/demo_{i}/actions", f[f"data/demo_{i}/actions"][:, 0].astype(int))
                for i in range(12)],
     "data/demo_0/actions: holds one integer per step: discrete actions"),
    ("robomimic", "no demonstrations",
     lambda f: [f.__delitem__(f"data/demo_{i}") for i in range(12)] and f.__delitem__("mask"),
     "data: holds no demonstrations"),
    ("robomimic", "bad env_args", lambda f: f["data"].attrs.modify("env_args", "{"),
     "data.attrs[env_args]: is not JSON"),
    ("robomimic", "text obs",
     lambda f: replace(f, "data/demo_0/obs/observation", np.array([[b"x"]] * 3)),
     "data/demo_0/obs/observation: holds |S1, not numbers"),
    ("d4rl", "no observations", lambda f: f.__delitem__("observations"),
     "observations: is missing"),
    ("d4rl", "no actions", lambda f: f.__delitem__("actions"), "actions: is missing"),
    ("d4rl", "no terminals", lambda f: f.__delitem__("terminals"), "terminals: is missing"),
    ("d4rl", "short actions", lambda f: shorten(f, "actions"),
     "actions, row 101: has 101 rows, but observations has 102"),
    ("d4rl", "short timeouts", lambda f: shorten(f, "timeouts"), "timeouts, row 101"),
    ("d4rl", "no rows", lambda f: replace(f, "observations", np.zeros((0, 17))),
     "observations: has no rows"),
    ("d4rl", "three-dimensional", lambda f: replace(f, "observations", np.zeros((102, 17, 2))),
     "observations: has shape (102, 17, 2)"),
    ("d4rl", "half a flag", lambda f: replace(f, "terminals", np.full(102, 0.5)),
     "terminals, row 0: 0.5 is not a flag"),
    ("d4rl", "NaN flag", lambda f: replace(f, "timeouts", np.r_[np.zeros(101), np.nan]),
     "timeouts, row 101: nan is not a flag"),
    ("d4rl", "wrong size", lambda f: named_wide(f, "observations"),
     "observations, row 0: has 18 components, HalfCheetah-v4 has 17"),
    ("d4rl", "wrong action", lambda f: named_wide(f, "actions"),
     "actions, row 0: has 7 components, HalfCheetah-v4 has 6"),
    *(("d4rl", f"{key} without components", lambda f, key=key: replace(f, key, f[key][:, :0]),
       f"{key}: has shape (102, 0): no components") for key in ("observations", "actions")),
    *((name, f"{key} without components", lambda f, name=name, key=key: emptied(f, name, key),
       f"{key}: have no components")
      for name in ("robomimic", "minari") for key in ("observations", "actions")),
    ("minari", "no actions", lambda f: f.__delitem__("episode_3/actions"),
     "episode_3/actions: is missing"),
    ("minari", "no observations", lambda f: f.__delitem__("episode_0/observations"),
     "episode_0/observations: is missing"),
    ("minari", "wider", lambda f: widen(f, "episode_3/observations"),
     "episode_3/observations, row 0: has 6 components"),
    ("minari", "discrete", lambda f: replace(f, "episode_3/actions", np.arange(6)),
     "episode_3/actions, row 0: has 1 components"),
    ("minari", "no episodes", lambda f: [f.__delitem__(f"episode_{i}") for i in range(12)],
     "holds no episodes"),
    ("minari", "few observations", lambda f: replace(
        f, "episode_3/observations", np.zeros((4, 5), np.float32)),
     "episode_3/observations, row 4: has 4 rows, expected 7"),
]  # fmt: skip


def read_everything(name, path):
    with open_source(name, (path,), IngestConfig()) as reader:
        for index in range(len(reader.episodes)):
            reader.read(index)


@pytest.fixture
def refusal(make_sample, tmp_path):
    """Return a function that damages a sample and returns the error of reading all of it."""

    def read(name, damage):
        sample = make_sample(name, tmp_path / name)
        damage(sample)
        with pytest.raises(DataError) as caught:
            read_everything(name, sample.path)
        message = caught.value.message
        assert "\n" not in message
        assert str(sample.path) in message
        return message

    return read


def in_file(damage):
    def change(sample):
        with h5py.File(sample.hdf5, "a") as file:
            damage(file)

    return change


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [pytest.param(name, damage, text, id=f"{name}-{what}") for name, what, damage, text in DAMAGE],
)
def test_structure_is_checked(refusal, name, damage, expected):
    assert expected in refusal(name, in_file(damage))


def truncate(sample):
    content = sample.hdf5.read_bytes()
    sample.hdf5.write_bytes(content[: len(content) // 2])


def external_link(sample):
    with h5py.File(sample.hdf5, "a") as file:
        file["more/link"] = h5py.ExternalLink("/etc/hosts", "/x")


def dangling_link(sample):
    with h5py.File(sample.hdf5, "a") as file:
        file["more/link"] = h5py.SoftLink("/nowhere")


def virtual_dataset(sample):
    with h5py.File(sample.hdf5, "a") as file:
        layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
        layout[:] = h5py.VirtualSource("other.hdf5", "x", shape=(4,))
        file.create_virtual_dataset("more/link", layout)


def raw_external_storage(sample):
    with h5py.File(sample.hdf5, "a") as file:
        file.create_dataset(
            "more/link", shape=(4,), dtype="f4", external=[("/etc/hosts", 0, h5py.h5f.UNLIMITED)]
        )


def absurd_size(sample):
    with h5py.File(sample.hdf5, "a") as file:
        file.create_dataset("more/link", shape=(10**9, 10**6), dtype="f8", chunks=(1, 1000))


@pytest.mark.parametrize("name", HDF5_FORMATS)
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (truncate, "truncated"),
        (lambda sample: sample.hdf5.write_bytes(b""), "is empty"),
        (lambda sample: sample.hdf5.write_bytes(b"no" * 600), "is not an HDF5 file"),
        (external_link, "more/link: is an external link to /etc/hosts"),
        (dangling_link, "more/link: is a link to /nowhere, which is missing"),
        (virtual_dataset, "more/link: is a virtual dataset"),
        (raw_external_storage, "more/link: keeps its data in another file"),
        (absurd_size, "more/link: declares shape (1000000000, 1000000)"),
    ],
)
def test_file_is_not_trusted(refusal, name, damage, expected):
    assert expected in refusal(name, damage)


@pytest.mark.parametrize("name", HDF5_FORMATS)
def test_links_inside_the_file_and_loops_are_followed_once(name, make_sample, tmp_path):
    sample = make_sample(name, tmp_path)
    with h5py.File(sample.hdf5, "a") as file:
        file["more"] = h5py.SoftLink(f"/{sample.action}")
        file.create_group("loop")["back"] = file["/"]
    open_source(name, (sample.path,), IngestConfig()).close()


def in_store(damage):
    return lambda sample: damage(zarr.open_group(sample.path, mode="a"), sample.path)


def write(group, key, values):
    group.create_array(key, data=values, chunks=values.shape, overwrite=True)


def encoded(**codec):
    def change(group, path):
        file = path / "data/state/.zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "compressor": codec}))

    return change


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda g, p: g.__delitem__("data/state"), "data/state: is missing"),
        (lambda g, p: g.__delitem__("data/action"), "data/action: is missing"),
        (lambda g, p: g.__delitem__("meta/episode_ends"), "meta/episode_ends: is missing"),
        (lambda g, p: write(g, "data/action", np.ones((101, 2))), "data/action, row 101: has 101"),
        (lambda g, p: write(g, "data/action", np.ones((102, 3))), "data/action: has shape"),
        (lambda g, p: write(g, "data/keypoint", np.ones((102, 4))), "data/keypoint: has shape"),
        (lambda g, p: write(g, "meta/episode_ends", np.array([5, 5, 102])),
         "meta/episode_ends, row 1: episode ends at 5, not after 5"),
        (lambda g, p: write(g, "meta/episode_ends", np.array([5, 190])),
         "meta/episode_ends, row 1: last episode ends at 190, but there are only 102 rows"),
        (lambda g, p: write(g, "meta/episode_ends", np.array([5.0, 102.0])),
         "meta/episode_ends: is not a list of row numbers"),
        (lambda g, p: (p / "data/state/3.0").unlink(), "data/state: 1 of 7 chunks are missing"),
        (lambda g, p: (p / "data/state/3.0").write_bytes(b"xx"), "data/state, row "),
        (lambda g, p: (p / ".zgroup").write_text("{"), "is not a zarr group"),
        (encoded(id="pickle", protocol=5), "'pickle'"),
        (encoded(id="delta", dtype="<f4"), "data/state: is encoded with 'delta'"),
    ],
)  # fmt: skip
def test_replay_buffer_is_checked(refusal, damage, expected):
    assert expected in refusal("pusht", in_store(damage))


def test_file_that_is_no_zip_is_refused(tmp_path):
    path = tmp_path / "buffer.zarr.zip"
    path.write_bytes(b"PK but not really")
    with pytest.raises(DataError, match=r"buffer\.zarr\.zip: is neither"):
        open_source("pusht", (path,), IngestConfig())


def test_episode_ends_may_not_be_empty(refusal):
    def empty(group, path):
        del path
        group.create_array("meta/episode_ends", shape=(0,), dtype="i8", chunks=(1,), overwrite=True)

    assert "meta/episode_ends: holds no episodes" in refusal("pusht", in_store(empty))


def test_unknown_data_format_is_refused(refusal):
    def unknown(sample):
        file = sample.path / "data" / "metadata.json"
        file.write_text(json.dumps({"data_format": "pickle"}))

    assert "data_format: is 'pickle'" in refusal("minari", unknown)


@pytest.fixture
def odd_path(tmp_path):
    """Return a function that makes a path which leads to neither a file nor a directory."""

    def make(kind):
        place = tmp_path / "odd"
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "loop":
            place.symlink_to("odd")
        elif kind == "below a file":
            place.touch()
        names = {
            "device": Path("/dev/zero"), "below a file": place / "x", "in a loop": place / "x",
            "long": tmp_path / ("v" * 5000), "deep": tmp_path / ("d/" * 3000),
            "NUL": tmp_path / "\0",
        }  # fmt: skip
        return names.get(kind, place)

    return make


@pytest.mark.timeout(60)  # one that is waited for has no end
@pytest.mark.parametrize(
    "kind", ["pipe", "device", "loop", "below a file", "long", "deep", "missing", "NUL"]
)
@pytest.mark.parametrize("name", [*READERS, None])
def test_a_path_that_leads_nowhere_is_one_line(odd_path, name, kind):
    path = odd_path(kind)
    with pytest.raises(DataError) as caught:
        open_source(name, (path, Path("other")), IngestConfig())
    assert str(path)[:200].rstrip("\0") in caught.value.message
    assert "\n" not in caught.value.message


def test_files_that_disagree_are_refused_with_both_names(make_sample, tmp_path):
    first = make_sample("robomimic", tmp_path / "a")
    second = make_sample("robomimic", tmp_path / "b")
    with h5py.File(second.hdf5, "a") as file:
        for index in range(12):
            widen(file, f"data/demo_{index}/obs/observation")
            del file[f"data/demo_{index}/next_obs"]
    with pytest.raises(DataError) as caught:
        open_source("robomimic", (first.path, second.path), IngestConfig())
    assert str(first.path) in caught.value.message
    assert str(second.path) in caught.value.message
    assert "observations differ" in caught.value.message


def test_files_of_another_order_are_refused_with_the_option_that_gives_them_one(tmp_path):
    paths = []
    for order in (("pos", "vel"), ("vel", "pos")):
        paths.append(tmp_path / f"{order[0]}.hdf5")
        with h5py.File(paths[-1], "w", track_order=True) as file:
            for demo in range(2):
                group = file.create_group(f"data/demo_{demo}/obs", track_order=True)
                for name in order:
                    group[name] = np.ones((5, 2))
                file[f"data/demo_{demo}/actions"] = np.ones((5, 2))
    with pytest.raises(DataError, match="observations differ") as caught:
        open_source("robomimic", paths, IngestConfig())
    _, option, keys = caught.value.hint.rpartition("--observation-keys ")
    assert option
    with open_source("robomimic", paths, IngestConfig(observation_keys=tuple(keys.split(",")))):
        pass


@pytest.fixture(params=["v2", "v3", "sharded"])
def blosc_chunk(request, tmp_path):
    """Return a keyed zarr store whose arrays Blosc compressed, and one of its chunks."""
    values = np.random.default_rng(0).normal(size=(102, 2)).astype(np.float32)
    version = 2 if request.param == "v2" else 3
    codec = Blosc("lz4") if version == 2 else BloscCodec(cname="lz4")
    shards = (102, 2) if request.param == "sharded" else None
    path = tmp_path / "store.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for key in ("obs", "act"):
        group.create_array(key, data=values, chunks=(34, 2), shards=shards, compressors=codec)
    group.create_array("ends", data=np.array([50, 102]))
    chunks = [file for file in (path / "act").rglob("*") if file.name[0].isdigit()]
    return path, min(file for file in chunks if file.is_file())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda head: head[:12] + b"\xff\xff\xff\x70", "declares 1895825407"),
        (lambda head: head[:12] + b"\x05\x00\x00\x00", "declares 5"),
        (lambda head: head[:4] + b"\x00\x00\x00\xf0" + head[8:], "decodes to 4,026,531,840 bytes"),
    ],
)
def test_blosc_is_not_trusted_with_the_sizes_of_a_chunk(blosc_chunk, damage, expected):
    """Its library would read beyond the chunk, which ends the process."""
    path, chunk = blosc_chunk
    settings = {"observation_keys": ("obs",), "action_key": "act", "episode_ends": "ends"}
    with open_source("zarr", (path,), IngestConfig(**settings)) as reader:
        assert [reader.read(index).length for index in range(2)] == [50, 52]
    content = chunk.read_bytes()
    chunk.write_bytes(damage(content[:16]) + content[16:])
    with (
        pytest.raises(DataError, match="act, row 0: cannot be read") as caught,
        open_source("zarr", (path,), IngestConfig(**settings)) as reader,
    ):
        reader.read(0)
    assert expected in caught.value.message


def test_a_chunk_that_was_cut_off_is_refused(blosc_chunk):
    path, chunk = blosc_chunk
    chunk.write_bytes(chunk.read_bytes()[:10])
    with (
        pytest.raises(DataError, match="act, row 0: cannot be read"),
        open_source(
            "zarr", (path,),
            IngestConfig(observation_keys=("obs",), action_key="act", episode_ends="ends"),
        ) as reader,
    ):  # fmt: skip
        reader.read(0)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [({"chunks": [0, 5]}, "declares chunks of shape"), ({"filters": 0.5}, "cannot be opened")],
)
def test_metadata_of_a_zarr_array_are_checked(refusal, damage, expected):
    def change(_, path):
        file = path / "data/state/.zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))

    assert expected in refusal("pusht", in_store(change))


def test_the_chunks_of_a_zarr_array_are_bounded(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("act", data=np.zeros((4, 2), np.uint8), chunks=(1, 2))
    file = tmp_path / "a.zarr/act/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shape": [10**9, 2]}))
    with pytest.raises(DataError, match=r"declares chunks of shape \(1, 2\)"):
        ZarrFile(tmp_path / "a.zarr", 2**36).open(["act"])


@pytest.mark.parametrize("name", ["npz", "pusht"])
def test_a_damaged_table_of_a_zip_file_is_one_line(name, make_sample, tmp_path):
    sample = make_sample(name, tmp_path)
    path = sample.path
    if path.is_dir():
        path = Path(shutil.make_archive(str(tmp_path / "store.zarr"), "zip", path))
    content = bytearray(path.read_bytes())
    for position, value in ((0, b"XX"), (6, b"\xff")):  # its signature, the version to read it
        place = content.index(b"PK\x01\x02") + position
        broken = bytes(content[:place]) + value + bytes(content[place + len(value) :])
        path.write_bytes(broken)
        with pytest.raises(DataError) as caught:
            recognize(path)
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message


def test_a_damaged_member_of_a_zip_file_is_one_line(tmp_path):
    path = tmp_path / "buffer.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}' + " " * 500)
    content = bytearray(path.read_bytes())
    start = len(b".zgroup") + 30  # behind the header of the member
    content[start : start + 3] = b"\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"buffer\.zarr\.zip: is not a zarr group"):
        recognize(path)


@pytest.mark.parametrize(
    ("name", "place", "key"),
    [("robomimic", "data/demo_3", "num_samples"), ("minari", "episode_3", "total_steps")],
)
def test_a_number_that_is_a_list_is_reported(name, place, key, make_sample, tmp_path):
    sample = make_sample(name, tmp_path)
    with h5py.File(sample.hdf5, "a") as file:
        file[place].attrs[key] = [6, 6]
    with open_source(name, (sample.path,), IngestConfig()) as reader:
        assert reader.read(3).length == 6
        assert any(item.check == "metadata" and key in item.message for item in reader.findings)


def declared_only(file, key):
    """Declare an array again and write nothing of it, as a recorder that died leaves it."""
    shape = file[key].shape
    del file[key]
    file.create_dataset(key, shape, np.float32)


def without_a_chunk(file, key):
    values = file[key][()]
    del file[key]
    dataset = file.create_dataset(key, values.shape, np.float32, chunks=(2, values.shape[1]))
    dataset[2:] = values[2:]


@pytest.mark.parametrize("damage", [declared_only, without_a_chunk])
@pytest.mark.parametrize("key", ["obs/observation", "actions"])
def test_rows_that_were_never_written_are_not_read_as_zeros(make_sample, tmp_path, damage, key):
    sample = make_sample("robomimic", tmp_path)
    with h5py.File(sample.path, "a") as file:
        damage(file, f"data/demo_2/{key}")
    with open_source("robomimic", (sample.path,), IngestConfig()) as source:
        source.read(1)
        with pytest.raises(NonFiniteError, match="row 0: was never written") as caught:
            source.read(2)
    assert f"data/demo_2/{key}" in caught.value.message
    config = IngestConfig(on_nan="drop")
    with open_source("robomimic", (sample.path,), config) as source:
        _, summary = ingest(source, config)
    assert summary["dropped_episodes"] == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("key", ["data/obs", "data/act", "data/rewards"])
@pytest.mark.parametrize("every", [1, 7, 50])
def test_huge_numbers_overflow_in_silence(make_sample, tmp_path, key, every):
    sample = make_sample("npz", tmp_path)
    arrays = dict(np.load(sample.path))
    numbers = arrays[key].reshape(-1)
    numbers[numbers.size // 3 :: every] = -(2.0**63)
    np.savez(sample.path, **arrays)
    config = IngestConfig(**{**sample.options, "action_limits": "data"})
    with open_source("npz", (sample.path,), config) as source:
        _, summary = ingest(source, config)
    assert summary["steps"] == len(arrays[key])
