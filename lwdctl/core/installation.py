"""Checks of the installed packages against lwdctl's requirements and known conflicts.

Only package metadata is read; nothing is imported.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lwdctl
from lwdctl.core.errors import install_extra

OK, WARNING, MISSING, BROKEN = "ok", "warning", "missing", "broken"
"""States of a finding; only `BROKEN` means that something that should work does not."""

Version = Callable[[str], str]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        area: Area of the check (`"package"`, `"simulator"`, `"device"`, ...).
        name: Name of what was checked.
        state: `"ok"`, `"warning"`, `"missing"` (optional and absent) or `"broken"`.
        detail: The result.
        hint: What to do about it, or "".
    """

    area: str
    name: str
    state: str
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Conflict:
    """Versions that do not work together.

    Attributes:
        present: Requirements that are all met when the conflict arises.
        absent: Packages that are not installed when it arises.
        build: Local version of the last of `present` (`"cpu"` in `2.13.0+cpu`); "" for any.
        state: How bad it is.
        detail: What goes wrong.
        hint: What to do.
    """

    present: tuple[str, ...]
    state: str
    detail: str
    hint: str
    absent: tuple[str, ...] = ()
    build: str = ""


CONFLICTS = (
    Conflict(
        ("metaworld", "mujoco>=4"),
        BROKEN,
        "Metaworld does not work with mujoco 4",
        "create a new environment with constraints.txt; downgrading in place leaves broken parts",
    ),
    Conflict(
        ("robosuite>=1.5.2", "numpy>=2"),
        WARNING,
        "robosuite 1.5.2 requires numpy below 2, and its resets do not follow the seed",
        "pip install 'robosuite==1.5.1' 'mink<0.0.14'",
    ),
    Conflict(
        ("robosuite<1.5",),
        WARNING,
        "robosuite before 1.5 has other controllers and another `object` observation",
        "pip install 'robosuite==1.5.1' 'mink<0.0.14'",
    ),
    Conflict(
        ("torchvision", "torch"),
        WARNING,
        "torchvision beside a CPU build of torch breaks `import diffusers`",
        "pip uninstall torchvision (nothing here needs it)",
        build="cpu",
    ),
    Conflict(
        ("zarr<3",), BROKEN, "snippet stores are written by zarr 3", "pip install 'zarr>=3.1,<4'"
    ),
    Conflict(
        ("hypnettorch",),
        BROKEN,
        "hypnettorch imports matplotlib without requiring it",
        "pip install 'matplotlib>=3.9,<4'",
        absent=("matplotlib",),
    ),
)

# Not an extra: its dependencies would bring torchvision.
_ROBOMIMIC = "robomimic"
_NOT_FOR_USERS = ("all", "dev")


def installed_version(name: str) -> str:
    """Return the version of an installed distribution, or ""."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def check_packages(
    requirements: Sequence[str] | None = None, version: Version = installed_version
) -> list[Finding]:
    """Check Python and every declared dependency; one of an extra may be missing.

    Args:
        requirements: As in package metadata; None reads lwdctl's own.
        version: Returns the version of an installed distribution, "" for none.
    """
    found = [Finding("package", "python", OK, platform.python_version()), _lwdctl()]
    if requirements is None:
        requirements = _declared()
    for text in requirements:
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        if requirement.name != "lwdctl" and extra not in _NOT_FOR_USERS:
            found.append(_package(requirement, extra, version(requirement.name)))
    robomimic = version(_ROBOMIMIC)
    detail = robomimic or "not installed; only needed by tests"
    hint = "" if robomimic else "pip install --no-deps robomimic==0.3.0"
    found.append(Finding("package", _ROBOMIMIC, OK if robomimic else MISSING, detail, hint))
    return found


def check_conflicts(
    conflicts: Sequence[Conflict] = CONFLICTS, version: Version = installed_version
) -> list[Finding]:
    """Return a finding for every conflict among the installed versions."""
    found = []
    for conflict in conflicts:
        named = [Requirement(text) for text in conflict.present]
        if (
            all(_met(item, version(item.name)) for item in named)
            and (not conflict.build or version(named[-1].name).endswith(f"+{conflict.build}"))
            and not any(version(name) for name in conflict.absent)
        ):
            names = [f"{item.name} {version(item.name)}" for item in named]
            together = " with ".join([*names, *(f"no {name}" for name in conflict.absent)])
            found.append(
                Finding("versions", together, conflict.state, conflict.detail, conflict.hint)
            )
    return found


def _declared() -> list[str]:
    try:
        return metadata.requires("lwdctl") or []
    except metadata.PackageNotFoundError:
        return []


def _lwdctl() -> Finding:
    if installed_version("lwdctl"):
        return Finding("package", "lwdctl", OK, lwdctl.__version__)
    detail = f"{lwdctl.__version__}, used without being installed: its dependencies are unknown"
    return Finding("package", "lwdctl", WARNING, detail, "pip install -c constraints.txt -e .")


def _extra_of(requirement: Requirement) -> str:
    """Return the extra that a requirement belongs to, or "" for one without an extra."""
    marker = str(requirement.marker or "")
    return marker.partition("extra ==")[2].strip().strip("\"'")


def _package(requirement: Requirement, extra: str, version: str) -> Finding:
    name = canonicalize_name(requirement.name)
    install = install_extra(extra) if extra else f"pip install '{requirement}'"
    if not version:
        detail = f"not installed (extra {extra})" if extra else "not installed"
        return Finding("package", name, MISSING if extra else BROKEN, detail, install)
    if not _met(requirement, version):
        detail = f"{version}, but lwdctl supports {requirement.specifier}"
        return Finding("package", name, WARNING, detail, install)
    return Finding("package", name, OK, version)


def _met(requirement: Requirement, version: str) -> bool:
    return bool(version) and requirement.specifier.contains(version, prereleases=True)
