"""Files written by other projects' own code: our numbers are those that their readers return."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest

from lwdctl.configs import IngestConfig
from lwdctl.core.simulator_facts import GYM_ENVIRONMENTS
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source, recognize

STAND_IN = Path(__file__).parents[1] / "examples" / "stand_in"
RECORDER = Path(__file__).with_name("record_with_robosuite.py")
LOW_DIM = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


def read_all(name, path, **settings):
    """Return the specification and all episodes; the format is recognized by content."""
    assert recognize(path).format == name
    with open_source(None, (path,), IngestConfig(**settings)) as reader:
        return reader.spec, [reader.read(index) for index in range(len(reader.episodes))]


# robomimic and robosuite


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return a folder with robosuite's `demo.hdf5` and robomimic's `low_dim.hdf5`."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    pytest.importorskip("robomimic", reason="robomimic is not installed")
    folder = tmp_path_factory.mktemp("robosuite")
    places = [*sys.path, str(STAND_IN)]  # torchvision, where it is not installed
    done = subprocess.run(
        [sys.executable, str(RECORDER), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def sequence_dataset(monkeypatch):
    """Return a maker of robomimic's `SequenceDataset` with whole episodes as sequences."""
    monkeypatch.setitem(sys.modules, "mujoco_py", types.ModuleType("mujoco_py"))
    try:
        from robomimic.utils import dataset, obs_utils
    except ImportError as error:
        pytest.skip(f"robomimic cannot be imported: {error}")

    def make(path, keys, length, **settings):
        obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(keys), "rgb": []}})
        return dataset.SequenceDataset(
            hdf5_path=str(path), obs_keys=keys, dataset_keys=("actions", "rewards", "dones"),
            seq_length=length, **settings,
        )  # fmt: skip

    return make


def check_against(dataset, episodes, keys):
    """Compare episodes with what `SequenceDataset` returns at each one's first step."""
    assert len(dataset) == sum(episode.length for episode in episodes)
    assert dataset.demos == [episode.source for episode in episodes]
    start = 0
    for episode in episodes:
        theirs = dataset[start]
        for key in keys:
            theirs_now, theirs_next = theirs["obs"][key], theirs["next_obs"][key]
            ours = episode.observations[key]
            np.testing.assert_array_equal(ours, theirs_now[: episode.length].astype(np.float32))
            last = theirs_next[episode.length - 1].astype(np.float32)
            np.testing.assert_array_equal(episode.final_observation[key], last)
        for name, ours in (("actions", episode.actions), ("rewards", episode.rewards)):
            found = theirs[name][: episode.length].astype(np.float32)
            np.testing.assert_array_equal(ours, found)
        start += episode.length


@pytest.mark.slow
def test_robosuites_recording_converted_by_robomimic(recorded, sequence_dataset):
    path = recorded / "low_dim.hdf5"
    spec, episodes = read_all("robomimic", path)
    keys = spec.network_keys
    assert set(keys) == set(LOW_DIM)
    check_against(sequence_dataset(path, keys, 6), episodes, keys)
    # What robosuite itself wrote, before robomimic.
    with h5py.File(recorded / "demo.hdf5") as raw:
        for episode in episodes:
            demo = raw[f"data/{episode.source}"]
            assert episode.length == len(demo["actions"])
            np.testing.assert_array_equal(episode.initial_state, demo["states"][0])
            np.testing.assert_array_equal(episode.actions, demo["actions"][:].astype(np.float32))
            assert episode.model == demo.attrs["model_file"]
    # robosuite's own limits of this controller.
    assert (spec.env.adapter, spec.env.tasks) == ("robosuite", ("Lift",))
    assert spec.action.semantics == "delta"
    assert (spec.action.low, spec.action.high) == ((-1.0,) * 7, (1.0,) * 7)


