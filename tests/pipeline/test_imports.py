"""No command imports what it does not use: a look at `sys.modules` as it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lwdctl.cli.commands import COMMANDS
from lwdctl.stages import STAGES

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
    "PIL",
    "diffusers",
    "gymnasium",
    "h5py",
    "hypnettorch",
    "mujoco",
    "scipy",
    "sklearn",
    "tensorboard",
    "torch",
    "zarr",
}
TRAINING = {*NEVER, "PIL", "diffusers", "gymnasium", "h5py", "mujoco", "scipy", "sklearn"}
ACTING = {*NEVER - {"matplotlib"}, "diffusers", "h5py", "mujoco", "sklearn", "tensorboard"}
DRAWING = LIGHT - {"PIL", "matplotlib", "scipy"}

RECIPE = Path(__file__).parents[2] / "pipelines/pusht_grid.toml"
TOY = f"{RECIPE} --smoke --set ingest.paths=FILE"
SIZES = "--snippet-length 8 --updates 1 --batch-size 4 --device cpu --threads 1"
DIFFUSION = "--updates 1 --batch-size 4 --device cpu --threads 1"
EVAL = "--latent sampled --episodes 1 --max-steps 4 --workers 0 --device cpu"

# Every command, in an order in which each finds what it reads; what it must not import.
UNUSED = {
    "--help": LIGHT,
    "train-vae --help": LIGHT,
    "collect metaworld --task reach --episodes 1 --workers 0": LIGHT
    - {"gymnasium", "h5py", "mujoco", "scipy"},
    "inspect FILE": LIGHT - {"h5py", "zarr"},
    "ingest pusht FILE": LIGHT - {"zarr"},
    f"train-vae --policy-width 8 --decoder xs {SIZES}": TRAINING,
    "encode --device cpu": {*TRAINING, "tensorboard"},
    f"train-diffusion --width 16 {DIFFUSION}": TRAINING,
    f"train-baseline dp --unet-size xs --name dp {SIZES}": TRAINING,
    f"train-baseline ldp --name ldp {SIZES}": TRAINING,
    f"train-baseline mlp --policy-width 8 --name mlp {SIZES}": TRAINING,
    f"eval --policy dp {EVAL}": ACTING,
    f"eval --policy mlp {EVAL}": ACTING,
    f"eval --policy lwd {EVAL}": ACTING,
    # scikit-learn imports pandas where it is installed.
    "analyze latents --points 20": ACTING - {"pandas", "sklearn"},
    "analyze behavior": ACTING,
    "analyze reconstruction --count 2 --workers 0 --device cpu": ACTING,
    f"run {TOY} --dry-run": LIGHT,
    f"status {TOY}": LIGHT,
    "list": LIGHT,
    "show vae/pusht_toy": LIGHT,
    "lineage diffusion/pusht_toy": LIGHT,
    "verify": LIGHT - {"zarr"},
    "gc": LIGHT,
    "download --list": LIGHT,
    "export minari --id toy/random-v0": LIGHT - {"PIL", "gymnasium", "h5py", "zarr"},
    # Its model card may hold a figure.
    "push snippets/pusht_toy user/toy --dry-run": DRAWING,
    "pull user/toy": LIGHT,
    "track vae/pusht_toy --to tensorboard": LIGHT,
    "bench --list": LIGHT,
    "compare": DRAWING,
    "report": DRAWING,
}
NO_CASE = {
    "analyze diversity": "imports what `analyze reconstruction` imports, and runs longer",
    "analyze convergence": "the same; needs a training with snapshots",
    "doctor": "runs for 20 s and imports every simulator, each in a process of its own",
}
FAILS = {"pull user/toy"}
"""Commands that end with 1: no Hub answers at the address below."""
NO_HUB = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def run(toy_file, tmp_path_factory):
    """Return a function that runs one command and returns the modules that it imported."""
    folder = tmp_path_factory.mktemp("imports")
    environment = {**os.environ, "LWDCTL_WORKSPACE": str(folder / "runs"), "HF_ENDPOINT": NO_HUB}
    source = toy_file("pusht_toy.zarr")

    def modules(line: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *line.replace("FILE", source).split()],
            env=environment, cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        code, names = json.loads(done.stderr.splitlines()[-1])
        assert code == (line in FAILS), done.stderr
        return set(names)

    return modules


def test_every_command_is_run_or_has_a_reason() -> None:
    commands = {*STAGES, *COMMANDS}
    lines = [line for line in UNUSED if "--help" not in line]
    found = {name for name in commands if any(f"{line} ".startswith(f"{name} ") for line in lines)}
    assert found | NO_CASE.keys() == commands
    assert not found & NO_CASE.keys()


@pytest.mark.slow
def test_no_command_imports_what_it_does_not_use(run) -> None:
    found = {line: run(line) & names for line, names in UNUSED.items()}
    assert not {line: names for line, names in found.items() if names}
