"""Benchmarks of the batched decoder and the data loader against the library code they replace.

Both sides run in one process, in alternation; medians are compared and only the ratio is reported
as a result.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zarr
from hypnettorch.mnets import MLP
from torch import Tensor

from lwdctl.artifacts.snippets import SnippetStore, SnippetWriter
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models import generated
from lwdctl.models.generated import PolicyDecoder, PolicyShape

NUM_ENVS = 32
LATENT = 256
STEPS = 20
METAWORLD = PolicyShape(39, (256, 256), 4)

EPISODES = 200
EPISODE_STEPS = 500
SNIPPET_LENGTH = 64
BATCH = 64

Work = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """The times of two implementations of the same work.

    Attributes:
        name: What is done.
        implementation: How lwdctl does it.
        reference: How the library code does it.
        seconds: Median time of one repetition.
        reference_seconds: Median time of one repetition of the reference.
        speedup: Reference time over lwdctl's; above 1 lwdctl is faster.
        rounds: Repetitions of each.
    """

    name: str
    implementation: str
    reference: str
    seconds: float
    reference_seconds: float
    speedup: float
    rounds: int


def run_all(device: torch.device, rounds: int) -> Iterator[Comparison]:
    """Run the benchmarks one after the other; there are `COUNT`."""
    yield decode(device, rounds)
    yield step(device, rounds)
    for cache in ("ram", "none"):
        yield draw(cache, rounds)


COUNT = 4


def compare(
    name: str, implementation: tuple[str, Work], reference: tuple[str, Work], rounds: int
) -> Comparison:
    """Time two titled implementations in alternation, after one warm-up of each."""
    (title, ours), (reference_title, theirs) = implementation, reference
    times = [(_time(ours), _time(theirs)) for _ in range(rounds + 1)][1:]
    seconds, reference_seconds = (median(side) for side in zip(*times, strict=True))
    speedup = reference_seconds / seconds
    return Comparison(name, title, reference_title, seconds, reference_seconds, speedup, rounds)


def decode(device: torch.device, rounds: int) -> Comparison:
    """Decode 32 latents: one batch against hypnettorch's list of tensors per sample."""
    decoder = PolicyDecoder(METAWORLD, LATENT, (50, 50)).to(device)
    latents = torch.randn(NUM_ENVS, LATENT, device=device)

    def batched() -> None:
        with torch.inference_mode():
            generated.unpack(decoder(latents), METAWORLD)
        _synchronize(device)

    def per_sample() -> None:
        with torch.inference_mode():
            for row in latents:
                decoder.network(cond_input=row.unsqueeze(0))
        _synchronize(device)

    return compare(
        f"decode {NUM_ENVS} latents (xs)",
        ("batched, flattened", batched),
        ("hypnettorch HMLP, one sample at a time", per_sample),
        rounds,
    )


def step(device: torch.device, rounds: int) -> Comparison:
    """Run 32 policies for 20 steps: batched products against hypnettorch's MLP per environment."""
    decoder = PolicyDecoder(METAWORLD, LATENT, (50, 50)).to(device)
    weights = decoder(torch.randn(NUM_ENVS, LATENT, device=device)).detach()
    layers = generated.unpack(weights, METAWORLD)
    network = MLP(n_in=39, n_out=4, hidden_layers=[256, 256], no_weights=True, verbose=False)
    per_env = [hypnettorch_weights(row) for row in weights]
    observations = torch.randn(NUM_ENVS, 1, 39, device=device)

    def batched() -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                generated.run(layers, observations)
        _synchronize(device)

    def one_by_one() -> None:
        with torch.inference_mode():
            for _, env in itertools.product(range(STEPS), range(NUM_ENVS)):
                network(observations[env], weights=per_env[env])
        _synchronize(device)

    return compare(
        f"step {NUM_ENVS} policies {STEPS} times (256 x 256)",
        ("one batched product", batched),
        ("hypnettorch MLP, one environment at a time", one_by_one),
        rounds,
    )


def draw(cache: str, rounds: int) -> Comparison:
    """Draw a batch of 64 snippets of 64 steps: the loader against zarr slices of every snippet."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "random.zarr"
        store = _random_store(path)
        loader = SnippetBatches(
            store, ("state",), WindowRule(SNIPPET_LENGTH), split="all", seed=0, cache=cache
        )
        state = zarr.open_array(str(path), path="observation/state", mode="r")
        action = zarr.open_array(str(path), path="action", mode="r")
        rng = np.random.default_rng(0)
        numbers = itertools.count()

        def slices() -> None:
            last = EPISODES * EPISODE_STEPS - SNIPPET_LENGTH
            for start in rng.integers(last, size=BATCH):
                _ = state[start : start + SNIPPET_LENGTH], action[start : start + SNIPPET_LENGTH]

        return compare(
            f"draw {BATCH} snippets of {SNIPPET_LENGTH} steps ({cache})",
            (f"block shuffle, cache {cache}", lambda: loader.batch(next(numbers), BATCH)),
            ("zarr, slices of every snippet", slices),
            rounds,
        )


def hypnettorch_weights(weights: Tensor) -> list[Tensor]:
    """Cut one weight vector (weight,) into hypnettorch's list of tensors."""
    sizes = [torch.Size(shape).numel() for shape in METAWORLD.parameter_shapes]
    parts = torch.split(weights, sizes)
    return [p.view(s) for p, s in zip(parts, METAWORLD.parameter_shapes, strict=True)]


def _random_store(path: Path) -> SnippetStore:
    spec = SourceSpec(
        observations=(ObservationSpec("state", 39),),
        action=ActionSpec(4, "delta", "normalized", (-1.0,) * 4, (1.0,) * 4),
        env=EnvSpec("", ("random",)),
        labels=("",),
        source_format="random",
    )
    rng = np.random.default_rng(0)
    writer = SnippetWriter(path, spec)
    for number in range(EPISODES):
        rows = rng.normal(size=(EPISODE_STEPS, 43)).astype(np.float32)
        observations = {"state": rows[:, :39]}
        writer.append(
            Episode(f"demo_{number}", observations, rows[:, 39:], task="random", split="train")
        )
    writer.close()
    return SnippetStore.written_by(writer)


def _time(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
