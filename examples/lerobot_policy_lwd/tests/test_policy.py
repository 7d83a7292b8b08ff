"""The plug-in acts as the exported policy does, by LeRobot's own classes and factories."""

import os
import shutil

import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot_policy_lwd import LWDConfig, LWDPolicy

from lwdctl.core.errors import ArtifactError, ConfigError, DataError


def run(example, policy, observations):
    """Actions (environment, time, action) over observations (environment, time, obs)."""
    steps = next(iter(observations.values())).shape[1]
    policy.reset()
    rows = []
    for step in range(steps):
        now = {key: values[:, step] for key, values in observations.items()}
        rows.append(policy.select_action(example.batch(policy, now)))
    return torch.stack(rows, dim=1).numpy()


def expected(example, observations, first_seed):
    count = len(next(iter(observations.values())))
    return np.stack(
        [
            example.expected(
                first_seed + index, task, {key: rows[index] for key, rows in observations.items()}
            )
            for index, task in enumerate(example.tasks(count))
        ]
    )


@pytest.mark.parametrize(("count", "steps"), [(1, 100), (4, 25)])
def test_actions_are_those_of_the_exported_policy(example, count, steps):
    policy, observations = example.policy(seed=3), example.observations(count, steps)
    found = run(example, policy, observations)
    assert found.dtype == np.float32
    assert found.shape == (count, steps, example.description.action.size)
    np.testing.assert_array_equal(found, expected(example, observations, 3))
    assert len(np.unique(found[..., 0])) > 50


def test_every_episode_has_a_seed_of_its_own_whatever_the_batch_size(example):
    together, alone = example.policy(seed=8), example.policy(seed=8)
    observations = example.observations(4, 12)
    first, second = (
        run(example, together, {key: values[half] for key, values in observations.items()})
        for half in (slice(0, 2), slice(2, 4))
    )
    np.testing.assert_array_equal(
        first, expected(example, {key: v[:2] for key, v in observations.items()}, 8)
    )
    np.testing.assert_array_equal(
        second, expected(example, {key: v[2:] for key, v in observations.items()}, 10)
    )
    if not example.conditioned:  # the tasks go by the row
        for index, row in enumerate([*first, *second]):
            one = {key: values[index : index + 1] for key, values in observations.items()}
            np.testing.assert_array_equal(run(example, alone, one)[0], row)


def test_a_reset_without_a_step_uses_up_no_seed(example):
    policy, observations = example.policy(), example.observations(1, 3)
    for _ in range(3):
        policy.reset()
    np.testing.assert_array_equal(
        run(example, policy, observations), expected(example, observations, 1000)
    )


def test_saved_and_loaded_by_lerobots_factories(example, tmp_path):
    example.policy(seed=5).save_pretrained(tmp_path / "saved")
    config = PreTrainedConfig.from_pretrained(tmp_path / "saved")
    assert isinstance(config, LWDConfig)
    assert config.type == "lwd"
    kind = get_policy_class(config.type)
    assert kind is LWDPolicy
    assert issubclass(kind, PreTrainedPolicy)
    policy = kind.from_pretrained(tmp_path / "saved", config=config)
    assert not policy.training
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(tmp_path / "saved"),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {}},
        },
    )
    observations = example.observations(3, 10, seed=1)
    rows = []
    for step in range(10):
        now = {key: values[:, step] for key, values in observations.items()}
        rows.append(after(policy.select_action(before(example.batch(policy, now)))))
    np.testing.assert_array_equal(
        torch.stack(rows, dim=1).numpy(), expected(example, observations, 5)
    )
    # What was loaded is saved again as it was, also onto itself.
    policy.save_pretrained(tmp_path / "again")
    policy.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert {"config.json", "policy.json", "act.onnx", "policy_preprocessor.json"} <= {
        path.name for path in (tmp_path / "again").iterdir()
    }


def test_processors_are_made_from_the_settings_alone(example):
    before, after = make_pre_post_processors(make_policy_config("lwd"))
    policy, observations = example.policy(), example.observations(2, 1)
    batch = before(example.batch(policy, {key: v[:, 0] for key, v in observations.items()}))
    np.testing.assert_array_equal(
        after(policy.select_action(batch)).numpy(), expected(example, observations, 1000)[:, 0]
    )


