"""The chain of stages that fault tests disturb, as real commands in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
CHAIN = {
    "collect": "collect metaworld --task reach --episodes 4 --max-steps 60 --workers 0",
    "ingest": "ingest",
    "train-vae": "train-vae --updates 8 --snapshots 4 --snippet-length 16 --policy-width 8"
    " --decoder xs",
    "encode": "encode --stride 8",
    "train-diffusion": "train-diffusion --updates 8 --snapshots 4 --width 16 --blocks 1",
    "train-baseline": "train-baseline mlp --updates 8 --policy-width 8",
    "eval": "eval --episodes 1 --max-steps 10 --workers 0",
    "analyze latents": "analyze latents --points 20",
    "analyze behavior": "analyze behavior",
    "analyze diversity": "analyze diversity --count 4 --draws 1 --workers 0 --max-steps 10",
    "analyze reconstruction": "analyze reconstruction --count 2 --split all --workers 0",
    "analyze convergence": "analyze convergence --episodes 2 --max-steps 5 --workers 0",
    "run": f"run {HERE / 'recipe.toml'}",
}  # fmt: skip
"""Every stage, and a recipe, with its command line: the order in which each finds its inputs."""
LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2);"
    "from lwdctl.cli.main import main; sys.exit(main(sys.argv[2:]))"
)
CODE = "import sys; from lwdctl.cli.main import main; sys.exit(main(sys.argv[1:]))"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment_for(workspace: Path) -> dict[str, str]:
    return {"LWDCTL_WORKSPACE": str(workspace), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def start(workspace: Path, words: list[str], limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command; `limit` is the largest file in bytes that it may write."""
    code = [CODE] if limit is None else [LIMITED, str(limit)]
    return subprocess.Popen(
        [sys.executable, "-c", *code, *words],
        env={**os.environ, **environment_for(workspace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    workspace: Path, words: list[str], limit: int | None = None, number: int = 0, after: float = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, to which a signal `number` may come after some seconds."""
    process = start(workspace, words, limit)
    if number:
        time.sleep(after)
        process.send_signal(number)
    out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


class Forked:
    """Runs commands as `run` does, in children of a process that has the modules loaded.

    Attributes:
        peak: Largest resident memory of the last command, in bytes.
    """

    def __enter__(self) -> Forked:
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "forking.py")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._server.communicate()

    def __call__(
        self,
        workspace: Path,
        words: list[str],
        limit: int | None = None,
        number: int = 0,
        after: float = 0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; see `run`."""
        assert self._server.stdin
        assert self._server.stdout
        environment = environment_for(workspace)
        job = {
            "words": words, "environment": environment, "limit": limit, "signal": int(number),
            "after": after,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code, out, err, self.peak = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess(words, code, out, err)


def artifacts(workspace: Path) -> set[str]:
    """Return the finished artifacts of a workspace."""
    return {str(path.relative_to(workspace)) for path in workspace.glob("*/*/v*/manifest.json")}


class Before:
    """Makes the workspace that a stage finds; stages run once each."""

    def __init__(self, root: Path, run: Run = run) -> None:
        self._root = root
        self._kept = [root / "0"]
        self._kept[0].mkdir()
        self.run = run

    def __call__(self, name: str, copy: Path | None = None) -> Path:
        """Return the workspace before the stage `name`, or a copy of it."""
        place = 0 if name == "run" else list(CHAIN).index(name)  # a recipe makes everything itself
        while len(self._kept) <= place:
            workspace = self._root / str(len(self._kept))
            shutil.rmtree(workspace, ignore_errors=True)
            shutil.copytree(self._kept[-1], workspace)
            done = self.run(workspace, list(CHAIN.values())[len(self._kept) - 1].split())
            assert done.returncode == 0, done.stderr
            self._kept.append(workspace)
        kept = self._kept[place]
        if copy is None:
            return kept
        shutil.copytree(kept, copy)
        return copy


COUNTED: list[str] = []
"""What the campaigns of this session counted; printed at its end."""


class Counts:
    """Counts the faults of a campaign; those that lost something fail the test at its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._injected = 0
        self._lost: list[str] = []
        self.more: dict[str, int] = {}

    def __enter__(self) -> Counts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        survived = self._injected - len(self._lost)
        more = "".join(f", {number} {what}" for what, number in self.more.items())
        COUNTED.append(
            f"{self._name}: {self._injected} injected{more}, {survived} survived,"
            f" {len(self._lost)} lost"
        )
        if kind is None and self._lost:
            raise AssertionError("\n\n".join(self._lost))

    def add(self, what: str, number: int = 1) -> None:
        """Count something beside."""
        self.more[what] = self.more.get(what, 0) + number

    @contextlib.contextmanager
    def injection(self, where: str) -> Iterator[None]:
        """Count one fault; what fails inside is reported at the end of the campaign."""
        self._injected += 1
        try:
            yield
        except AssertionError as error:
            self._lost.append(f"{where}: {error}")
        if "LWDCTL_FAULTS" in os.environ:  # where a long campaign can be watched
            with Path(os.environ["LWDCTL_FAULTS"]).open("a") as file:
                file.write(f"{self._name}: {self._injected}, {len(self._lost)} lost; {where}\n")
