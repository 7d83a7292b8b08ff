"""Demonstrations in an .npz file: arrays `seen` and `done` (episode, time, component)."""

import numpy as np

from lwdctl import EnvSpec, Episode, SourceSpec
from lwdctl.core.errors import DataError
from lwdctl.data.reader import EpisodeOutline
from toy_plugin.robot import Line


class NpzFile:
    def __init__(self, path, config):
        self.path = path
        try:
            with np.load(path) as file:
                self._seen, self._done = file["seen"], file["done"]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: is no toy file ({error})") from error
        count, length = self._done.shape[:2]
        self.episodes = [EpisodeOutline(f"episode {n}", length, "right") for n in range(count)]
        self.spec = SourceSpec(
            observations=Line.observations,
            action=Line.action,
            env=EnvSpec("toy-line", ("right",), {}, Line.max_steps),
            labels=(),
            source_format="toy-npz",
        )

    def read(self, index):
        outline = self.episodes[index]
        return Episode(
            outline.source,
            {"place": self._seen[index].astype(np.float32)},
            self._done[index].astype(np.float32),
            task=outline.task,
        )

    def close(self):
        pass
