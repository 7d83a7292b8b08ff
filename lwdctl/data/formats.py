"""The table of data formats. A new format is one module and one row here.

A format of another package is an entry point of the group `lwdctl.readers` that names its class;
`data.reader` describes the contract.
"""

from __future__ import annotations

from lwdctl.core.registry import Registry, Row

READERS = Registry(
    "data format",
    {
        "robomimic": Row(
            "lwdctl.data.readers.robomimic:RobomimicFile", "robomimic HDF5, 1.2 to 1.5"
        ),
        "d4rl": Row("lwdctl.data.readers.d4rl:D4rlFile", "D4RL flat HDF5"),
        "minari": Row(
            "lwdctl.data.readers.minari:MinariFile", "Minari dataset: HDF5, arrow or parquet"
        ),
        "pusht": Row(
            "lwdctl.data.readers.pusht:PushTBuffer", "Diffusion Policy's PushT buffer (zarr v2)"
        ),
        "lerobot": Row(
            "lwdctl.data.readers.lerobot:LeRobotDataset",
            "LeRobot dataset, 2.0 to 3.0",
            extra="parquet",
        ),
        "maniskill": Row(
            "lwdctl.data.readers.maniskill:ManiSkillFile", "ManiSkill 2 and 3 trajectories"
        ),
        "dppo": Row("lwdctl.data.readers.dppo:DppoFile", "DPPO npz"),
        "ogbench": Row("lwdctl.data.readers.ogbench:OgbenchFile", "OGBench npz"),
        "hdf5": Row("lwdctl.data.readers.keyed:KeyedHdf5", "HDF5 with keys of its own"),
        "zarr": Row(
            "lwdctl.data.readers.keyed:KeyedZarr", "zarr with keys of its own, replay buffers"
        ),
        "npz": Row("lwdctl.data.readers.keyed:KeyedNpz", "npz with keys of its own"),
    },
    entry_points="lwdctl.readers",
)
