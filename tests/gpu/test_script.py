"""`run.sh` on a machine without a GPU: tests are skipped, rows are measured on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def test_the_wheels_hold_the_plugin_whose_option_is_set() -> None:
    """pytest ends with 4 at an option that it does not know."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())
    assert "timeout" in project["tool"]["pytest"]["ini_options"]
    assert "pytest-timeout" in (HERE / "fetch_wheels.sh").read_text().split()


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.skipif(torch.cuda.is_available(), reason="run it as it is")
def test_the_script_ends_well_without_a_gpu(tmp_path: Path) -> None:
    settings = {"PYTHON": sys.executable, "OUT": str(tmp_path), "ROWS": "step", "LIMIT": "300"}
    done = subprocess.run(
        [HERE / "run.sh"], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests ended with 0, bench with 0" in done.stdout
    assert "needs a CUDA device" in (tmp_path / "tests.log").read_text()
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (row["row"], row["missing"]) == ("step", "")
