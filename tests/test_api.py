"""The front door: what `import lwdctl` offers, and the README's lines of Python."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import lwdctl
from lwdctl.core.errors import ArtifactError, ConfigError, DataError, SimulatorError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import EnvSpec
from lwdctl.envs.metaworld import MetaworldSimulator
from lwdctl.envs.table import environment_named
from lwdctl.evaluation import collect as collecting
from lwdctl.stages import evaluate as stage_evaluate

README = Path(__file__).parents[1] / "README.md"
SMALL = {"updates": 3, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model on Metaworld's `reach`, as small as can be."""
    place = tmp_path_factory.mktemp("api")
    lwdctl.collect(
        "metaworld", task=["reach"], episodes=4, max_steps=20, workers=0, keep_failures=True,
        workspace=place,
    )  # fmt: skip
    data = lwdctl.ingest("robomimic", workspace=place, name="lift_mh", validation_fraction=0.25)
    config = lwdctl.VaeConfig(snippet_length=8, policy_width=16, decoder="xs", **SMALL)
    latents = lwdctl.encode(lwdctl.train_vae(data, config), lwdctl.EncodeConfig(device="cpu"))
    lwdctl.train_diffusion(latents, lwdctl.DiffusionConfig(width=16, **SMALL))
    for method in ("dp", "mlp"):
        config = lwdctl.BaselineConfig(
            snippet_length=8, unet_size="xs", policy_width=16, warmup=1, **SMALL
        )
        lwdctl.train_baseline(method, data, config, name=method)
    return place


