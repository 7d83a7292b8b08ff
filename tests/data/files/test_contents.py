"""What a path holds: kinds of arrays, values that a file records, and what lies beside it."""

from __future__ import annotations

import json
import zipfile

import h5py
import numpy as np
import pytest
import zarr

from lwdctl.core.errors import DataError
from lwdctl.data.files.contents import ArrayEntry, file_type, look_into, look_into_members
from lwdctl.data.files.contents_summary import array_families, recorded_values


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((50, 7), "float32", "low-dimensional"),
        ((50,), "int8", "low-dimensional"),
        ((50, 1, 7), "float64", "low-dimensional"),
        ((), "float64", "scalar"),
        ((50, 84, 84, 3), "uint8", "image"),
        ((50, 3, 84, 84), "float32", "image"),
        ((50, 84, 84), "uint8", "image"),
        ((50, 84, 84, 1), "float32", "image"),
        ((50, 9, 2), "float32", "several axes"),
        ((50, 4, 4), "float64", "several axes"),
        ((50,), "|S8", "text"),
        ((50,), "<U12", "text"),
        ((50,), "str", "text"),
        ((50,), "object", "not numeric"),
        ((50,), "[('x', '<f4')]", "not numeric"),
    ],
)
def test_kind_of_an_array(shape, dtype, kind):
    assert ArrayEntry(shape, dtype).kind == kind


def test_hdf5_values_that_stand_alone_are_recorded_and_texts_have_their_type(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["metadata/algorithm"] = "SAC"
        file["metadata/fixed"] = np.bytes_(b"seven")
        file["metadata/steps"] = 12
        file["names"] = ["one", "two"]
        file.attrs["version"] = "1.4.1"
        file.attrs["odd"] = np.zeros(3)
        file.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_version": "1.5.1", "env_kwargs": {"robots": ["Panda"]}}
        )
    contents = look_into(path)
    assert contents.scalars == {
        "metadata/algorithm": "SAC", "metadata/fixed": "seven", "metadata/steps": 12,
    }  # fmt: skip
    assert contents.arrays["names"] == ArrayEntry((2,), "str")
    found = recorded_values(contents)
    assert list(found)[:3] == ["version", "data/env_args.env_name", "data/env_args.env_version"]
    assert found["version"] == "1.4.1"
    assert found["data/env_args.env_version"] == "1.5.1"
    assert found["metadata/steps"] == 12
    assert "odd" not in found


def test_a_value_that_lies_in_another_file_is_not_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345678")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        # h5py's own function ignores `external` where there is a single value.
        storage = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        storage.set_external(str(secret).encode(), 0, 8)
        space, kind = h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5t.IEEE_F64LE
        h5py.h5d.create(file.id, b"x", kind, space, storage).close()
    assert look_into(tmp_path / "a.hdf5").scalars == {}


