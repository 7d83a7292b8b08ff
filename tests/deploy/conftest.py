"""A chain of untrained models on a made-up data set, as the export takes it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from toy_chain import TOY, ToyChain, publish_chain

sys.path.pop(0)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return a function that exports a kind of chain once and gives it with its directory."""
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from lwdctl.core.progress import SilentProgress
    from lwdctl.deploy.export import export_policy
    from lwdctl.methods.method import Acting

    made = {}

    def make(toy: ToyChain = TOY, horizon=5):
        if (toy, horizon) not in made:
            folder = tmp_path_factory.mktemp("chain")
            inputs = publish_chain(folder / "runs", toy)
            directory = folder / "policy"
            export_policy(
                inputs, directory, Acting(horizon, num_inference_steps=3), SilentProgress()
            )
            made[toy, horizon] = inputs, directory
        return made[toy, horizon]

    return make
