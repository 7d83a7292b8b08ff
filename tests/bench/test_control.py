"""Both sides of the row `control` compute the same actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def test_both_sides_act_alike(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from lwdctl.bench.control import bind, network_of

    vae, network = network_of()
    observation = np.random.default_rng(0).normal(size=39).astype(np.float32)
    _, unclipped = bind(vae, network, tmp_path / "act.onnx").act([observation], 32)
    with torch.inference_mode():
        inputs = torch.from_numpy(np.append(observation, np.float32(0.0)))
        np.testing.assert_allclose(unclipped, network.layers(inputs).numpy(), atol=1e-5)
    assert np.abs(unclipped).max() > 0.1


def test_the_row_has_median_and_p99():
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from lwdctl.bench.control import control

    median, p99 = control(torch.device("cpu"), 1)
    assert 0 < median.value.median <= p99.value.median
    assert p99.reference_value.median == pytest.approx(2 * median.value.median)
