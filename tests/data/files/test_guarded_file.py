"""HDF5 files written where the disk is full: an error with the path, and a process that lives."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

LIMITS = (0, 100, 800, 3000, 9000, 25_000)
"""Bytes that a file may have; the system answers a write beyond as it does on a full disk."""
PROGRAM = """
    import os, resource, sys, traceback
    from pathlib import Path
    import numpy as np
    from lwdctl.core.records import Episode
    from lwdctl.data.readers.robomimic_writer import RobomimicWriter

    def write(path):
        rng = np.random.default_rng(0)
        with RobomimicWriter(path, {"env_name": "made"}) as writer:
            for number in range(4):
                seen = {"place": rng.normal(size=(200, 3)).astype("f4")}
                writer.write(Episode(f"demo_{number}", seen, seen["place"], seed=number))

    write(Path(sys.argv[1], "whole.hdf5"))
    for limit in map(int, sys.argv[2:]):
        path = Path(sys.argv[1], f"{limit}.hdf5")
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                write(path)
            except OSError as error:
                named = error.filename == str(path) and not path.exists()
                sys.exit(10 if named else 11)  # as a command ends, which closes what HDF5 has open
            sys.exit(0)
        print(limit, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_is_an_error_that_names_the_file_and_no_crash(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), tmp_path, *map(str, LIMITS)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (tmp_path / "whole.hdf5").stat().st_size > max(LIMITS)
    ended = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert ended == dict.fromkeys(LIMITS, 10)
