"""Writes files of robomimic's layout, and reads them."""

from __future__ import annotations

import json
import shlex

import h5py
import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.data.reader import open_source

STEPS = 5
OSC = {"type": "OSC_POSE", "control_delta": True}


def rows(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def numbers(count, size):
    """Rows that say which demonstration, row and component they are."""
    return np.arange(count * size, dtype=np.float32).reshape(count, size)


def write(path, demos, *, env_args=None, masks=None, **attributes):
    """Write demonstrations given as mappings of paths to arrays; `attrs` are attributes."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args)
        data.attrs.update(attributes)
        for name, content in demos.items():
            group = data.create_group(name)
            for key, value in content.items():
                if key == "attrs":
                    group.attrs.update(value)
                else:
                    group[key] = value
        for name, members in (masks or {}).items():
            file[f"mask/{name}"] = np.array(members, dtype="S")
    return path


def demo(steps=STEPS, action=3, seed=0, **more):
    return {
        "actions": rows(steps, action, seed=seed),
        "obs/state": rows(steps, 4, seed=seed + 100),
        **more,
    }


def demos(count=3, **more):
    return {f"demo_{i}": demo(seed=i, **more) for i in range(count)}


def read_all(path, **options):
    with open_source(None, (path,), IngestConfig(**options)) as source:
        episodes = [source.read(index) for index in range(len(source.episodes))]
        return source.spec, episodes, source.findings


def only(findings, check, text=""):
    """Return the finding of a check whose message has a text; exactly one has."""
    found = [item for item in findings if item.check == check and text in item.message]
    assert len(found) == 1, findings
    return found[0]


def follow(hint):
    """Return the options that a hint begins with as settings of `ingest`."""
    words = shlex.split(hint.partition(" ")[0] + " " + hint.partition(" ")[2])
    options: dict[str, object] = {}
    name = words[0].removeprefix("--").replace("-", "_")
    value = words[1].rstrip(",")
    many = name in ("observation_keys", "drop")
    options[name] = tuple(value.split(",")) if many else value
    return options