@pytest.mark.slow
@pytest.mark.parametrize("converted", [True, False])
def test_robosuites_recording_is_replayed_as_robomimic_does(recorded, tmp_path, converted):
    path = tmp_path / "raw.hdf5"
    path.write_bytes((recorded / "demo.hdf5").read_bytes())
    if not converted:  # as robosuite's recorder left it
        with h5py.File(path, "a") as file:
            del file["data"].attrs["env_args"], file["mask"]
    low_dim, expected = read_all("robomimic", recorded / "low_dim.hdf5")
    spec, episodes = read_all("robomimic", path)
    assert spec.observations == low_dim.observations
    assert spec.action == low_dim.action
    assert (spec.env.adapter, spec.env.tasks) == ("robosuite", ("Lift",))
    # The recorder lists its folder in any order.
    assert sorted(episode.length for episode in episodes) == [4, 6]
    for ours, theirs in zip(episodes, expected, strict=True):
        for name, values in theirs.observations.items():
            np.testing.assert_allclose(ours.observations[name], values, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.initial_state, theirs.initial_state)
        assert ours.final_observation is None
    spec, episodes = read_all("robomimic", path, observation_keys=("robot0_joint_pos",))
    # A flattened state is the time, then the positions, of which the arm's seven are first.
    with h5py.File(path) as file:
        states = file["data/demo_2/states"][:, 1:8]
    np.testing.assert_allclose(episodes[1].observations["robot0_joint_pos"], states, atol=1e-6)


def test_robomimics_filter_keys(recorded, sequence_dataset, monkeypatch, tmp_path):
    path = tmp_path / "split.hdf5"
    path.write_bytes((recorded / "low_dim.hdf5").read_bytes())
    monkeypatch.syspath_prepend(str(STAND_IN))
    try:
        from robomimic.utils.file_utils import create_hdf5_filter_key
    except ImportError as error:
        pytest.skip(f"robomimic cannot be imported: {error}")
    with h5py.File(path, "a") as file:
        del file["mask"]
    create_hdf5_filter_key(str(path), ["demo_2"], "valid")
    create_hdf5_filter_key(str(path), ["demo_1"], "train")
    for name, split in (("train", "train"), ("valid", "validation")):
        _, episodes = read_all("robomimic", path, filter_key=name)
        check_against(
            sequence_dataset(path, LOW_DIM, 6, filter_by_attribute=name), episodes, LOW_DIM
        )
        assert [episode.split for episode in episodes] == [split]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["plain", "gzip", "float64"])
def test_a_file_in_robomimics_layout_of_any_storage(sequence_dataset, tmp_path, storage):
    rng, path = np.random.default_rng(1), tmp_path / "made.hdf5"
    kind = np.float64 if storage == "float64" else np.float32
    options = {"compression": "gzip", "chunks": True} if storage == "gzip" else {}
    with h5py.File(path, "w") as file:
        for number, length in enumerate((5, 3, 9, *[4] * 9)):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = length
            rows = {"a": rng.normal(size=(length + 1, 3)), "b/c": rng.normal(size=(length + 1, 1))}
            for name, values in rows.items():
                flat = name.replace("/", "_")
                demo.create_dataset(f"obs/{flat}", data=values[:-1].astype(kind), **options)
                demo.create_dataset(f"next_obs/{flat}", data=values[1:].astype(kind), **options)
            demo.create_dataset(
                "actions", data=rng.normal(size=(length, 2)).astype(kind), **options
            )
            demo["rewards"] = rng.normal(size=length)
            demo["dones"] = np.arange(length) == length - 1
        file["data"].attrs["total"] = 53
        file["data"].attrs["env_args"] = json.dumps({"env_name": "made", "type": 2})
    spec, episodes = read_all("robomimic", path)
    keys = spec.network_keys
    assert set(keys) == {"a", "b_c"}
    dataset = sequence_dataset(path, keys, 9)
    # robomimic sorts names by their numbers as well.
    assert [episode.source for episode in episodes] == [f"demo_{number}" for number in range(12)]
    check_against(dataset, episodes, keys)


# Minari