@pytest.mark.sim
def test_the_lines_of_the_readme_run_as_they_stand(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metaworld stands for robosuite, with fewer and shorter episodes."""
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(workspace))
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(list(filter(None, block.splitlines()))) == 10
    for old, new in (
        ('"robosuite/Lift", episodes=50', '"metaworld/reach", episodes=2, max_steps=10'),
        ('task="Lift"', 'task="reach"'),
        ("snippet_length=64", "snippet_length=8, policy_width=16, updates=2, batch_size=4"),
    ):
        assert old in block
        block = block.replace(old, new)
    session: dict[str, object] = {}
    exec(block, session)
    assert session["action"].shape == (4,)
    assert isinstance(session["network"], torch.nn.Module)
    assert session["table"].rows[-1].episodes == 2
    assert session["vae"].artifact.reference == "vae/lift_mh:v2"


@pytest.mark.sim
def test_every_method_opens_the_same_way(workspace: Path) -> None:
    for reference in ("diffusion/lift_mh", "baseline/dp", "baseline/mlp"):
        policy = lwdctl.load_policy(reference, workspace=workspace, device="cpu")
        policy.reset(seed=3)
        seen = dict.fromkeys(policy.observation_keys, np.zeros(39, np.float32))
        first = policy.act(seen)
        again = policy.copy()
        again.reset_batch([3, 4])
        both = again.act_batch({key: np.zeros((2, 39)) for key in seen})
        np.testing.assert_allclose(both[0], first, atol=1e-6)
        assert "action [4]" in repr(policy)


@pytest.mark.sim
def test_what_is_saved_opens_again(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = lwdctl.load_dataset("snippets/lift_mh", workspace=workspace)
    in_memory = lwdctl.Dataset(data.store)
    config = lwdctl.VaeConfig(snippet_length=8, policy_width=16, decoder="xs", **SMALL)
    latents = lwdctl.encode(lwdctl.train_vae(in_memory, config))
    diffusion = lwdctl.train_diffusion(latents, lwdctl.DiffusionConfig(width=16, **SMALL))
    settings = lwdctl.BaselineConfig(policy_width=16, warmup=1, **SMALL)
    for number, trained in enumerate(
        (diffusion, lwdctl.train_baseline("mlp", in_memory, settings))
    ):
        trained.save(f"~/{number}")
        actions = []
        for policy in (lwdctl.load_policy(trained), lwdctl.load_policy(f"~/{number}")):
            policy.reset(seed=1)
            actions.append(policy.act(np.ones(39)))
        np.testing.assert_array_equal(*actions)
    with pytest.raises(ConfigError, match="latent 'mean' needs the latents of a workspace"):
        lwdctl.load_policy(diffusion, latent="mean")
    latents.vae.save(tmp_path / "vae")
    with pytest.raises(ConfigError, match="holds a model, but no policy"):
        lwdctl.load_policy(tmp_path / "vae")
    published = lwdctl.train_vae(data, config, name="copied")
    published.save("~/copy")
    published.save("~/copy")
    for name in ("model.json", "weights.safetensors", "ema.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == published.artifact.payload(
            name
        ).read_bytes()


def test_saving_mixes_no_two_models(tmp_path: Path) -> None:
    data = lwdctl.Dataset.from_arrays([np.zeros((12, 2))] * 2, [np.zeros((12, 1))] * 2)
    vae = lwdctl.train_vae(
        data, lwdctl.VaeConfig(snippet_length=8, policy_width=16, decoder="xs", **SMALL)
    )
    config = lwdctl.DiffusionConfig(width=16, **SMALL)
    diffusion = lwdctl.train_diffusion(lwdctl.encode(vae), config)
    mlp = lwdctl.train_baseline("mlp", data, lwdctl.BaselineConfig(policy_width=16, **SMALL))
    for name, trained, other in (("lwd", diffusion, mlp), ("mlp", mlp, diffusion)):
        place = tmp_path / name
        for _ in range(2):  # it replaces itself
            trained.save(place)
        held = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError, match=f"{name} is not empty: it holds ") as error:
            other.save(place)
        assert error.value.hint == "save into another directory"
        assert held == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        assert lwdctl.load_policy(place).name == name
    (tmp_path / "runs" / "vae" / "dock").mkdir(parents=True)
    with pytest.raises(ConfigError, match="vae is not empty: it holds dock"):
        diffusion.save(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["vae"]
    with pytest.raises(ConfigError, match=r"model\.json is a file"):
        mlp.save(tmp_path / "mlp" / "model.json")


@pytest.mark.sim
def test_the_network_acts_as_the_policy_does(workspace: Path) -> None:
    policy = lwdctl.load_policy(workspace=workspace, device="cpu", horizon=4)
    rng = np.random.default_rng(0)
    policy.reset(seed=0)
    with pytest.raises(ConfigError, match="no network"):
        policy.network()
    for step in range(3):
        seen = rng.normal(size=39).astype(np.float32)
        action = policy.act(seen)
        network = policy.network()
        found = network(torch.from_numpy(seen), elapsed=step / 8).detach().numpy()
        limits = policy.source.action
        np.testing.assert_allclose(np.clip(found, limits.low, limits.high), action, atol=1e-5)
    with pytest.raises(ConfigError, match="generates no network"):
        lwdctl.load_policy("baseline/mlp", workspace=workspace).network()


def test_mistakes_are_answered(workspace: Path) -> None:
    policy = lwdctl.load_policy(workspace=workspace, device="cpu")
    with pytest.raises(lwdctl.LwdctlError, match="no episode"):
        policy.act(np.zeros(39))
    with pytest.raises(ConfigError, match="knows no task 'lift'"):
        policy.reset(task="lift")
    policy.reset()
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        policy.act(np.zeros(3))
    with pytest.raises(DataError, match="'observation' is missing"):
        policy.act({"eye": np.zeros(39)})
    with pytest.raises(DataError, match="'observation' is no array of numbers"):
        policy.act({"observation": "a"})
    with pytest.raises(ConfigError, match="unknown setting 'horizons'"):
        lwdctl.load_policy(workspace=workspace, horizons=3)
    with pytest.raises(ConfigError, match="'latent' cannot be 'nonsense'"):
        policy.with_settings(latent="nonsense")
    with pytest.raises(ConfigError, match="'sampler' cannot be 'dimm'"):
        lwdctl.load_policy(workspace=workspace, sampler="dimm")
    oracle = policy.with_settings(latent="oracle")
    oracle.reset()
    with pytest.raises(ConfigError, match="'oracle' needs episodes that restore"):
        oracle.act(np.zeros(39))
    with pytest.raises(ConfigError, match="has no method 'act'"):
        lwdctl.evaluate({"mine": _OnlyReset()}, env=EnvSpec("pusht", ("push_t",)))
    with pytest.raises(ConfigError, match="to run in: no policy has data"):
        lwdctl.evaluate({"mine": _OnlyReset()})


class _NineNumbers:
    def reset(self) -> None:
        pass

    def act(self, observation: object) -> np.ndarray:
        return np.zeros(9)


class _Nothing(_NineNumbers):
    def act(self, observation: object) -> None:
        pass


@pytest.mark.sim
def test_policies_that_do_not_fit_the_environment_are_answered(workspace: Path) -> None:
    with pytest.raises(ConfigError, match="'mine' returned actions of 9 components"):
        lwdctl.evaluate({"mine": _NineNumbers()}, env="pusht", episodes=1, max_steps=2)
    with pytest.raises(ConfigError, match=r"_Nothing.act returned None, expected .* \(action,\)"):
        lwdctl.evaluate({"mine": _Nothing()}, env="pusht", episodes=1, max_steps=2)
    with pytest.raises(ConfigError, match="is a class"):
        lwdctl.evaluate({"mine": _NineNumbers}, env="pusht", episodes=1)
    policy = lwdctl.load_policy(workspace=workspace, device="cpu")
    with pytest.raises(
        ConfigError, match="the policy sees observation, the environment shows"
    ) as error:
        lwdctl.evaluate({"lwd": policy}, env="pusht", episodes=1, max_steps=2)
    assert error.value.hint.startswith("give the environment a Dict of observations with the keys")
    for reference in ("diffusion/lift_mh", "baseline/dp", "baseline/mlp"):
        policy = lwdctl.load_policy(reference, workspace=workspace, device="cpu")
        sizes = "'observation' with 39 components, the environment shows it with 2"
        with pytest.raises(ConfigError, match=sizes):
            lwdctl.evaluate(policy, env=_Unplugged, episodes=1, max_steps=2)
    with pytest.raises(ConfigError, match=r"the policy 'lwd' returned actions of 4 .* takes 9"):
        lwdctl.evaluate({"lwd": policy}, env=_With39Observations, episodes=1, max_steps=2)


class _Unplugged(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (9,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: object) -> Any:
        raise RuntimeError("servo 4 is unplugged")


class _With39Observations(_Unplugged):
    observation_space = gymnasium.spaces.Box(-1, 1, (39,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(39, dtype=np.float32), {}


def test_an_environment_in_which_no_episode_ends_is_answered() -> None:
    with pytest.raises(SimulatorError, match=r"no episode of any policy .*servo 4 is unplugged"):
        lwdctl.evaluate({"mine": _NineNumbers()}, env=_Unplugged(), episodes=2, max_steps=2)


def test_the_data_of_all_policies_mean_one_environment(workspace: Path) -> None:
    policy, other = (lwdctl.load_policy("mlp", workspace=workspace) for _ in range(2))
    env = policy.source.env
    for changes, said in (
        ({"max_steps": env.max_steps + 1}, "step limit of 'metaworld'"),
        ({"settings": {**env.settings, "odd": 1}}, "settings of 'metaworld'"),
    ):
        other.trained.source = replace(policy.source, env=replace(env, **changes))
        with pytest.raises(ConfigError, match=said):
            lwdctl.evaluate({"one": policy, "other": other}, episodes=1)


@pytest.mark.sim
def test_a_factory_gives_the_episodes_of_the_name(workspace: Path) -> None:
    """The noise of the latents and the perturbations depend on the task, which no factory names."""
    policy = lwdctl.load_policy("diffusion/lift_mh", workspace=workspace, device="cpu")
    short = {"episodes": 2, "max_steps": 6, "perturbation": 0.05, "perturbation_probability": 0.9}
    named = lwdctl.evaluate({"lwd": policy}, env="metaworld/reach", **short)
    env = environment_named("metaworld/reach")
    made = lwdctl.evaluate({"lwd": policy}, env=lambda: MetaworldSimulator(env, "reach"), **short)
    one, other = (
        [(item.plan, item.return_, item.metrics) for item in table.episodes["lwd"]]
        for table in (named, made)
    )
    assert one == other


def test_references_and_other_objects_are_answered_with_the_line_to_write(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(workspace))
    config = lwdctl.VaeConfig(snippet_length=8, policy_width=16, decoder="xs", **SMALL)
    session: dict[str, Any] = {"lwdctl": lwdctl}
    for call in (lwdctl.train_vae, partial(lwdctl.train_baseline, "mlp")):
        with pytest.raises(ConfigError, match="'snippets/lift_mh' is of the type str") as error:
            call("snippets/lift_mh")
        exec(error.value.hint, session)
        with pytest.raises(ConfigError, match="the argument is of the type list, expected Data"):
            call([1])
        with pytest.raises(ConfigError) as error:
            call(Path(__file__))
        assert error.value.hint == f"data = lwdctl.ingest({__file__!r})"
    session["data"] = lwdctl.Dataset(session["data"].store)
    with pytest.raises(ConfigError, match="is of the type Dataset, expected Vae") as error:
        lwdctl.encode(session["data"])
    assert error.value.hint == "lwdctl.encode(lwdctl.train_vae(data))"
    session["vae"] = lwdctl.train_vae(session["data"], config)
    with pytest.raises(ConfigError, match="is of the type Vae, expected Latents") as error:
        lwdctl.train_diffusion(session["vae"])
    assert error.value.hint == "lwdctl.train_diffusion(lwdctl.encode(vae))"
    with pytest.raises(ConfigError, match="'vae/lift_mh' is of the type str, expected V") as error:
        lwdctl.encode("vae/lift_mh")
    assert eval(error.value.hint, session).reference.startswith("latents/lift_mh:")
    with pytest.raises(ConfigError) as error:
        lwdctl.train_diffusion("lift_mh")
    assert """run_stage("train-diffusion", inputs={"latents": 'lift_mh'})""" in error.value.hint
    with pytest.raises(ConfigError, match="method is of the type Dataset") as error:
        lwdctl.train_baseline(session["data"], "mlp")
    assert error.value.hint == 'lwdctl.train_baseline("mlp", data)'


class _OnlyReset:
    def reset(self) -> None:
        pass


def test_a_dataset_is_a_sequence_of_episodes(workspace: Path) -> None:
    data = lwdctl.load_dataset("snippets/lift_mh", workspace=workspace)
    assert len(data) == len(list(data)) == len(data[:]) == 4
    episode = data[-1]
    assert episode.observations["observation"].shape == (episode.length, 39)
    assert episode.task == "reach"
    with pytest.raises(IndexError):
        data[4]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = data.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == data.store.steps
    assert {"episode", "step", "task", "observation_38", "action_3"} <= set(frame)


def test_a_file_of_demonstrations_is_to_be_ingested(tmp_path: Path) -> None:
    path = tmp_path / "reach.hdf5"
    path.touch()
    with pytest.raises(ArtifactError, match=r"reach\.hdf5 is a file, not the reference") as error:
        lwdctl.load_dataset(path, workspace=tmp_path)
    assert f"lwdctl.ingest({str(path)!r}, workspace={str(tmp_path)!r})" in error.value.hint
    with pytest.raises(ArtifactError, match="no finished snippets"):
        lwdctl.load_dataset("reach", workspace=tmp_path)


def test_what_is_no_policy_yet_is_told_which_calls_come_next() -> None:
    data = lwdctl.Dataset.from_arrays([np.zeros((4, 2))], [np.zeros((4, 1))])
    vae = lwdctl.Vae(None, None, data)
    for source, call in (
        (vae, "lwdctl.train_diffusion(lwdctl.encode(vae))"),
        (lwdctl.Latents(None, vae), "lwdctl.train_diffusion(latents)"),
        (data, "lwdctl.train_diffusion(lwdctl.encode(lwdctl.train_vae(data)))"),
        (3, "REFERENCE"),
    ):
        kind = type(source).__name__
        with pytest.raises(ConfigError, match=f"of the type {kind}, which is no tr") as error:
            lwdctl.load_policy(source)
        assert error.value.hint == f"policy = lwdctl.load_policy({call})"


def test_settings_of_another_type_are_refused() -> None:
    data = lwdctl.Dataset.from_arrays([np.zeros((4, 2))], [np.zeros((4, 1))])
    vae = lwdctl.Vae(None, None, data)
    for function, kind, given in (
        (lwdctl.train_vae, "VaeConfig", data),
        (lwdctl.encode, "EncodeConfig", vae),
        (lwdctl.train_diffusion, "DiffusionConfig", lwdctl.Latents(None, vae)),
        (partial(lwdctl.train_baseline, "mlp"), "BaselineConfig", data),
    ):
        with pytest.raises(ConfigError, match=f"of the type dict, expected a {kind}") as error:
            function(given, {"device": "cpu", "seed": 3})
        assert error.value.hint == f"config=lwdctl.{kind}(device='cpu', seed=3)"
        with pytest.raises(ConfigError, match=f"of the type EvalConfig, expected a {kind}"):
            function(given, lwdctl.EvalConfig())


@pytest.fixture
def copy(workspace: Path, tmp_path: Path) -> Path:
    """The workspace, for tests that add to it."""
    return Path(shutil.copytree(workspace, tmp_path / "copy"))


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def _training(kind: str, place: Path) -> partial[Any]:
    """Return the call that trains, with what it trains on."""
    data = lwdctl.load_dataset("lift_mh", workspace=place)
    small = {**SMALL, "updates": 6}
    if kind == "mlp":
        config = lwdctl.BaselineConfig(snippet_length=8, policy_width=16, **small)
        return partial(lwdctl.train_baseline, "mlp", data, config)
    config = lwdctl.VaeConfig(snippet_length=8, policy_width=16, decoder="xs", **small)
    if kind == "vae":
        return partial(lwdctl.train_vae, data, config)
    latents = lwdctl.encode(lwdctl.train_vae(data, config), lwdctl.EncodeConfig(device="cpu"))
    return partial(lwdctl.train_diffusion, latents, lwdctl.DiffusionConfig(width=16, **small))


@pytest.mark.sim
@pytest.mark.parametrize("kind", ["vae", "diffusion", "mlp"])
def test_a_training_that_was_interrupted_resumes_bit_for_bit(
    kind: str, copy: Path, interrupt_at: Callable[[int], list[int]]
) -> None:
    train = _training(kind, copy)
    whole = train()
    steps = interrupt_at(4)
    with pytest.raises(KeyboardInterrupt):
        train()
    resumed = train(resume=True)
    assert steps == [0, 1, 2, 3, 4, 5]
    assert all(
        torch.equal(one, other)
        for one, other in zip(_weights(resumed.model), _weights(whole.model), strict=True)
    )
    with pytest.raises(ArtifactError, match="to resume") as error:
        train(resume=True)
    assert "resume=True" in error.value.hint


def test_a_training_in_memory_is_not_resumed() -> None:
    data = lwdctl.Dataset.from_arrays([np.zeros((4, 2))], [np.zeros((4, 1))])
    vae = lwdctl.Vae(None, None, data)
    for train in (
        partial(lwdctl.train_vae, data),
        partial(lwdctl.train_diffusion, lwdctl.Latents(None, vae)),
        partial(lwdctl.train_baseline, "mlp", data),
    ):
        with pytest.raises(ConfigError, match="in memory keeps no checkpoint"):
            train(resume=True, progress=SilentProgress())


@pytest.mark.sim
def test_any_stage_runs_from_python_and_resumes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation with controls; the second condition is interrupted."""
    config = lwdctl.EvalConfig(
        horizon=(8, 4),
        one_model=True,
        latent=("sampled", "mean"),
        episodes=1,
        max_steps=4,
        workers=0,
        device="cpu",
    )
    call = partial(lwdctl.run_stage, "eval", config, inputs={"diffusion": "lift_mh"})
    whole = call(workspace=copy, name="whole")
    assert len(whole.manifest.summary["results"]) >= 4
    assert whole.manifest.provenance["command"].startswith("run_stage('eval'")
    rolled: list[str] = []
    roll = stage_evaluate.rollout

    def once(*words: Any, **options: Any) -> Any:
        rolled.append(options["name"])
        if len(rolled) == 2:
            raise KeyboardInterrupt
        return roll(*words, **options)

    monkeypatch.setattr(stage_evaluate, "rollout", once)
    with pytest.raises(KeyboardInterrupt):
        call(workspace=copy, name="part")
    part = call(workspace=copy, name="part", resume=True)
    assert len(rolled) == 1 + 4
    measured = ("horizon", "latent", "success", "score", "metrics", "replans_per_episode")
    rows, expected = (
        [[row[name] for name in measured] for row in made.manifest.summary["results"]]
        for made in (part, whole)
    )
    assert rows == expected
    names = sorted(path.name for path in (whole.path / "episodes").iterdir())
    assert len(names) == 4
    for name in names:
        one, other = (
            [
                (item["seed"], item["return"], item["metrics"])
                for item in json.loads(text)["episodes"]
            ]
            for text in ((made.path / "episodes" / name).read_text() for made in (part, whole))
        )
        assert one == other
    with pytest.raises(ConfigError, match="analyze latents cannot be resumed"):
        lwdctl.run_stage("analyze latents", workspace=copy, resume=True)


@pytest.mark.sim
def test_a_collection_resumes_after_its_finished_episodes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = partial(
        lwdctl.collect, "metaworld", task=["reach"], episodes=3, max_steps=10, workers=0,
        keep_failures=True, workspace=copy, name="part",
    )  # fmt: skip
    run_expert, seeds = collecting.expert_episode, []

    def interrupted(env: Any, task: str, seed: int, *given: Any) -> Any:
        seeds.append(seed)
        if len(seeds) == 3:
            raise KeyboardInterrupt
        return run_expert(env, task, seed, *given)

    monkeypatch.setattr(collecting, "expert_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect()
    assert collect(resume=True).manifest.summary["episodes"] == 3
    assert seeds == [0, 1, 2, 2]


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, lwdctl; assert 'load_policy' in dir(lwdctl);"
        " heavy = {'torch', 'numpy', 'zarr', 'typer', 'gymnasium'} & set(sys.modules);"
        " assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented() -> None:
    for name in lwdctl.__all__:
        assert getattr(lwdctl, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        _ = lwdctl.nothing
