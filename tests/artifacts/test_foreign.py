"""A foreign artifact neither runs code nor leads outside, whichever command reads it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import lwdctl
from lwdctl.artifacts.manifest import MANIFEST_NAME, Manifest, with_digest
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.artifacts.zarr_columns import Column
from lwdctl.cli.main import main
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.records import EnvSpec
from lwdctl.pipeline.run_stage import run_stage

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
import toy_chain
from foreign import ATTACKS, edit, sign, sign_all, store

sys.path.pop(0)
sys.path.pop(0)

CONSUMERS = {
    "verify": "verify",
    "verify one": "verify snippets/toy",
    "verify --deep": "verify --deep snippets/toy",
    "train-vae": "train-vae --updates 2 --snippet-length 4 --policy-width 4 --decoder xs",
    "encode": "encode",
    "train-baseline": "train-baseline mlp --updates 2",
    "eval": "eval --policy random --episodes 1 --workers 0",
    "eval oracle": "eval --latent oracle --episodes 1 --workers 0",
    "analyze": "analyze reconstruction --count 2",
    "export policy": "export policy --output exported",
    "export minari": "export minari --id a/b/c-v0 --output minari",
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A workspace whose data name an environment outside of lwdctl."""
    root = tmp_path_factory.mktemp("chain") / "runs"
    source = toy_chain.SOURCE
    env = replace(source.env, adapter="somebodys_module:Robot")
    toy_chain.SOURCE = replace(source, env=env)
    try:
        toy_chain.publish_chain(root, toy_chain.TOY)
    finally:
        toy_chain.SOURCE = source
    return root


@pytest.fixture
def root(chain, tmp_path, monkeypatch):
    copy = tmp_path / "runs"
    shutil.copytree(chain, copy)
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(copy))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside").mkdir()
    return copy


def refused(line, capsys):
    """Run a command that must end with one error line; return what it printed as errors."""
    status = main([*line.split(), "-q"])
    printed = capsys.readouterr()
    assert status == 1, printed.err
    lines = printed.err.splitlines()
    assert len(lines) <= 2, printed.err
    assert lines[0].startswith("error:"), printed.err
    return printed.err


def table():
    """Yield every attack with every command; the default run has each of them at least twice."""
    for attack in ATTACKS:
        for consumer in CONSUMERS:
            soon = attack in ("pickled_v3", "linked_chunk") or consumer in ("verify one", "encode")
            yield pytest.param(attack, consumer, marks=() if soon else pytest.mark.long)


@pytest.mark.parametrize(("attack", "consumer"), list(table()))
def test_no_command_reads_a_store_that_we_would_not_write(root, tmp_path, capsys, attack, consumer):
    ATTACKS[attack](root, tmp_path / "outside")
    sign_all(root)
    assert "snippets" in refused(CONSUMERS[consumer], capsys)
    assert not (tmp_path / "outside" / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("array", "other"),
    [
        ("action", "observation/thing"), ("observation/hand", "reward"),
        ("observation/thing", "statistics/thing/mean"), ("episode/model", "episode/seed"),
        ("episode/task", "episode/source"), ("episode/initial_state_end", "episode/source"),
        ("statistics/hand/m2", "statistics/thing/m2"), ("final_observation/thing", "action"),
    ],
)  # fmt: skip
def test_an_array_of_another_shape_or_type_is_refused(root, capsys, array, other):
    """Whatever reads it: the store's description of the data says what each array is."""
    place = store(root) / array
    if other == "reward":  # the toy has none: one number for each step
        column = Column(zarr.open_group(store(root)), other, (), "f4")
        column.append(np.zeros(86))
        column.close()
    shutil.rmtree(place)
    shutil.copytree(store(root) / other, place)
    sign_all(root)
    assert array in refused("verify --deep snippets/toy", capsys)
    for line in (CONSUMERS["train-vae"], CONSUMERS["train-baseline"], CONSUMERS["encode"]):
        status = main([*line.split(), "-q"])
        errors = capsys.readouterr().err
        assert status == 0 or (status == 1 and array in errors), errors


def test_a_chunk_of_gigabytes_is_refused_before_memory_is_taken(root, capsys):
    """Its header and the metadata of its array agree; it is only too large."""
    array = store(root) / "action"
    grid = {"name": "regular", "configuration": {"chunk_shape": [2**28, 2]}}
    edit(array / "zarr.json", chunk_grid=grid)
    chunk = array / "c.0.0"
    content = bytearray(chunk.read_bytes())
    content[4:8] = (2**31).to_bytes(4, "little")
    chunk.write_bytes(content)
    sign_all(root)
    for line in ("verify snippets/toy", "encode"):
        assert "a chunk decodes to 2,147,483,648 bytes" in refused(line, capsys)


