"""Run by an interpreter that has lerobot: `write DIR` or `read DIR FILE.npz`.

Ends with `SKIPPED` where that version of lerobot cannot read version 3 of its datasets.
"""

import inspect
import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset

SKIPPED = 77
LENGTHS = (5, 2, 12, 3)
TASKS = ("put the cup on the plate", "open the drawer")
SIZES = {"observation.state": (3,), "observation.pose": (2, 2), "action": (2,), "force": (1,)}


def rows(episode):
    """Return the arrays of an episode by feature."""
    rng = np.random.default_rng(episode)
    return {
        name: rng.normal(size=(LENGTHS[episode], *shape)).astype(np.float32)
        for name, shape in SIZES.items()
    }


def write(root):
    features = {
        name: {"dtype": "float32", "shape": shape, "names": None} for name, shape in SIZES.items()
    }
    features["next.reward"] = {"dtype": "float32", "shape": (1,), "names": None}
    features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    data = LeRobotDataset.create("test/set", 25, features=features, root=root, use_videos=False)
    in_frame = "task" not in inspect.signature(data.add_frame).parameters
    for episode, length in enumerate(LENGTHS):
        values, task = rows(episode), TASKS[episode % 2]
        for step in range(length):
            frame = {name: array[step] for name, array in values.items()}
            frame["next.reward"] = np.array([step / 2], dtype=np.float32)
            frame["next.success"] = np.array([episode != 1 and step == length - 1])
            if in_frame:
                data.add_frame({**frame, "task": task})
            else:
                data.add_frame(frame, task)
        data.save_episode()
    if hasattr(data, "finalize"):
        data.finalize()


def read(root, path):
    if not CODEBASE_VERSION.startswith("v3"):
        sys.exit(SKIPPED)
    data = LeRobotDataset("test/set", root=root)
    items = [data[row] for row in range(len(data))]
    columns = {name: np.stack([np.asarray(item[name]) for item in items]) for name in items[0]}
    np.savez(
        path,
        **columns,
        fps=data.fps,
        mean=np.asarray(data.meta.stats["action"]["mean"]),
        std=np.asarray(data.meta.stats["action"]["std"]),
    )


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
