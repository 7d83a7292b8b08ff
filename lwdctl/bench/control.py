"""One control step of a generated network: ONNX Runtime beside an eager torch module."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from lwdctl.bench.comparisons import Comparison
from lwdctl.core.records import ActionSpec, FloatArray
from lwdctl.deploy.graphs import NetworkAct, layers_of
from lwdctl.deploy.runtime import Plan, Request, open_session, signature_of
from lwdctl.methods.lwd import GeneratedNetwork
from lwdctl.models.vae import PolicyVae, VaeSpec

ROUNDS = 20
STEPS = 1000
OBSERVATION, ACTION = 39, 4


def control(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Take control steps of a 256 x 256 network, Metaworld's sizes; both sides on the CPU.

    Ours is `deploy.runtime.Plan.act`: normalization, time input, the network and clipping. The
    reference is the bare MLP, an `nn.Sequential` with NumPy arrays in and out.
    """
    del device
    vae, network = network_of()
    with TemporaryDirectory() as folder:
        plan = bind(vae, network, Path(folder) / "act.onnx")
    inputs = np.random.default_rng(0).normal(size=(STEPS, OBSERVATION + 1)).astype(np.float32)

    def ours(row: FloatArray) -> object:
        return plan.act((row[:OBSERVATION],), 3)

    def eager(row: FloatArray) -> object:
        with torch.inference_mode():
            return network.layers(torch.from_numpy(row)).numpy()

    times = [
        (_seconds(ours, inputs), _seconds(eager, inputs)) for _ in range((rounds or ROUNDS) + 1)
    ]
    (medians, slow), (reference, reference_slow) = (
        1e3 * np.quantile(np.stack(side), (0.5, 0.99), axis=1)
        for side in zip(*times[1:], strict=True)  # the first round warms both up
    )
    p99 = float(np.median(slow)), float(np.median(reference_slow))
    yield Comparison(
        "one control step, 39 observations, 256 x 256, cpu",
        "ONNX Runtime, normalization and clipping included",
        "nn.Sequential, eager",
        "ms",
        at_least=1.5,
        note=f"p99 {p99[0]:.4f} ms, reference {p99[1]:.4f} ms; medians of {STEPS} steps a round",
    ).measured(medians.tolist(), reference.tolist())
    yield Comparison(
        "p99 of control steps, cpu",
        "ONNX Runtime",
        "twice its median",
        "ms",
        at_least=1.0,
        note=f"of {STEPS} steps a round",
    ).measured(slow.tolist(), (2.0 * medians).tolist())


def network_of() -> tuple[PolicyVae, GeneratedNetwork]:
    """Return a network that an untrained decoder generated, and its VAE."""
    torch.manual_seed(0)
    spec = VaeSpec(("state",), OBSERVATION, ACTION, None, 64, 256, (50, 50), (256, 256), True)
    vae = PolicyVae(spec)
    return vae, GeneratedNetwork(vae, vae.decoder(torch.randn(1, 256))[0]).eval()


def bind(vae: PolicyVae, network: GeneratedNetwork, path: Path) -> Plan:
    """Write the graph `act` and bind it to the weights of the network."""
    limits = (-1.0,) * ACTION, (1.0,) * ACTION
    NetworkAct(vae, ActionSpec(ACTION, "delta", "normalized", *limits)).write(path)
    session = open_session(path, 1)
    weights = [value.detach().numpy() for value in network.parameters()]
    outputs = dict(zip(layers_of(vae), weights, strict=True))
    none = np.zeros(0, dtype=np.float32)
    return Plan(Request(none, 0, 0, none, 0, 0), outputs, session, signature_of(session))


def _seconds(act: Callable[[FloatArray], object], rows: FloatArray) -> FloatArray:
    """Return the time of every step (step,)."""
    taken = np.empty(len(rows), dtype=np.float32)
    for number, row in enumerate(rows):
        begun = time.perf_counter()
        act(row)
        taken[number] = time.perf_counter() - begun
    return taken
