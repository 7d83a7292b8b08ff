"""What `encode` says about the latents that it publishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.artifacts.workspace import Workspace
from lwdctl.configs import EncodeConfig, VaeConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.training import encode


class Messages(SilentProgress):
    """Keeps the lines that it is to show."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "collapsed"), [(1e9, True), (0.0, False)])
def test_latents_without_an_active_unit_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float, collapsed: bool
) -> None:
    monkeypatch.setattr(encode, "ACTIVE_VARIANCE", threshold)
    workspace, shown, rng = Workspace(tmp_path), Messages(), np.random.default_rng(0)
    spec = SourceSpec(
        observations=(ObservationSpec("state", 3),),
        action=ActionSpec(2, "absolute", "normalized", (-1.0,) * 2, (1.0,) * 2),
        env=EnvSpec("", ("reach",)),
        labels=("",),
        source_format="made",
    )
    with workspace.begin("snippets", "made", config={}) as output:
        writer = SnippetWriter(output.path / SNIPPETS_PAYLOAD, spec)
        for number in range(3):
            seen = {"state": rng.normal(size=(20, 3)).astype(np.float32)}
            actions = rng.uniform(-1, 1, (20, 2)).astype(np.float32)
            writer.append(Episode(f"demo_{number}", seen, actions, task="reach"))
        writer.close()
        output.publish({})
    tiny = VaeConfig(
        snippet_length=8, decoder="xs", latent_size=4, policy_width=8, updates=2, batch_size=4,
        device="cpu", threads=1, beta_kl=0.5,
    )  # fmt: skip
    run_stage("train-vae", tiny, workspace=workspace, progress=SilentProgress())
    made = run_stage("encode", EncodeConfig(device="cpu"), workspace=workspace, progress=shown)
    assert (made.manifest.summary["active_units"] == 0) == collapsed
    found = [line for line in shown.lines if "active_units 0" in line]
    assert len(found) == collapsed
    if collapsed:
        assert "a smaller --beta-kl (it had 0.5)" in found[0]