def test_the_hubs_cache_holds_links_to_its_files(example, tmp_path, monkeypatch):
    example.policy(seed=2).save_pretrained(tmp_path / "saved")
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache"
    entry = cache / "models--somebody--policy"
    (entry / "snapshots" / commit).mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    (entry / "blobs").mkdir()
    for number, path in enumerate(sorted((tmp_path / "saved").iterdir())):
        shutil.copyfile(path, entry / "blobs" / str(number))
        (entry / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number}")
    policy = LWDPolicy.from_pretrained("somebody/policy", cache_dir=cache, local_files_only=True)
    observations = example.observations(1, 5)
    np.testing.assert_array_equal(
        run(example, policy, observations), expected(example, observations, 2)
    )


def test_a_chunk_is_the_next_action(example):
    policy, observations = example.policy(), example.observations(2, 6)
    rows = [
        policy.predict_action_chunk(
            example.batch(policy, {key: values[:, step] for key, values in observations.items()})
        )
        for step in range(6)
    ]
    found = torch.cat(rows, dim=1).numpy()
    np.testing.assert_array_equal(found, expected(example, observations, 1000))


def test_features_default_to_the_names_that_the_dataset_export_gives(example):
    policy = example.policy()
    for item in example.description.observations:
        feature = policy.config.feature_names[item.name]
        assert feature == f"observation.{item.name}"
        assert policy.config.input_features[feature].shape == (item.size,)
    action = policy.config.output_features["action"]
    assert (action.type, action.shape) == (FeatureType.ACTION, (example.description.action.size,))


def test_other_features_are_named_on_lerobots_command_line(example, tmp_path):
    example.policy().save_pretrained(tmp_path / "saved")
    key = example.description.observations[0].name
    config = PreTrainedConfig.from_pretrained(
        tmp_path / "saved",
        cli_overrides=[f'--feature_names={{"{key}": "observation.state"}}', "--seed=1"],
    )
    policy = LWDPolicy.from_pretrained(tmp_path / "saved", config=config)
    assert policy.config.feature_names[key] == "observation.state"
    batch = example.batch(policy, {k: v[:, 0] for k, v in example.observations(1, 1).items()})
    assert "observation.state" in batch
    np.testing.assert_array_equal(
        policy.select_action(batch).numpy(),
        expected(example, example.observations(1, 1), 1)[:, 0],
    )


def test_shapes_of_a_dataset_are_flattened(example):
    """A feature of several axes is a row in our data; one value has no axis in LeRobot's."""
    policy, observations = example.policy(), example.observations(2, 1)
    batch = example.batch(policy, {key: values[:, 0] for key, values in observations.items()})
    for feature, rows in batch.items():
        if feature != "task":
            batch[feature] = rows.double().unsqueeze(-1) if rows.shape[1] > 1 else rows[:, 0]
    np.testing.assert_array_equal(
        policy.select_action(batch).numpy(), expected(example, observations, 1000)[:, 0]
    )


def damage_missing(batch, feature):
    del batch[feature]


def damage_size(batch, feature):
    batch[feature] = torch.cat([batch[feature], batch[feature]], dim=1)


def damage_time(batch, feature):
    batch[feature] = torch.stack([batch[feature], batch[feature]], dim=1)


def damage_batch(batch, feature):
    batch[feature] = batch[feature][0]


def damage_scalar(batch, feature):
    batch[feature] = torch.tensor(0.0)


def damage_empty(batch, feature):
    batch[feature] = batch[feature][:0]


def damage_nan(batch, feature):
    batch[feature][1, 0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "the batch has no 'FEATURE'"),
        (damage_size, r"'FEATURE' has the shape \(3, \d+\), the policy needs \(batch, \d+\)"),
        (damage_time, r"'FEATURE' has the shape \(3, 2, \d+\)"),
        (damage_batch, r"'FEATURE' has the shape \(\d+,\)"),
        (damage_scalar, r"'FEATURE' has the shape \(\)"),
        (damage_empty, r"'FEATURE' has the shape \(0, \d+\)"),
        (damage_nan, "holds NaN or infinity"),
    ],
)
def test_a_batch_that_does_not_fit_names_its_feature(example, damage, message):
    policy = example.policy()
    batch = example.batch(policy, {k: v[:, 0] for k, v in example.observations(3, 1).items()})
    feature = policy.config.feature_names[example.description.observations[0].name]
    if damage is damage_batch and batch[feature].shape[1] == 1:
        pytest.skip("one value needs no axis")
    damage(batch, feature)
    with pytest.raises(DataError, match=message.replace("FEATURE", feature)):
        policy.select_action(batch)


