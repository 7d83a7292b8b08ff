"""Compare every number that toy runs of the whole program give in two versions of it.

    git worktree add ../base 123f3ed
    python tests/regression/record_numbers.py ../base old.json --data ../shared/data
    python tests/regression/record_numbers.py . new.json --data ../shared/data
    python tests/regression/record_numbers.py --compare old.json new.json

Each tree's `lwdctl` runs in child processes with one thread. Recorded are the SHA-256 of every
weight tensor, every episode of every evaluation, the findings of every analysis, the tables of a
comparison, and the actions of an exported policy. Names are left out, because they may change; so
are wall times. Equal numbers are promised on one machine only. pytest does not run this: it takes
three minutes a tree, and needs the PushT and D4RL files of `--data`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = """
run {tree}/pipelines/quickstart.toml --smoke
ingest pusht {data}/pusht/pusht_cchi_v7_replay.zarr --name pusht
train-vae --snippets pusht --name p16 --snippet-length 16 --policy-width 16 --observation-noise \
  0.1 --loss-steps 8 --batch-size 8 --updates 12 --seed 0
encode --vae p16 --name p16 --stride 40
train-diffusion --latents p16 --name p16 --denoiser unet --unet-size xs --batch-size 8 --updates \
  12 --seed 0
train-vae --snippets pusht --name p64 --snippet-length 64 --policy-width 16 --decoder xs \
  --batch-size 8 --updates 12 --seed 0
encode --vae p64 --name p64 --stride 40
train-diffusion --latents p64 --name p64 --width 32 --batch-size 8 --updates 12 --seed 0
train-baseline dp --snippets pusht --name dp16 --snippet-length 16 --unet-size xs --batch-size 8 \
  --updates 12 --seed 0 --padding counted
train-baseline dp --snippets pusht --name dp64 --snippet-length 64 --denoiser transformer \
  --transformer-size xs --batch-size 8 --updates 12 --seed 0 --padding counted
train-baseline ldp --snippets pusht --name ldp16 --snippet-length 16 --width 32 --batch-size 8 \
  --updates 12 --seed 0
train-baseline ldp --snippets pusht --name ldp64 --snippet-length 64 --width 32 --batch-size 8 \
  --updates 12 --seed 0
train-baseline mlp --snippets pusht --name mlp --policy-width 16 --batch-size 8 --updates 12 \
  --seed 0
eval --diffusion p16 --name grid --policy lwd,dp,ldp,mlp,random --latent sampled --horizon 16,64 \
  --perturbation 0,50 --episodes 2 --max-steps 40 --workers 0 --num-envs 2
eval --diffusion p16 --name controls --latent sampled,oracle,shuffled,mean,random --horizon 8 \
  --episodes 3 --max-steps 30 --workers 0 --num-envs 2 --warm-start 0.5
eval --diffusion p64 --name whole --latent sampled --sampler ddpm --num-inference-steps 12 \
  --horizon episode --episodes 2 --max-steps 20 --workers 2 --num-envs 2
compare grid --output {out}/comparison
analyze latents --latents p16 --name latents
analyze diversity --diffusion p16 --name diversity --count 4 --draws 2 --modes 2 --max-steps 20 \
  --num-envs 2 --workers 0
analyze reconstruction --vae p16 --name reconstruction --count 4 --latent oracle,mean --num-envs \
  2 --workers 0
export policy --diffusion p16 --output {out}/exported
ingest d4rl {data}/d4rl/halfcheetah_random.hdf5 {data}/d4rl/halfcheetah_medium.hdf5 --env \
  mujoco/HalfCheetah-v4 --name cheetah
train-vae --snippets cheetah --name cheetah --snippet-length 100 --policy-width 16 --decoder xs \
  --batch-size 4 --updates 12 --seed 0
encode --vae cheetah --name cheetah --stride 500
train-diffusion --latents cheetah --name cheetah --width 32 --condition state,label --batch-size \
  8 --updates 12 --seed 0
eval --diffusion cheetah --name cheetah --latent sampled,oracle --policy lwd,random --episodes 2 \
  --max-steps 30 --workers 0 --num-envs 2
analyze behavior --evaluation cheetah --name behavior
"""
# Today's options to those of 0.1, and today's files to those of 0.1.
WORDS = {
    "--num-envs": "--slots",
    "--num-inference-steps": "--denoise-steps",
    " --padding counted": "",  # the only way that 0.1 has
    "sampled,oracle,shuffled,mean,random": "sampled,encoded,other,mean,snippet",
    "sampled,oracle": "sampled,encoded",
    "oracle,mean": "encoded,mean",
}
FILES = {"lwd-oracle": "lwd-encoded", "lwd-shuffled": "lwd-other", "lwd-random": "lwd-snippet"}
ACT = """
import json
import numpy as np
from lwdctl.deploy.runtime import ExportedPolicy
policy = ExportedPolicy("exported")
description = json.load(open("exported/policy.json"))
rng = np.random.default_rng(0)
policy.reset(seed=3)
for _ in range(40):
    seen = {
        item["name"]: rng.normal(200, 100, size=item["size"]).astype("float32")
        for item in description["observations"]
    }
    print(json.dumps(np.asarray(policy.act(seen), dtype=float).tolist()))
