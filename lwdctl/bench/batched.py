"""The batched decoder, policies and snippet loader beside the library code that they replace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zarr
from hypnettorch.mnets import MLP
from torch import Tensor

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.bench.comparisons import Comparison, compare
from lwdctl.bench.data import STEPS as EPISODE_STEPS
from lwdctl.bench.data import write_random_snippets
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.models import generated
from lwdctl.models.generated import PolicyDecoder, PolicyShape

ROUNDS = 20
NUM_ENVS = 32
LATENT = 256
STEPS = 20
METAWORLD = PolicyShape(39, (256, 256), 4)

EPISODES = 200
SNIPPET_LENGTH = 64
BATCH = 64


def decode(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Decode 32 latents: one batch against hypnettorch's list of tensors per sample."""
    decoder = PolicyDecoder(METAWORLD, LATENT, (50, 50)).to(device)
    latents = torch.randn(NUM_ENVS, LATENT, device=device)

    def batched() -> None:
        with torch.inference_mode():
            generated.unpack(decoder(latents), METAWORLD)

    def per_sample() -> None:
        with torch.inference_mode():
            for row in latents:
                decoder.network(cond_input=row.unsqueeze(0))

    comparison = Comparison(
        f"decode {NUM_ENVS} latents (xs)",
        "batched, flattened",
        "hypnettorch HMLP, one sample at a time",
        "ms",
    )
    yield compare(comparison, batched, per_sample, rounds or ROUNDS, device)


def step(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
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

    def one_by_one() -> None:
        with torch.inference_mode():
            for _, env in itertools.product(range(STEPS), range(NUM_ENVS)):
                network(observations[env], weights=per_env[env])

    comparison = Comparison(
        f"step {NUM_ENVS} policies {STEPS} times (256 x 256)",
        "one batched product",
        "hypnettorch MLP, one environment at a time",
        "ms",
    )
    yield compare(comparison, batched, one_by_one, rounds or ROUNDS, device)


def draw(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Draw a batch of 64 snippets of 64 steps: the loader against zarr slices of every snippet."""
    del device
    with TemporaryDirectory() as folder:
        path = Path(folder) / "random.zarr"
        writer = write_random_snippets(path, EPISODES)
        writer.close()
        store = SnippetStore.written_by(writer)
        state = zarr.open_array(str(path), path="observation/state", mode="r")
        action = zarr.open_array(str(path), path="action", mode="r")
        rng = np.random.default_rng(0)

        def slices() -> None:
            last = EPISODES * EPISODE_STEPS - SNIPPET_LENGTH
            for start in rng.integers(last, size=BATCH):
                _ = state[start : start + SNIPPET_LENGTH], action[start : start + SNIPPET_LENGTH]

        for cache in ("ram", "none"):
            loader = SnippetBatches(
                store, ("state",), WindowRule(SNIPPET_LENGTH), split="all", seed=0, cache=cache
            )
            batches = map(partial(loader.batch, batch_size=BATCH), itertools.count())
            comparison = Comparison(
                f"draw {BATCH} snippets of {SNIPPET_LENGTH} steps ({cache})",
                f"block shuffle, cache {cache}",
                "zarr, slices of every snippet",
                "ms",
            )
            yield compare(comparison, partial(next, batches), slices, rounds or ROUNDS)


def hypnettorch_weights(weights: Tensor) -> list[Tensor]:
    """Cut one weight vector (weight,) into hypnettorch's list of tensors."""
    sizes = [torch.Size(shape).numel() for shape in METAWORLD.parameter_shapes]
    parts = torch.split(weights, sizes)
    return [p.view(s) for p, s in zip(parts, METAWORLD.parameter_shapes, strict=True)]