def test_features_of_different_numbers_of_environments_are_refused(example):
    policy = example.policy()
    if len(example.description.observations) < 2:
        pytest.skip("the policy has one observation")
    batch = example.batch(policy, {k: v[:, 0] for k, v in example.observations(3, 1).items()})
    feature = policy.config.feature_names[example.description.observations[0].name]
    batch[feature] = batch[feature][:2]
    with pytest.raises(DataError, match="different numbers of environments"):
        policy.select_action(batch)


def test_another_number_of_environments_needs_a_reset(example):
    policy, observations = example.policy(), example.observations(3, 1)
    batch = example.batch(policy, {key: values[:, 0] for key, values in observations.items()})
    policy.select_action(batch)
    fewer = {key: values[:2] for key, values in batch.items()}
    with pytest.raises(DataError, match="a batch of 2 environments, after one of 3"):
        policy.select_action(fewer)
    policy.reset()
    assert len(policy.select_action(fewer)) == 2


def test_tasks_and_labels(example):
    description = example.description
    batch = example.batch(
        example.policy(), {k: v[:, 0] for k, v in example.observations(2, 1).items()}
    )
    wanted = example.policy().select_action(batch)
    if not example.conditioned:
        batch["task"] = ["whatever"] * 2
        assert torch.equal(example.policy().select_action(batch), wanted)
        return
    first, second = description.tasks[:2]
    batch["task"] = ["the first one", second]
    with pytest.raises(ConfigError, match="the policy knows no task 'the first one'"):
        example.policy().select_action(batch)
    named = example.policy(task_names={"the first one": first})
    assert torch.equal(named.select_action(batch), wanted)
    fixed = example.policy(task=first)
    assert torch.equal(fixed.select_action(batch)[0], wanted[0])
    assert not torch.equal(fixed.select_action(batch)[1], wanted[1])
    for none in (None, "", ["", ""]):
        with pytest.raises(ConfigError, match="conditioned on the task"):
            example.policy().select_action({**batch, "task": none})
    batch["task"] = [first]
    with pytest.raises(DataError, match="1 tasks for 2 environments"):
        example.policy().select_action(batch)
    with pytest.raises(ConfigError, match="the policy knows no task 'elsewhere'"):
        example.policy(task="elsewhere")


def test_settings_that_do_not_fit_are_refused_when_the_policy_is_loaded(example):
    with pytest.raises(ConfigError, match="no observation 'nothing'"):
        example.policy(feature_names={"nothing": "observation.state"})
    with pytest.raises(ConfigError, match="knows no label 'nothing'"):
        LWDPolicy(LWDConfig(label="nothing"), example.directory)
    action = {"action": PolicyFeature(FeatureType.ACTION, (99,))}
    with pytest.raises(ConfigError, match=r"the environment's or dataset's has the shape \(99,\)"):
        example.policy(output_features=action)
    with pytest.raises(ConfigError, match="cannot be made from settings alone"):
        LWDPolicy(LWDConfig())


def test_nothing_is_trained(example):
    policy = example.policy()
    assert policy.get_optim_params() == {}
    with pytest.raises(NotImplementedError, match="lwdctl train-vae"):
        policy.forward({})
    with pytest.raises(NotImplementedError, match="lwdctl train-vae"):
        policy.config.get_optimizer_preset()
    assert policy.config.get_scheduler_preset() is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("act.onnx", flip),
        ("act.onnx", lambda path: path.unlink()),
        ("act.onnx", pipe),
        ("policy.json", lambda path: path.write_text("{")),
        ("policy.json", lambda path: path.write_text("[" * 100_000)),
        ("policy.json", lambda path: path.unlink()),
        ("policy.json", pipe),
    ],
)
def test_damaged_files_are_refused(example, tmp_path, name, damage):
    example.policy().save_pretrained(tmp_path / "saved")
    damage(tmp_path / "saved" / name)
    with pytest.raises(ArtifactError):
        LWDPolicy.from_pretrained(tmp_path / "saved")
