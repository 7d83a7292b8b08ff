"""`lwdctl doctor`: check the installation and say what to do about problems."""

from __future__ import annotations

from dataclasses import asdict

from lwdctl.cli.generate import Shared
from lwdctl.cli.output import print_json, print_table, print_text
from lwdctl.core.errors import LwdctlError


def command(
    shared: Shared,
) -> None:
    """Check packages, simulators, plug-ins, rendering, device and disk.

    Optional packages that are absent are reported as missing. The exit code is 1 only when
    something that should work is broken.
    """
    from lwdctl.core.installation import BROKEN, OK
    from lwdctl.evaluation.doctor import examine

    root = shared.workspace.root
    found = examine(root, shared.progress)
    broken = [item.name for item in found if item.state == BROKEN]
    if shared.as_json:
        checks = [asdict(item) for item in found]
        print_json(None, root, {"works": not broken, "checks": checks})
    else:
        rows = [[item.area, item.name, item.state, item.detail] for item in found]
        print_table(["area", "check", "state", "result"], rows)
        advised: dict[str, list[str]] = {}
        for item in found:
            if item.state != OK and item.hint:
                names = advised.setdefault(item.hint, [])
                names += [] if item.name in names else [item.name]
        for hint, names in advised.items():
            print_text(f"{', '.join(names)}: {hint}")
    if broken:
        raise LwdctlError(f"broken: {', '.join(broken)}", "see the lines above")
