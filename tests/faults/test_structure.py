"""Small files of artifacts, models and recipes with random structure: an answer or one error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chain import COUNTED

sys.path.pop(0)

HERE = Path(__file__).parent
MOST_BYTES = 10**9
ADDRESSES = 2 * 10**9
"""Address space of children without torch, whose libraries alone take as much."""
KINDS = (
    "manifest", "episodes", "analysis", "metrics", "run", "recipe", "policy",
    "vae", "diffusion", "mlp", "dp",
)  # fmt: skip
WITH_TORCH = {"vae", "diffusion", "mlp", "dp", "policy"}
RECIPE = {
    "recipe": {"title": "A recipe", "name": "r"},
    "stage": {
        "ingest": {"paths": ["x.hdf5"], "seed": 1, "validation_fraction": 0.2},
        "train_vae": {"updates": 10, "needs": "ingest", "snippet_length": 8, "policy_width": 16},
        "encode": {},
        "train_diffusion": {"condition": ["state"], "width": 16, "learning_rate": 0.01},
        "eval": {"episodes": 2, "horizon": [8, "episode"], "perturbation": [0.0, 0.5]},
    },
    "expected": [
        {"stage": "eval", "metric": "success", "where": {"task": "all"}, "value": 0.5,
         "tolerance": 0.1, "source": "toy"}
    ],
    "smoke": {"train_vae": {"updates": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an unfinished run, four saved models, an exported policy and a recipe."""
    sys.path.insert(0, str(HERE.parent / "analysis"))
    try:
        import report_chain
    finally:
        sys.path.pop(0)
    from lwdctl.artifacts.workspace import Workspace

    root = tmp_path_factory.mktemp("structure")
    workspace = Workspace(root / "runs")
    store, *_ = report_chain.chain(workspace, videos=1)
    report_chain.analysis(workspace, store)
    partial = root / "runs/vae/r/.partial-1"
    partial.mkdir(parents=True)
    body = {
        "config": {"updates": 3},
        "inputs": [{"type": "snippets", "reference": "snippets/a:v1", "digest": "ab"}],
        "started": "2026-01-01T00:00:00.000000+00:00",
    }
    (partial / "run.json").write_text(json.dumps(body))
    (root / "recipe.json").write_text(json.dumps(RECIPE))
    save_models(root)
    return root


def save_models(root: Path) -> None:
    from lwdctl.core.records import ActionSpec, EnvSpec, ObservationSpec, SourceSpec
    from lwdctl.deploy.runtime import PolicyDescription
    from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
    from lwdctl.models.chunks import ActionDiffusion, ChunkSpec
    from lwdctl.models.denoiser import DenoiserSpec
    from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
    from lwdctl.models.files import save_model
    from lwdctl.models.vae import PolicyVae, VaeSpec

    action = ActionSpec(2, "absolute", "pixels", (0.0, 0.0), (512.0, 512.0), 10.0)
    observations = (ObservationSpec("place", 2), ObservationSpec("block", 3))
    source = SourceSpec(observations, action, EnvSpec("pusht", ("push",)), (), "toy")
    seen = {
        "observation_keys": ("place", "block"), "observation_size": 5, "action_size": 2,
        "reference_start": None,
    }  # fmt: skip
    policy = {"source": source.to_mapping(), "executed": 3}
    vae = VaeSpec(**seen, snippet_length=4, latent_size=4, decoder_layers=(4,),
                  policy_hidden=(4,), time_input=True)  # fmt: skip
    network = DenoiserSpec("mlp", 8, 10, (4, 2), "xs", 16, 1, 0.0, observation_tokens=2)
    latents = DiffusionSpec(network, "sample", 20, ("state",), 10, 0, 0, history=2)
    chunks = ChunkSpec(**seen, history=2, horizon=3, diffusion=latents)
    cloned = ClonedSpec(**seen, hidden=(4,), tasks=1, labels=0)
    for name, spec, model in (
        ("vae", vae.to_mapping(), PolicyVae(vae)),
        ("diffusion", latents.to_mapping(), LatentDiffusion(latents)),
        ("dp", {**policy, "method": "dp", **chunks.to_mapping()}, ActionDiffusion(chunks)),
        ("mlp", {**policy, "method": "mlp", **cloned.to_mapping()}, ClonedPolicy(cloned)),
    ):
        (root / name).mkdir()
        save_model(root / name, spec, model, model)
    (root / "policy").mkdir()
    (root / "policy/act.onnx").write_bytes(b"a graph")
    ports = {"observation": {"type": "float32", "shape": [5]}}
    graph = {"inputs": ports, "outputs": {"action": {"type": "float32", "shape": [2]}}}
    digest = hashlib.sha256(b"a graph").hexdigest()
    PolicyDescription(
        "mlp", observations, action, 1, 1, (), ("push",), (), 0, 18, {"act": graph},
        {"packages": {"torch": "2"}}, {}, {"act.onnx": {"bytes": 7, "sha256": digest}},
    ).write(root / "policy")  # fmt: skip


def read_changed(folder: Path, kind: str, count: int) -> None:
    limits = [] if kind in WITH_TORCH else [str(ADDRESSES)]
    with tempfile.TemporaryDirectory() as place:
        own = Path(shutil.copytree(folder, Path(place) / "own"))
        words = [str(HERE / "structure.py"), str(own), kind, str(count), *limits]
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "LWDCTL_WORKSPACE": str(own / "runs"), "OMP_NUM_THREADS": "1",
                 "MPLBACKEND": "agg", "OPENBLAS_NUM_THREADS": "1"},
            cwd=own, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] < MOST_BYTES, found
    codes = found["counted"]
    notes = codes.pop("notes")
    COUNTED.append(
        f"structure of {kind}: {sum(codes.values())} injected, exit 0: {codes.get('0', 0)}, 1:"
        f" {codes.get('1', 0)}, 2: {codes.get('2', 0)}, peak {found['peak'] / 1e6:.0f} MB, 0 lost"
    )
    if kind in {"analysis", "metrics"}:  # what cannot be read is left out of a report
        assert notes > 0, found
    elif kind != "run":  # what cannot be read is passed over
        assert codes.get("1", 0) > 0, found  # the changes reach the reader


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["manifest", "episodes", "analysis", "run", "recipe"])
def test_a_few(folder: Path, kind: str) -> None:
    read_changed(folder, kind, 24)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand(folder: Path, kind: str) -> None:
    read_changed(folder, kind, 1000)