@pytest.fixture
def minari(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return pytest.importorskip("minari", reason="minari is not installed")


def nested(observations, prefix=""):
    """Return the leaves of an observation as `"outer.inner"` to array."""
    if not isinstance(observations, dict):
        return {prefix or "observation": np.asarray(observations)}
    leaves = {}
    for name, value in observations.items():
        leaves |= nested(value, f"{prefix}.{name}" if prefix else name)
    return leaves


def check_minari(dataset, path):
    """Compare a data set as minari's reader returns it with ours."""
    spec, episodes = read_all("minari", path)
    theirs = list(dataset.iterate_episodes())
    assert len(episodes) == len(theirs) == dataset.total_episodes
    assert sum(episode.length for episode in episodes) == dataset.total_steps
    for ours, other in zip(episodes, theirs, strict=True):
        leaves = nested(other.observations)
        assert set(ours.observations) == set(leaves)
        for key, values in leaves.items():
            rows = values.reshape(len(values), -1).astype(np.float32)
            np.testing.assert_array_equal(ours.observations[key], rows[:-1])
            np.testing.assert_array_equal(ours.final_observation[key], rows[-1])
        np.testing.assert_array_equal(ours.actions, other.actions.astype(np.float32))
        np.testing.assert_array_equal(ours.rewards, other.rewards.astype(np.float32))
    space = dataset.action_space
    assert spec.action.low == tuple(map(float, space.low))
    assert spec.action.high == tuple(map(float, space.high))
    return spec, episodes


COMMON = {
    "algorithm_name": "none", "author": "nobody", "author_email": "n@example.org",
    "code_permalink": "none", "description": "",
}  # fmt: skip


def rollouts(minari, env, lengths):
    """Return episodes of an environment as minari's collector records them."""
    from minari.data_collector import EpisodeBuffer

    env.action_space.seed(0)
    for number, length in enumerate(lengths):
        seen = [env.reset(seed=number)[0]]
        rows = {"actions": [], "rewards": [], "terminations": [], "truncations": []}
        for _ in range(length):
            action = env.action_space.sample()
            after, *others, _ = env.step(action)
            seen.append(after)
            for name, value in zip(rows, (action, *others), strict=True):
                rows[name].append(value)
        yield EpisodeBuffer(
            id=number, seed=number, observations=_stacked(seen), infos={},
            **{**rows, "actions": np.stack(rows["actions"])},
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Pendulum-v1", {}),
        ("MountainCarContinuous-v0", {}),
        ("HalfCheetah-v5", {}),
        ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False}),
        ("Pusher-v5", {}),
    ],
)
def test_gymnasiums_environments_as_minari_writes_them(minari, tmp_path, name, settings):
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make(name, max_episode_steps=14, **settings)
    buffers = list(rollouts(minari, env, [14 if number % 2 else 9 for number in range(11)]))
    minari.create_dataset_from_buffers("toy/made-v0", buffers, env=env, **COMMON)
    env.close()
    spec, episodes = check_minari(minari.load_dataset("toy/made-v0"), tmp_path / "toy/made-v0")
    for episode, buffer in zip(episodes, buffers, strict=True):
        rows = buffer.observations[:-1].astype(np.float32)
        np.testing.assert_array_equal(episode.observations["observation"], rows)
        assert episode.seed == buffer.id
    assert spec.env.tasks == (name,)
    assert spec.env.max_steps == 14


def buffers_of(minari, observation, action, count=3):
    """Return episodes of random observations and actions of two spaces."""
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    for space in (observation, action):
        space.seed(0)
    for number in range(count):
        steps = 4 + number
        yield EpisodeBuffer(
            id=number,
            observations=_stacked([observation.sample() for _ in range(steps + 1)]),
            actions=np.stack([action.sample() for _ in range(steps)]),
            rewards=list(rng.normal(size=steps)),
            terminations=[False] * steps,
            truncations=[False] * (steps - 1) + [True],
            infos={},
        )


def _stacked(samples):
    if isinstance(samples[0], dict):
        return {key: _stacked([item[key] for item in samples]) for key in samples[0]}
    return np.stack(samples)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["vector", "double", "dictionary", "nested", "single", "scalar"])
def test_spaces_that_minari_writes(minari, tmp_path, kind):
    spaces = pytest.importorskip("gymnasium").spaces
    box = lambda *shape, kind=np.float32: spaces.Box(-3.0, 5.0, shape, kind)  # noqa: E731
    observation = {
        "vector": box(3),
        "double": box(3, kind=np.float64),
        "single": box(1),
        "scalar": box(),
        "dictionary": spaces.Dict({"goal": box(2), "arm": box(4, kind=np.float64)}),
        "nested": spaces.Dict({"goal": box(2), "hand": spaces.Dict({"left": box(3)})}),
    }[kind]
    action = spaces.Box(np.array([-0.5, -2.0]), np.array([0.25, 8.0]), dtype=np.float64)
    minari.create_dataset_from_buffers(
        "toy/spaces-v0", list(buffers_of(minari, observation, action)),
        observation_space=observation, action_space=action, **COMMON,
    )  # fmt: skip
    check_minari(minari.load_dataset("toy/spaces-v0"), tmp_path / "toy/spaces-v0")


