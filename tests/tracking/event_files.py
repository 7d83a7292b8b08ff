"""Reading TensorBoard's event files with its own accumulator."""

from __future__ import annotations

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def only_run(root):
    """Return the folder of the only run that a tracker has shown."""
    (path,) = (root / "tensorboard").iterdir()
    return path


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    found.Reload()
    return found


def curves(found):
    """Return name to the points (step, value) of its curve."""
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def expected(rows, before=""):
    """Return the curves of the rows of a log."""
    names = {key: None for row in rows for key in row if key != "update"}
    return {
        before + name: [
            (row["update"], float(np.float32(row[name]))) for row in rows if name in row
        ]
        for name in names
    }


def text(found, tag):
    (event,) = found.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()
