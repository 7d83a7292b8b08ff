"""No command imports what it does not use: a look at `sys.modules` as it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.sim, pytest.mark.timeout(600)]  # a busy machine

SCRIPT = """
import json, sys
from lwdctl.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""
# What nothing but drawings, videos, generated reports and a compiler need.
NEVER = {"imageio_ffmpeg", "matplotlib", "pandas", "torch._dynamo", "torch._inductor", "triton"}
LIGHT = {
    *NEVER,
    "diffusers",
    "gymnasium",
    "h5py",
    "hypnettorch",
    "scipy",
    "sklearn",
    "torch",
    "zarr",
}
TRAINING = {*NEVER, "PIL", "diffusers", "gymnasium", "h5py", "mujoco", "scipy", "sklearn"}
ACTING = {*NEVER - {"matplotlib"}, "diffusers", "h5py", "mujoco", "sklearn", "tensorboard"}

RECIPE = Path(__file__).parents[2] / "pipelines/pusht_grid.toml"
SIZES = "--snippet-length 8 --updates 1 --batch-size 4 --device cpu --threads 1"
DIFFUSION = "--updates 1 --batch-size 4 --device cpu --threads 1"
EVAL = "--latent sampled --episodes 1 --max-steps 4 --workers 0 --device cpu"


@pytest.fixture(scope="module")
def run(toy_file, tmp_path_factory):
    """Return a function that runs one command and returns the modules that it imported."""
    folder = tmp_path_factory.mktemp("imports")
    environment = {**os.environ, "LWDCTL_WORKSPACE": str(folder / "runs")}
    source = toy_file("pusht_toy.zarr")

    def modules(line: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *line.replace("FILE", source).split()],
            env=environment, cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        code, names = json.loads(done.stderr.splitlines()[-1])
        assert code == 0, done.stderr
        return set(names)

    return modules


@pytest.mark.slow
def test_no_command_imports_what_it_does_not_use(run) -> None:
    unused = {
        "--help": LIGHT,
        "train-vae --help": LIGHT,
        "ingest pusht FILE": {*TRAINING, "hypnettorch", "tensorboard", "torch"},
        f"train-vae --policy-width 8 --decoder xs {SIZES}": TRAINING,
        "encode --device cpu": {*TRAINING, "tensorboard"},
        f"train-diffusion --width 16 {DIFFUSION}": TRAINING,
        f"train-baseline dp --unet-size xs --name dp {SIZES}": TRAINING,
        f"train-baseline ldp --name ldp {SIZES}": TRAINING,
        f"train-baseline mlp --policy-width 8 --name mlp {SIZES}": TRAINING,
        f"eval --policy dp {EVAL}": ACTING,
        f"eval --policy mlp {EVAL}": ACTING,
        f"eval --policy lwd {EVAL}": ACTING,
        f"run {RECIPE} --smoke --dry-run --set ingest.paths=FILE": LIGHT,
        "list": LIGHT,
        "compare": {*LIGHT - {"matplotlib", "scipy"}, "mujoco", "tensorboard"},
        "report": {*LIGHT - {"matplotlib", "scipy"}, "mujoco", "tensorboard"},
    }
    found = {line: run(line) & names for line, names in unused.items()}
    assert not {line: names for line, names in found.items() if names}
