"""TensorBoard: event files, in an artifact and beside the artifacts of a workspace."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import matching
from lwdctl.core.untrusted import read_bytes
from lwdctl.tracking.history import Outcome, Point
from lwdctl.tracking.run import TrackedRun

FOLDER = "tensorboard"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEAD = 24
"""Bytes of a PNG file up to its height."""


class EventFile:
    """One event file of TensorBoard's.

    Args:
        folder: Where it is written.
        first_step: Points of earlier files in the folder from this step on no longer count.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(step=first_step, file_version="brain.Event:2"))
        self._writer.add_event(Event(step=first_step, session_log=start))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to the curve of each name."""
        for name, value in values.items():
            self._add(step, tag=name, simple_value=value)

    def text(self, name: str, markdown: str) -> None:
        """Add a text."""
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        tensor = make_tensor_proto([markdown.encode()], shape=(1,))
        metadata = create_summary_metadata(display_name="", description="")
        self._add(0, tag=name, metadata=metadata, tensor=tensor)

    def picture(self, name: str, png: bytes) -> None:
        """Add a picture in PNG."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._add(0, tag=name, image=image)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()

    def _add(self, step: int, **value: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value)])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


class TensorBoardTracker:
    """Event files in `<workspace>/tensorboard/<type>-<name>-<id>/`, beside those of other runs.

    They always hold all of the run; when it is finished, those of earlier sessions are removed.
    TensorBoard plays no videos: the stills of an episode stand for its video.
    """

    def begin(self, run: TrackedRun, root: Path, say: Callable[[str], None]) -> None:
        """Begin the event file, with the settings as a text."""
        del say
        self._folder = root / FOLDER / f"{run.title.replace('/', '-')}-{run.id[:8]}"
        self._earlier = matching(self._folder, "events.*")
        self._events = EventFile(self._folder, first_step=0)
        self._events.text("tags", ", ".join(run.tags))
        self._events.text("config", _markdown(("setting", "value"), list(run.config.items())))

    def log(self, point: Point) -> None:
        """Add one point per name at the training step of the part."""
        names = [name for name in point.values if name.rpartition("/")[2] != "update"]
        update = next(int(value) for name, value in point.values.items() if name not in names)
        self._events.scalars({name: point.values[name] for name in names}, update)

    def conclude(self, outcome: Outcome, step: int) -> None:
        """Add the summary and the result rows as texts, and pictures."""
        del step
        self._events.text("summary", _markdown(("name", "value"), list(outcome.summary.items())))
        if outcome.results is not None:
            table = _markdown(outcome.results.columns, outcome.results.rows)
            self._events.text("results", table)
        for item in outcome.media:
            if item.kind == "picture":
                content = read_bytes(item.path)
                if content.startswith(_PNG) and len(content) > _PNG_HEAD:
                    self._events.picture(item.name, content)

    def finish(self, *, finished: bool) -> None:
        """Close the file and remove those that it replaces."""
        del finished
        self._events.close()
        for path in self._earlier:
            path.unlink(missing_ok=True)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(item) for item in line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|")
