"""Every stage on a disk that fills up: one error line, the path, nothing published.

The limit on the size of a file stands for the disk: the system answers a write beyond it with an
error in the same way, and needs no rights for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHAIN = {
    "collect": "collect metaworld --task reach --episodes 3 --max-steps 60 --workers 0",
    "ingest": "ingest",
    "train-vae": "train-vae --updates 8 --snippet-length 16 --policy-width 8 --decoder xs",
    "encode": "encode --stride 8",
    "train-diffusion": "train-diffusion --updates 8 --width 16 --blocks 1",
    "train-baseline": "train-baseline mlp --updates 8 --policy-width 8",
    "eval": "eval --episodes 1 --max-steps 10 --workers 0",
}  # fmt: skip
LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2);"
    "from lwdctl.cli.main import main; sys.exit(main(sys.argv[2:]))"
)
CODE = "import sys; from lwdctl.cli.main import main; sys.exit(main(sys.argv[1:]))"


def run(workspace: Path, words: list[str], limit: int | None = None) -> subprocess.CompletedProcess:
    code = [CODE] if limit is None else [LIMITED, str(limit)]
    environment = {**os.environ, "LWDCTL_WORKSPACE": str(workspace), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", *code, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Return a maker of the workspace that a stage finds; stages run once each."""
    root = tmp_path_factory.mktemp("chain")
    kept: list[Path] = [root / "0"]
    kept[0].mkdir()

    def workspace_before(name: str) -> Path:
        place = list(CHAIN).index(name)
        while len(kept) <= place:
            shutil.copytree(kept[-1], root / str(len(kept)))
            done = run(root / str(len(kept)), list(CHAIN.values())[len(kept) - 1].split())
            assert done.returncode == 0, done.stderr
            kept.append(root / str(len(kept)))
        return kept[place]

    return workspace_before


def artifacts(workspace: Path) -> set[str]:
    return {str(path.relative_to(workspace)) for path in workspace.glob("*/*/v*/manifest.json")}


def limits(count: int) -> list[int]:
    """Return sizes of a file from 0 to beyond most of what a stage writes, in bytes."""
    return [0, *(int(200 * 2.6**step) for step in range(count - 1))]


def fill(before, tmp_path: Path, name: str, count: int) -> None:
    line = CHAIN[name].split()
    for limit in limits(count):
        workspace = tmp_path / f"runs{limit}"
        shutil.copytree(before(name), workspace)
        known = artifacts(workspace)
        done = run(workspace, [*line, "--json"], limit)
        lines = done.stderr.splitlines()
        errors = [text for text in lines if text.startswith("error:")]
        if done.returncode == 0:
            made = artifacts(workspace) - known
            assert len(made) == 1, (limit, done.stderr)
            assert json.loads(done.stdout)["artifact"]
        else:
            assert done.returncode == 1, (limit, done.returncode, done.stderr)
            assert len(errors) == 1, (limit, done.stderr)
            assert str(workspace) in errors[0] or "cannot write" in errors[0], errors
            assert artifacts(workspace) == known
        verified = run(workspace, ["verify", "-q"])
        assert verified.returncode == 0, (limit, verified.stderr)
        again = run(workspace, line)
        assert again.returncode == 0, (limit, again.stderr)


def test_collect_on_a_full_disk(before, tmp_path):
    fill(before, tmp_path, "collect", 1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", list(CHAIN))
def test_every_stage_at_ten_sizes(before, tmp_path, name):
    fill(before, tmp_path, name, 10)
