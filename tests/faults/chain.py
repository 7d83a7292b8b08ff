"""The chain of stages that fault tests disturb, as real commands in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


def start(workspace: Path, words: list[str], limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command; `limit` is the largest file in bytes that it may write."""
    code = [CODE] if limit is None else [LIMITED, str(limit)]
    environment = {**os.environ, "LWDCTL_WORKSPACE": str(workspace), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", *code, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    workspace: Path, words: list[str], limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    process = start(workspace, words, limit)
    out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def artifacts(workspace: Path) -> set[str]:
    """Return the finished artifacts of a workspace."""
    return {str(path.relative_to(workspace)) for path in workspace.glob("*/*/v*/manifest.json")}


class Before:
    """Makes the workspace that a stage finds; stages run once each."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._kept = [root / "0"]
        self._kept[0].mkdir()

    def __call__(self, name: str, copy: Path | None = None) -> Path:
        """Return the workspace before the stage `name`, or a copy of it."""
        place = list(CHAIN).index(name)
        while len(self._kept) <= place:
            workspace = self._root / str(len(self._kept))
            shutil.copytree(self._kept[-1], workspace)
            done = run(workspace, list(CHAIN.values())[len(self._kept) - 1].split())
            assert done.returncode == 0, done.stderr
            self._kept.append(workspace)
        if copy is None:
            return self._kept[place]
        shutil.copytree(self._kept[place], copy)
        return copy
