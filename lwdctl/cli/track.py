"""`lwdctl track`: send finished or interrupted runs to experiment trackers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lwdctl.cli.generate import Shared, bare_option, trackers
from lwdctl.cli.output import print_json, print_text
from lwdctl.tracking.replay import REPLAY_SECONDS, replay
from lwdctl.tracking.trackers import TRACKERS

_RUNS = Annotated[
    list[str],
    typer.Argument(
        help="Runs to send: NAME, TYPE/NAME, TYPE/NAME:v2, the directory of an artifact or of an"
        " interrupted run, or the id of a run.",
        metavar="ARTIFACT",
        show_default=False,
    ),
]
_TO = Annotated[
    list[str],
    bare_option(
        "Experiment trackers to send the runs to, separated by commas.",
        "--to",
        metavar=f"[{'|'.join(TRACKERS)}],...",
    ),
]
_PROJECT = Annotated[
    str,
    bare_option(
        "Trackers' project to file the runs under  [default: the workspace's name]",
        "--project",
        metavar="NAME",
    ),
]
_TIMEOUT = Annotated[
    float,
    typer.Option(
        "--timeout",
        help="Seconds without a sign of life after which a tracker counts as hung.",
        metavar="SECONDS",
        min=1,
    ),
]


def command(
    shared: Shared,
    artifacts: _RUNS,
    to: _TO,
    project: _PROJECT = "",
    timeout: _TIMEOUT = REPLAY_SECONDS,
) -> None:
    """Send finished or interrupted trainings and evaluations to experiment trackers.

    Use it for runs that were not followed with `--track`, as on a cluster without internet. A run
    that the tracker already shows is completed; nothing is shown twice.
    """
    tracking = trackers(to, project, "track")
    sent = []
    for reference in artifacts:
        found = replay(reference, shared.workspace, tracking, shared.progress, timeout)
        sent.append(found)
        if not shared.as_json:
            where = f"{', '.join(found.trackers)}, project {found.project}"
            print_text(f"{found.reference} ({found.state}) is run {found.id} in {where}")
    if shared.as_json:
        print_json(None, None, {"sent": [asdict(item) for item in sent]})
