"""A file of finished episodes, so that an interrupted rollout goes on after them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import sealed, unsealed, write_durably
from lwdctl.artifacts.manifest import plain
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.policies.policy import EpisodePlan


class EpisodeJournal:
    """The finished episodes of one rollout, one line each: a SHA-256 and JSON.

    Each line is written as soon as its episode ends, in one piece and without a buffer, so the
    death of the process loses none. Lines that are damaged or half-written do not count.

    Args:
        path: The file; it is created with the first episode.
        software: What computes the episodes; those of other software do not count.
    """

    def __init__(self, path: Path, software: Mapping[str, Any]) -> None:
        self._path = path
        self._software = plain(software)
        self._lines = _read(path)
        if not self._lines or self._lines[0] != {"software": self._software}:
            self._lines = [{"software": self._software}]
        self._begun = False

    @property
    def score(self) -> str:
        """Name of the metric that is the environment's score; "" before any episode ended."""
        return str(self._lines[-1].get("score", ""))

    def finished(self, plans: Sequence[EpisodePlan]) -> dict[int, EpisodeResult]:
        """Return the results of the plans that have run, by the plans' indices."""
        by_index = {plan.index: plan for plan in plans}
        found = {}
        for line in self._lines[1:]:
            result = EpisodeResult.from_json(line["episode"])
            plan = by_index.get(result.plan.index)
            if plan is not None and result.follows(plan):
                found[plan.index] = replace(result, plan=plan, seconds=line["seconds"])
        return found

    def write(self, results: Iterable[EpisodeResult], score: str) -> None:
        """Add episodes, those lost to the simulator excepted; later lines replace earlier ones."""
        lines = [
            {"score": score, "episode": item.to_json(), "seconds": dict(item.seconds)}
            for item in results
            if not item.error
        ]
        if not lines:
            return
        if not self._begun:
            # Anew, without what was damaged: what follows half a line would be lost with it.
            write_durably(self._path, b"".join(map(_line, self._lines)))
            self._begun = True
        with self._path.open("ab", buffering=0) as file:
            file.write(b"".join(map(_line, lines)))


def _line(content: Mapping[str, Any]) -> bytes:
    return sealed(json.dumps(content).encode()) + b"\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """Return what the undamaged lines hold."""
    if not path.exists():
        return []
    texts = map(unsealed, path.read_bytes().splitlines())
    return [json.loads(text) for text in texts if text is not None]
