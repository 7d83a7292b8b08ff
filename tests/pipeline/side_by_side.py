"""A small recipe whose stages can run side by side, and what it makes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

RECIPE = """
[recipe]
title = "two lengths"

[stage.ingest]
format = "pusht"
paths = ["FILE"]

[stage.short]
uses = "train-vae"
snippet_length = 8
updates = 2
batch_size = 4
policy_width = 16
decoder = "xs"
threads = 1

[stage.encode-short]
uses = "encode"
stride = 20

[stage.long]
like = "short"
snippet_length = 16
updates = UPDATES

[stage.encode-long]
uses = "encode"
stride = 20
name = "long"
"""
GRID = """
[stage.grid]
uses = "eval"
policy = ["random", "still"]
perturbation = [0, 1, 2, 3, 4, 5, 6, 7]
episodes = EPISODES
workers = 0
num_envs = 1
"""
"""An evaluation of 16 conditions that needs nothing but the data."""
TIMES = ("seconds", "samples_per_second", "software")
"""Ends of the keys of what differs between equal runs: times, and the state of the checkout."""


def write_buffer(path: Path) -> None:
    """Write a small replay buffer of PushT."""
    # By path: other tests have a `conftest` of their own.
    runpy.run_path(str(Path(__file__).with_name("conftest.py")))["write_replay_buffer"](path)


def write_recipe(folder: Path, source: str, updates: int = 3) -> Path:
    """Write the recipe on a replay buffer; both trainings make versions of one name."""
    path = folder / "two.toml"
    path.write_text(RECIPE.replace("FILE", source).replace("UPDATES", str(updates)))
    return path


def add_grid(recipe: Path, episodes: int) -> None:
    """Add an evaluation to the recipe, as its last stage."""
    with recipe.open("a") as file:
        file.write(GRID.replace("EPISODES", str(episodes)))


def command(recipe: Path, workspace: Path, *words: str) -> list[str]:
    """Return the command that runs the recipe."""
    place = ["--workspace", str(workspace)]
    return [sys.executable, "-m", "lwdctl", "run", str(recipe), *words, *place]


def run(*arguments, **settings) -> subprocess.CompletedProcess[str]:
    """Run the recipe to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=300, **settings
    )


def start(*arguments, **settings) -> subprocess.Popen[str]:
    """Begin to run the recipe."""
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )


def made(workspace: Path) -> dict[str, object]:
    """Return the numbers and weights of every artifact; times are left out."""
    found: dict[str, object] = {}
    for path in sorted(workspace.glob("*/*/v*/manifest.json")):
        manifest = json.loads(path.read_text())
        name = str(path.parent.relative_to(workspace))
        found[name] = {
            "config": manifest["config"],
            "inputs": [item["reference"] for item in manifest["inputs"]],
            "summary": timeless(manifest["summary"]),
            "files": {
                item["path"]: content_of(path.parent / item["path"], item["sha256"])
                for item in manifest["files"]
                if not is_log(item["path"])
            },
        }
    return found


def content_of(path: Path, digest: str) -> object:
    """Return the digest of a file, but of JSON its values, which may hold times."""
    return timeless(json.loads(path.read_text())) if path.suffix == ".json" else digest


def timeless(value: object) -> object:
    """Return plain values without those that are times."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not key.endswith(TIMES)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def is_log(path: str) -> bool:
    """Tell whether a file holds times."""
    return Path(path).name in ("log.txt", "metrics.jsonl") or "tensorboard" in Path(path).parts


def stage_processes(workspace: Path) -> list[int]:
    """Return the processes that run a stage in this workspace, by what their records say."""
    found = []
    for path in workspace.glob(".recipes/*/*.json"):
        record = json.loads(path.read_text())
        if record["state"] == "running":
            found.append(record["pid"])
    return found


def wait_for(what, seconds: float = 120.0):
    """Wait until a function returns something, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {seconds} s")


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def session_of(pid: int) -> list[int]:
    """Return the running processes whose session began with a child of this process."""
    sessions = set()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            sessions.add(int(folder.name))
        found.append((int(folder.name), int(fields[3]), fields[0]))
    return [one for one, session, state in found if session in sessions and state != "Z"]
