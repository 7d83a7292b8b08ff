"""The rows `startup` run every training, and name the size of what they train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lwdctl.artifacts.workspace import Workspace
from lwdctl.bench import startup
from lwdctl.cli.main import main


@pytest.mark.slow
def test_the_rows_name_the_sizes_of_what_they_train(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def in_this_process(arguments: Sequence[str]) -> float:
        if arguments[0] == "-c":
            return 1.0
        assert main(list(arguments[2:])) == 0
        folder = Path(arguments[arguments.index("--workspace") + 1])
        newest = max(Workspace(folder).artifacts(), key=lambda item: item.path.stat().st_mtime_ns)
        made.append(dict(newest.manifest.config))
        return 2.0

    monkeypatch.setattr(startup, "_cpu_seconds", in_this_process)
    rows = list(startup.one_update(torch.device("cpu"), rounds=1))
    names = [row.name for row in rows]
    vae, _, diffusion, mlp, dp, ldp = made
    assert [name.partition(",")[0] for name in names] == [name for name, _, _ in startup.STAGES]
    size = f"decoder {vae['decoder']}, policy {vae['policy_layers']} x {vae['policy_width']}"
    assert f"T {vae['snippet_length']}, {size}" in names[0]
    assert f"residual MLP {diffusion['blocks']} x {diffusion['width']}" in names[2]
    assert f"policy {mlp['layers']} x {mlp['policy_width']}" in names[3]
    assert f"U-Net {dp['unet_size']}, chunk {dp['snippet_length']}" in names[4]
    assert f"chunk {ldp['snippet_length']}, " in names[5]
    assert f"residual MLP {ldp['blocks']} x {ldp['width']}" in names[5]
    assert all(config["updates"] == 1 for config in (vae, diffusion, mlp, dp, ldp))
    assert [row.ratio for row in rows] == [0.5] * 6
