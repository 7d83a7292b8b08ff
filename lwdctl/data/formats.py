"""The table of data formats. A new one is a file reader of this room and a row here."""

from __future__ import annotations

from lwdctl.core.registry import Registry, Row

READERS = Registry(
    "data format",
    {
        "robomimic": Row("lwdctl.data.robomimic:open_robomimic", "robomimic HDF5, 1.2 to 1.5"),
        "d4rl": Row("lwdctl.data.d4rl:open_d4rl", "D4RL flat HDF5"),
        "minari": Row("lwdctl.data.minari:open_minari", "Minari data set directory or HDF5"),
        "pusht": Row("lwdctl.data.pusht:open_pusht", "Diffusion Policy's PushT buffer (zarr v2)"),
    },
)