@pytest.mark.parametrize("odd", ["[" * 100_000, "3", '["a"]', "[1, 2, 3, 4]", '{"a": 1}'])
def test_names_of_episodes_are_a_list_of_texts(root, capsys, odd):
    shutil.rmtree(store(root) / "episode" / "source")
    column = Column(zarr.open_group(store(root)), "episode/source", (), "u1", 65536)
    column.append(np.frombuffer(odd.encode(), "u1"))
    column.close()
    sign_all(root)
    assert "episode/source" in refused(CONSUMERS["train-vae"], capsys)


@pytest.fixture
def robot(monkeypatch, tmp_path):
    """The module that the data name; a directory appears when it is imported."""
    place = tmp_path / "modules"
    place.mkdir()
    (place / "somebodys_module.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'imported')!r})\n"
        "import gymnasium\nimport numpy as np\n"
        "class Robot(gymnasium.Env):\n"
        "    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)\n"
        "    observation_space = gymnasium.spaces.Dict({name: gymnasium.spaces.Box(-9, 9, (n,),"
        " np.float32) for name, n in (('thing', 3), ('hand', 2), ('camera', 4))})\n"
        "    spec = None\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return self.observation_space.sample(), {}\n"
        "    def step(self, action):\n"
        "        return self.observation_space.sample(), 0.0, False, False, {}\n"
    )
    monkeypatch.syspath_prepend(place)
    yield tmp_path / "imported"
    sys.modules.pop("somebodys_module", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "eval --policy random --episodes 1 --workers 0",
        "eval --policy random --episodes 1 --workers 1",
        "eval --latent oracle --episodes 1 --workers 0",
        "eval --policy still --episodes 1 --workers 0",
        "analyze reconstruction --split all --count 2 --workers 0",
    ],
)
def test_data_choose_no_module(root, robot, capsys, line):
    errors = refused(line, capsys)
    assert "import the module 'somebodys_module' and call its 'Robot'" in errors
    assert f"lwdctl {line}" in errors
    assert "--trust somebodys_module:Robot" in errors
    assert not robot.exists()
    # Another name is not trusted along with the one that was named.
    refused(f"{line} --trust os:system", capsys)
    assert not robot.exists()


def test_a_module_that_the_user_names_is_imported(root, robot, capsys):
    line = "eval --policy random --episodes 1 --workers 0 --max-steps 2 -q"
    main([*line.split(), "--trust", "somebodys_module:Robot"])
    assert "--trust" not in capsys.readouterr().err
    assert robot.exists()


def test_python_names_what_it_trusts(root, robot):
    policy = lwdctl.load_policy("diffusion/toy")
    with pytest.raises(ConfigError, match="import the module") as caught:
        lwdctl.evaluate(policy, episodes=1)
    assert "trust=['somebodys_module:Robot']" in caught.value.hint
    assert not robot.exists()
    trusting = lwdctl.load_policy("diffusion/toy", trust=["somebodys_module:Robot"])
    lwdctl.evaluate(trusting, episodes=1, tasks=["push"], labels=["slow"], max_steps=1)
    assert robot.exists()


def test_a_string_is_one_trusted_name(root, robot):
    once = {"episodes": 1, "tasks": ["push"], "labels": ["slow"], "max_steps": 1}
    policy = lwdctl.load_policy("diffusion/toy")
    with pytest.raises(ConfigError, match="import the module"):
        lwdctl.evaluate(policy, trust="and_somebodys_module:Robots", **once)
    partly = lwdctl.load_policy("diffusion/toy", trust="and_somebodys_module:Robots")
    with pytest.raises(ConfigError, match="import the module"):
        lwdctl.evaluate(partly, **once)
    assert not robot.exists()
    lwdctl.evaluate(policy, trust="somebodys_module:Robot", **once)
    lwdctl.evaluate(lwdctl.load_policy("diffusion/toy", trust="somebodys_module:Robot"), **once)
    settings = {"policy": ["random"], "episodes": 1, "workers": 0, "max_steps": 2}
    run_stage("eval", settings, workspace=Workspace(root), trust="somebodys_module:Robot")


