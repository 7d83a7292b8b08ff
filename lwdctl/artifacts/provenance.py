"""What produced an artifact: software, machine, seed and times."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import lwdctl

PACKAGES = (
    "torch",
    "numpy",
    "zarr",
    "diffusers",
    "hypnettorch",
    "mujoco",
    "gymnasium",
    "metaworld",
    "gym-pusht",
    "pymunk",
    "robosuite",
    "gymnasium-robotics",
)
"""Distributions whose installed version is recorded, simulators among them."""

_GIT_SECONDS = 10


def now() -> str:
    """Return the time as UTC ISO 8601 text with microseconds; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def provenance(*, seed: int | None, device: str, started: str) -> dict[str, Any]:
    """Describe the running program; nothing is imported to find out.

    Args:
        seed: The stage's seed, or None when it draws nothing.
        device: Where it computed (`"cpu"`, `"cuda:0"`).
        started: When it began, from `now`.
    """
    return {
        **software(),
        "seed": seed,
        "device": device,
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "machine": platform.machine(),
            "processors": os.cpu_count(),
        },
        "started": started,
        "finished": now(),
    }


def software() -> dict[str, Any]:
    """Return the versions that decide what is computed; `git` is None outside a checkout."""
    return {
        "lwdctl": lwdctl.__version__,
        "git": _git_state(Path(lwdctl.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _git_state(checkout: Path) -> dict[str, Any] | None:
    # Only lwdctl's own checkout counts: an installed copy may stand inside another project.
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--", "lwdctl")
    # Where git gives no answer, nobody knows which code this is.
    return {"commit": commit or "", "dirty": commit is None or changes != ""}


def _git(checkout: Path, *words: str) -> str | None:
    """Return what git answers, None where it gives no answer."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            ["git", "-C", str(checkout), *words],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