"""
NUMBER = re.compile(r"-?[\d.]+(e-?\d+)?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs=2, type=Path, help="TREE OUTPUT, or OLD NEW with --compare")
    parser.add_argument("--compare", action="store_true", help="compare two recordings")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--keep", type=Path, help="workspace to keep, and to go on in")
    arguments = parser.parse_args()
    if arguments.compare:
        sys.exit(compare(*arguments.paths))
    tree, output = (path.resolve() for path in arguments.paths)
    keep = (arguments.keep or Path(tempfile.mkdtemp())).resolve()
    keep.mkdir(parents=True, exist_ok=True)
    found = record(tree, arguments.data.resolve(), keep)
    output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def record(tree: Path, data: Path, out: Path) -> dict[str, object]:
    environment = {
        **os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        "LWDCTL_WORKSPACE": str(out / "runs"), "NO_COLOR": "1",
    }  # fmt: skip

    def run(*words: str) -> str:
        child = subprocess.run(
            [sys.executable, *words], env=environment, cwd=out, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if child.returncode:
            sys.exit(f"{child.stdout}{child.stderr}\nfailed: {' '.join(words)}")
        return child.stdout

    done = out / "steps-done"
    finished = int(done.read_text()) if done.exists() else 0
    for number, step in enumerate(STEPS.strip().splitlines()):
        if number >= finished:
            words = translate(step, tree).format(tree=tree, data=data, out=out).split()
            sys.stderr.write(f"+ lwdctl {' '.join(words)}\n")
            run("-m", "lwdctl", *words)
            done.write_text(str(number + 1))
    return {
        "weights": weights(out / "runs"),
        "episodes": episodes(out / "runs" / "evaluation"),
        "analyses": {**findings(out / "runs" / "analysis"), **findings(out / "comparison")},
        "export": {"actions": [json.loads(line) for line in run("-c", ACT).splitlines()]},
    }


def translate(step: str, tree: Path) -> str:
    if not (tree / "lwdctl/models/flops.py").exists():  # 0.1
        for new, old in WORDS.items():
            step = step.replace(new, old)
    return step


def weights(runs: Path) -> dict[str, list[str]]:
    from safetensors.numpy import load_file

    found = {}
    for path in sorted(runs.rglob("*.safetensors")):
        if ".partial" not in str(path):
            found[str(path.relative_to(runs))] = sorted(
                hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()
                for value in load_file(path).values()
            )
    return found


def numbers(value: object) -> list[str]:
    if isinstance(value, bool | int | float):
        return [str(float(value))] if math.isfinite(value) else [str(value)]
    if isinstance(value, dict):
        value = [part for name, part in value.items() if "seconds" not in name]
    return [item for part in value for item in numbers(part)] if isinstance(value, list) else []


def episodes(evaluations: Path) -> dict[str, list[list[str]]]:
    found = {}
    for path in sorted(evaluations.rglob("episodes/*.json")):
        name = str(path.relative_to(evaluations))
        for new, old in FILES.items():
            name = name.replace(new, old)
        rows = json.loads(path.read_text())["episodes"]
        found[name] = [sorted(numbers(row)) for row in rows]
    return found


def findings(root: Path) -> dict[str, list[str]]:
    found = {}
    for path in sorted([*root.rglob("*.csv"), *root.rglob("*.json")]):
        if path.name == "manifest.json":
            continue
        if path.suffix == ".json":
            values = numbers(json.loads(path.read_text()))
        else:
            with path.open(newline="") as file:
                values = [
                    text
                    for row in csv.DictReader(file)
                    for name, text in row.items()
                    if "seconds" not in name and NUMBER.fullmatch(text or "")
                ]
        found[f"{root.name}/{path.relative_to(root)}"] = sorted(values)
    return found


def compare(old_path: Path, new_path: Path) -> int:
    old, new = (json.loads(path.read_text()) for path in (old_path, new_path))
    different = 0
    for part in old:
        names = sorted(set(old[part]) | set(new[part]))
        differ = [name for name in names if old[part].get(name) != new[part].get(name)]
        different += len(differ)
        sys.stdout.write(f"{part}: {len(names) - len(differ)} of {len(names)} the same\n")
        sys.stdout.writelines(f"  differs: {name}\n" for name in differ)
    return int(different > 0)


if __name__ == "__main__":
    main()