def test_what_is_built_in_python_is_the_callers_own(root):
    spec = SnippetStore.open(store(root)).spec
    assert spec.env.stored
    assert "stored" not in spec.to_mapping()["env"]
    own = replace(spec, env=EnvSpec("a.module:Class", ("push", "pull")))
    kept = SnippetStore.in_memory(toy_chain.episodes(), own).spec
    assert not kept.env.stored


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("provenance", {}), ("provenance", None), ("summary", 3), ("config", []),
        ("inputs", [{"type": "../x", "reference": "a/b:v1", "digest": ""}]),
        ("inputs", [{"type": "vae", "reference": "vae/..:v1", "digest": ""}]),
        ("inputs", 7), ("files", {}), ("files", [{"path": 3, "size": 1, "sha256": ""}]),
        ("files", [{"path": "../../x", "size": 1, "sha256": ""}]), ("version", "1"),
        ("name", ".."), ("type", 5), ("extra", 1),
    ],
)  # fmt: skip
def test_a_manifest_of_another_shape_spoils_nothing_else(root, capsys, key, value):
    path = next(root.glob("vae/*/v*")) / MANIFEST_NAME
    body = {**json.loads(path.read_text()), key: value}
    body.pop("digest")
    path.write_bytes(with_digest(body))
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["summary"]
    assert [item["artifact"] for item in listed["damaged"]] == ["vae/toy:v1"]
    assert len(listed["artifacts"]) == 3
    assert "vae" in refused("verify", capsys)
    assert main(["verify", "snippets/toy", "-q"]) == 0


@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_a_manifest_is_a_file(root, capsys, kind):
    path = next(root.glob("vae/*/v*")) / MANIFEST_NAME
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/etc/passwd")
    assert main(["list", "-q"]) == 0
    assert "damaged" in capsys.readouterr().out
    refused("verify", capsys)


def test_a_damaged_record_is_listed_and_the_rest_verified(root, capsys):
    spec = next(root.glob("vae/*/v*")) / "model.json"
    spec.write_bytes(spec.read_bytes()[:-2] + b"\n}")
    assert main(["list", "--json"]) == 0
    assert [item["artifact"] for item in json.loads(capsys.readouterr().out)["summary"]["damaged"]]
    assert main(["verify", "vae/toy", "snippets/toy", "-q"]) == 1
    assert "snippets/toy:v1  ok" in capsys.readouterr().out


def test_deep_looks_into_models(root, capsys):
    latents = next(root.glob("latents/*/v*"))
    assert Manifest.read(latents / MANIFEST_NAME).files == ()  # the toy has none
    assert main(["verify", "--deep", "snippets/toy", "vae/toy", "diffusion/toy", "-q"]) == 0
    capsys.readouterr()
    folder = next(root.glob("vae/*/v*"))
    spec = folder / "model.json"
    values = json.loads(spec.read_text())
    for changes, message in (
        ({"latent_size": values["latent_size"] + 1}, "describes"),
        ({"latent_size": 10**9}, "latent_size"),
        ({"nonsense": 1}, "nonsense"),
    ):
        edit(spec, **{**values, **changes})
        sign(folder)
        assert message in refused("verify --deep vae/toy", capsys)
    spec.write_text(json.dumps(values))
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    for broken in ((2**40).to_bytes(8, "little") + content[8:], b""):
        weights.write_bytes(broken)
        sign(folder)
        refused("verify --deep vae/toy", capsys)


def test_a_scene_lies_beside_its_store(root, tmp_path):
    with Workspace(tmp_path / "other").begin("snippets", "scene", config={}) as draft:
        from lwdctl.artifacts.snippets import SnippetWriter

        writer = SnippetWriter(draft.path / "snippets.zarr", toy_chain.SOURCE)
        for episode in toy_chain.episodes():
            writer.append(replace(episode, model="<mujoco/>", initial_state=np.zeros(3)))
        made = draft.publish(writer.close())
    assert SnippetStore.open(made.path).model(0) == "<mujoco/>"
    scene = next(made.path.glob("models/*.xml"))
    scene.write_text("<mujoco />")
    with pytest.raises(ArtifactError, match="its SHA-256 is not its name"):
        SnippetStore.open(made.path).model(0)
    edit(made.path / "snippets.zarr" / "zarr.json", attributes={
        **json.loads((made.path / "snippets.zarr" / "zarr.json").read_text())["attributes"],
        "models": ["../../../../etc/passwd"],
    })  # fmt: skip
    with pytest.raises(ArtifactError, match="outside"):
        SnippetStore.open(made.path).model(0)


@pytest.mark.slow
def test_no_flipped_byte_of_a_store_reaches_a_consumer(root, tmp_path):
    """What a reader gives is right, or it gives nothing, whichever file was damaged."""

    def read() -> list:
        artifact = Workspace(root).resolve("snippets")
        data = SnippetStore.open(artifact.path)
        episodes = [data.episode(index) for index in range(len(data.episodes))]
        moments = data.moments(("thing", "action"))
        return [data.spec, moments.mean.tolist(), *(
            (item.source, item.task, item.label, item.split, item.actions.tolist())
            for item in episodes
        )]  # fmt: skip

    right, noticed = read(), 0
    files = [path for path in store(root).rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        path.write_bytes(flipped)
        try:
            assert read() == right, path
        except ArtifactError:
            noticed += 1
        path.write_bytes(content)
    assert noticed > len(files) / 2
