"""Toy runs: the directory of a training or an evaluation, filled without computing anything."""

from __future__ import annotations

import json
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.progress import SilentProgress
from lwdctl.tracking.tracking import NO_TRACKING

ROWS = [
    {"update": 50, "reconstruction": 0.1 + 0.2, "kl": 1e-12, "seconds": 1.5},
    {"update": 100, "reconstruction": 1 / 3, "kl": 2.0, "held_out_kl": 7.25, "seconds": 3.0},
    {"update": 120, "reconstruction": 0.25, "kl": 1e12, "seconds": 3.5},
]
CONFIG = {"seed": 3, "batch_size": 64, "observation_keys": ["state"], "time_limit": None}
RESULTS = [
    {
        "policy": "lwd", "latent": "sampled", "env": "pusht", "task": task, "horizon": horizon,
        "success": success, "success_low": 0.1, "errors": 0, "metrics": {"max_overlap": 1 / 3},
        "by_label": labels, "cost": {"flops_per_step": 12.5},
    }
    for task, horizon, success, labels in (
        ("push", 16, 0.5, {}), ("all", "episode", None, {"expert": {"episodes": 4}})
    )
]  # fmt: skip


class Recorder(SilentProgress):
    """Keeps the messages."""

    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)

    @property
    def warnings(self):
        return [text for text in self.messages if text.startswith("warning")]


def png(width=4, height=3):
    """Return a picture."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\7" * 3 * width) * height)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def write_log(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Runs:
    """A workspace with toy runs.

    Attributes:
        workspace: The workspace.
        progress: Keeps what is said.
    """

    def __init__(self, root: Path) -> None:
        self.workspace, self.progress = Workspace(root), Recorder()
        with self.workspace.begin("snippets", "toy", config={}) as output:
            (output.path / "data").write_text("none")
            self.snippets = output.publish({"env": "pusht"})

    def train(self, tracking=NO_TRACKING, rows=ROWS, *, resume=False, name="toy", config=CONFIG):
        """Log the rows as a training would, and publish."""
        with (
            self.workspace.begin(
                "vae", name, config=config, inputs=[self.snippets], resume=resume
            ) as output,
            tracking.follow(output, self.progress),
        ):
            write_log(output.path / "metrics.jsonl", rows)
            return output.publish({"updates": rows[-1]["update"], "kl": 5.5}, seed=3)

    def interrupt(self, tracking=NO_TRACKING, rows=ROWS[:2]) -> Path:
        """Log the rows, keep a checkpoint, and be interrupted; return the run's directory."""
        begun = self.workspace.begin("vae", "toy", config=CONFIG, inputs=[self.snippets])
        with suppress(KeyboardInterrupt), begun, tracking.follow(begun, self.progress):
            write_log(begun.path / "metrics.jsonl", rows)
            (begun.checkpoints / "1").write_text("weights")
            raise KeyboardInterrupt
        return begun.path

    def train_parts(self, tracking=NO_TRACKING):
        """Train two models one after the other, as `ldp` does."""
        with (
            self.workspace.begin(
                "baseline", "toy", config={"method": "ldp"}, inputs=[self.snippets]
            ) as output,
            tracking.follow(output, self.progress),
        ):
            for part in ("vae", "diffusion"):
                write_log(output.checkpoints / part / "metrics.jsonl", ROWS)
                write_log(output.path / part / "metrics.jsonl", ROWS)
            return output.publish({"updates": 120}, seed=3)

    def evaluate(self, tracking=NO_TRACKING):
        """Publish result rows, a video and pictures."""
        config = {"policy": ["lwd", "dp"], "episodes": 2}
        with (
            self.workspace.begin(
                "evaluation", "toy", config=config, inputs=[self.snippets]
            ) as output,
            tracking.follow(output, self.progress),
        ):
            folder = output.path / "videos" / "lwd-sampled"
            folder.mkdir(parents=True)
            (folder / "episode-000.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\1" * 500)
            (folder / "episode-000.png").write_bytes(png())
            (output.path / "figure.png").write_bytes(png(8, 5))
            return output.publish({"protocol": "two episodes", "results": RESULTS}, seed=3)