# Gymnasium


@pytest.mark.parametrize("known", GYM_ENVIRONMENTS, ids=lambda known: known.id)
@pytest.mark.filterwarnings("ignore")
def test_limits_are_those_of_gymnasiums_spaces(known, tmp_path):
    """A file in D4RL's layout, filled by the environment and read back through plain h5py."""
    gymnasium = pytest.importorskip("gymnasium")
    if known.adapter == "adroit":
        robotics = pytest.importorskip("gymnasium_robotics")
        gymnasium.register_envs(robotics)
    size, settings = next(iter(known.observation_sizes.items()))
    env = gymnasium.make(known.id, **settings)
    env.action_space.seed(0)
    rows = {"observations": [], "actions": [], "rewards": [], "terminals": [], "timeouts": []}
    ends = []
    for seed, length in enumerate((7, 4, 9)):
        seen, _ = env.reset(seed=seed)
        for step in range(length):
            action = env.action_space.sample()
            after, reward, _, _, _ = env.step(action)
            values = (seen, action, reward, seed == 1 and step == length - 1,
                      seed != 1 and step == length - 1)  # fmt: skip
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            seen = after
        ends.append(len(rows["actions"]))
    path = tmp_path / f"{known.base}_random-v2.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in rows.items():
            file[name] = np.asarray(values)
    spec, episodes = read_all("d4rl", path)
    assert spec.sizes(spec.network_keys) == env.observation_space.shape == (size,)
    assert spec.action.low == tuple(map(float, env.action_space.low))
    assert spec.action.high == tuple(map(float, env.action_space.high))
    if known.adapter == "mujoco":  # the hand's are D4RL's, which gymnasium-robotics has doubled
        assert spec.env.max_steps == env.spec.max_episode_steps
    env.close()
    with h5py.File(path) as file:
        starts = [0, *ends[:-1]]
        # A row has no observation after it where the episode was cut off.
        for episode, start in zip(episodes, starts, strict=True):
            here = slice(start, start + episode.length)
            expected = {name: file[name][here].astype(np.float32) for name in rows}
            np.testing.assert_array_equal(
                episode.observations["observation"], expected["observations"]
            )
            np.testing.assert_array_equal(episode.actions, expected["actions"])
            np.testing.assert_array_equal(episode.rewards, expected["rewards"])
    assert [episode.length for episode in episodes] == [7, 4, 9]


def test_limits_are_those_of_pushts_space(make_sample, tmp_path):
    pytest.importorskip("gym_pusht")
    gymnasium = pytest.importorskip("gymnasium")
    space = gymnasium.make("gym_pusht/PushT-v0").action_space
    spec, _ = read_all("pusht", make_sample("pusht", tmp_path).path)
    assert spec.action.low == tuple(map(float, space.low))
    assert spec.action.high == tuple(map(float, space.high))


def test_limits_are_those_of_metaworlds_space(make_sample, tmp_path):
    metaworld = pytest.importorskip("metaworld")
    space = metaworld.ALL_V3_ENVIRONMENTS["reach-v3"]().action_space
    spec, _ = read_all("robomimic", make_sample("robomimic", tmp_path).path)
    assert spec.env.adapter == "metaworld"
    assert spec.action.low == tuple(map(float, space.low))
    assert spec.action.high == tuple(map(float, space.high))


def test_the_store_keeps_what_the_peer_returned(recorded, sequence_dataset):
    """Ingested episodes, in the store's random order, are those of `SequenceDataset`."""
    path = recorded / "low_dim.hdf5"
    config = IngestConfig()
    with open_source(None, (path,), config) as source:
        store, _ = ingest(source, config)
    keys = store.spec.network_keys
    order = np.argsort(store.episodes.source)
    check_against(
        sequence_dataset(path, keys, 6), [store.episode(int(index)) for index in order], keys
    )