def test_arrays_of_many_episodes_are_one_line(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for index in range(70):
            group = file.create_group(f"data/demo_{index}")
            group["actions"] = np.zeros((5 + index, 7))
            group["obs/eef"] = np.zeros((5 + index, 3))
            group["obs/cam"] = np.zeros((5 + index, 64, 64, 3), np.uint8)
            group["obs/gripper"] = np.zeros((5 + index, 2))
            group["next_obs/eef"] = np.zeros((5 + index, 3))
            group["same"] = np.zeros((4, 2))
        for index in range(9):
            file[f"mask/part_{index}"] = np.array([b"demo_1"])
    stored = {"eef": "observation", "final observation": "final observation"}
    families, hidden = array_families(look_into(path), stored)
    found = {item.key: (item.shape, item.use, item.count) for item in families}
    assert found == {
        "data/demo_*/actions": ((None, 7), "action", 64),
        "data/demo_*/next_obs/eef": ((None, 3), "final observation", 64),
        "data/demo_*/obs/cam": ((None, 64, 64, 3), "left out: a picture", 64),
        "data/demo_*/obs/eef": ((None, 3), "observation", 64),
        "data/demo_*/obs/gripper": ((None, 2), "left out: not a default key", 64),
        "data/demo_*/same": ((4, 2), "", 64),
        "mask/*": ((1,), "", 9),
    }
    assert hidden == 6


def test_two_arms_in_groups_of_their_own_are_two_lines(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for demo in range(2):
            for arm in range(2):
                file[f"data/demo_{demo}/obs/robot{arm}/pos"] = np.zeros((4, 3))
    families, _ = array_families(look_into(path), {})
    assert [item.key for item in families] == [
        "data/demo_*/obs/robot0/pos", "data/demo_*/obs/robot1/pos",
    ]  # fmt: skip


def test_every_array_that_may_hold_actions_is_marked(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(
        path, actions=np.zeros((9, 7)), actions_abs=np.zeros((9, 10)), state=np.zeros((9, 3)),
        action_mask=np.zeros((9, 7)), action_names=np.array(["x"]),
    )  # fmt: skip
    families, _ = array_families(look_into(path), {"state": "observation"}, "actions_abs")
    assert [item.key for item in families if item.is_action] == ["actions", "actions_abs"]
    assert {item.key: item.use for item in families if item.use} == {
        "actions_abs": "action", "state": "observation",
    }  # fmt: skip


def test_data_and_metadata_of_a_directory_are_looked_into(tmp_path):
    (tmp_path / "set/data").mkdir(parents=True)
    with h5py.File(tmp_path / "set/data/main_data.hdf5", "w") as file:
        for index in range(3):
            file[f"episode_{index}/actions"] = np.zeros((4, 2))
    metadata = {"minari_version": "0.5.3", "spaces": {"x": 1}, "total_steps": 12}
    (tmp_path / "set/data/metadata.json").write_text(json.dumps(metadata))
    (tmp_path / "set/data/broken.json").write_text("{")
    (tmp_path / "outside.json").write_text('{"secret": 1}')
    (tmp_path / "set/link.json").symlink_to(tmp_path / "outside.json")
    contents = look_into_members(look_into(tmp_path / "set"))
    assert contents.arrays["data/main_data.hdf5/episode_2/actions"].shape == (4, 2)
    assert recorded_values(contents) == {
        "data/metadata.json/minari_version": "0.5.3", "data/metadata.json/total_steps": 12,
    }  # fmt: skip
    assert array_families(contents, {})[0][0].key == "data/main_data.hdf5/episode_*/actions"


def test_features_that_a_lerobot_dataset_declares_are_its_arrays(tmp_path):
    (tmp_path / "meta").mkdir()
    features = {
        "observation.state": {"dtype": "float32", "shape": [6], "names": None},
        "observation.images.top": {"dtype": "video", "shape": [480, 640, 3]},
        "action": {"dtype": "float32", "shape": [6]},
        "odd": {"dtype": "float32", "shape": "six"},
    }
    info = {"codebase_version": "v2.1", "fps": 30, "total_frames": 90, "features": features}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    families, _ = array_families(look_into_members(look_into(tmp_path)), {})
    assert {item.key: (item.shape, item.kind) for item in families} == {
        "observation.state": ((90, 6), "low-dimensional"),
        "observation.images.top": ((90, 480, 640, 3), "image"),
        "action": ((90, 6), "low-dimensional"),
    }


def test_attributes_of_a_zarr_store_are_recorded(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.attrs["lwdctl_version"] = "0.1"
    group.create_array("x", shape=(3,), dtype="f4", chunks=(3,))
    assert recorded_values(look_into(tmp_path / "a.zarr")) == {"lwdctl_version": "0.1"}


def test_a_damaged_zip_file_is_a_data_error(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(500))
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place : place + 4] = b"zzzz"  # the list of files
    path.write_bytes(content)
    assert zipfile.is_zipfile(path)
    with pytest.raises(DataError, match=r"a\.npz: "):
        look_into(path)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("lift_hm.hdf5", "no such file or directory", "did you mean {}/lift_mh.hdf5?"),
        ("unlike.zip", "no such file or directory", ""),
    ],
)
def test_a_missing_path_names_files_of_like_names(tmp_path, name, message, hint):
    (tmp_path / "lift_mh.hdf5").write_text("")
    with pytest.raises(DataError) as caught:
        look_into(tmp_path / name)
    assert caught.value.message == f"{tmp_path / name}: {message}"
    assert caught.value.hint == hint.format(tmp_path)


@pytest.mark.parametrize(
    ("content", "name", "hint"),
    [
        (b"\x1f\x8b\x08rest", "a gzip file", "gunzip --keep '{}'"),
        (b"PAR1....", "a Parquet file", "lwdctl inspect '{parent}' (the directory"),
        (b"\x80\x04\x95", "a pickle, which is never opened", "numpy.savez"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page", "download the file again"),
        (b"\0\0\0\x18ftypmp42", "an MP4 video", ""),
        ("grüße\n".encode(), "a text file", ""),
        (b"\x00\x01\x02\xff", "a binary file of an unknown kind", ""),
        (b"", "an empty file", ""),
    ],
)
def test_a_file_without_demonstrations_is_named_by_its_first_bytes(tmp_path, content, name, hint):
    (tmp_path / "my data").mkdir()
    path = tmp_path / "my data/x"
    path.write_bytes(content)
    found = file_type(path)
    assert found.name.startswith(name)
    assert hint.format(path, parent=path.parent) in found.hint
