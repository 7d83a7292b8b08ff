"""Reader of the npz data sets of DPPO (Diffusion Policy Policy Optimization).

`train.npz` holds `states` and `actions` of all episodes end to end, and `traj_lengths`. DPPO's
scripts scale both to [-1, 1] and keep the ranges in `normalization.npz` beside it.
"""

from __future__ import annotations

import shlex

import numpy as np

from lwdctl.configs import IngestConfig
from lwdctl.data.files.contents import Contents
from lwdctl.data.readers.keyed import KeyedNpz
from lwdctl.data.readers.keyed_proposal import Keys

STATES, ACTIONS, LENGTHS = "states", "actions", "traj_lengths"
NORMALIZATION = "normalization.npz"
_BLOCK = 2**16
# Values are normalized where no component leaves [-1, 1] and most of them reach both ends.
_TOLERANCE = 1e-3
_REACHED = 0.99


class DppoFile(KeyedNpz):
    """One data set of DPPO; a `FileReader`."""

    generic = False
    format = "dppo"

    @classmethod
    def recognize(cls, contents: Contents) -> str:
        """Return by what an npz file is recognized as DPPO's, or ""."""
        keys = (STATES, ACTIONS, LENGTHS)
        found = contents.container == "npz" and contents.has(*keys)
        return ", ".join(keys) if found else ""

    def _defaults(self) -> Keys:
        return Keys((STATES,), ACTIONS, "lengths_key", LENGTHS)

    def _scan(self, config: IngestConfig) -> None:
        super()._scan(config)
        keys = [self._action, *(item.name for item in self.spec.observations)]
        if all(self._looks_normalized(key) for key in keys):
            message = (
                f"all of {', '.join(keys)} reach from -1 to 1: they look normalized; the ranges are"
                f" in the {NORMALIZATION} that belongs to them, which is not applied"
            )
            self._report("normalized", "", message, "warning", self._undo(), keys=keys)

    def _looks_normalized(self, key: str) -> bool:
        """Return whether an array fills [-1, 1] and never leaves it."""
        low, high = np.full(1, np.inf), np.full(1, -np.inf)
        stop = self._pieces[-1].stop
        for start in range(0, stop, _BLOCK):
            rows = self._file.rows(key, start, min(start + _BLOCK, stop))
            flat = rows.reshape(len(rows), -1)
            low, high = np.minimum(low, flat.min(axis=0)), np.maximum(high, flat.max(axis=0))
        inside = np.all(low >= -1 - _TOLERANCE) and np.all(high <= 1 + _TOLERANCE)
        filled = (low <= -_REACHED) & (high >= _REACHED)
        return bool(inside and 2 * np.sum(filled) > np.size(filled))

    def _undo(self) -> str:
        """Return the command that writes the data in their own units, if the ranges are known."""
        ranges = self.path.parent / NORMALIZATION
        if not ranges.is_file():
            return f"find the {NORMALIZATION} of the data set"
        target = self.path.with_name(f"{self.path.stem}_units.npz")
        code = (
            f"import numpy as np; d = dict(np.load({str(self.path)!r}));"
            f" n = np.load({str(ranges)!r}); f = lambda x, a, b: (x + 1) / 2 * (b - a) + a;"
            " d['states'] = f(d['states'], n['obs_min'], n['obs_max']);"
            " d['actions'] = f(d['actions'], n['action_min'], n['action_max']);"
            f" np.savez({str(target)!r}, **d)"
        )
        return f"python -c {shlex.quote(code)}"
