"""Decode and run many generated policies: one batched product against hypnettorch's own path."""

from __future__ import annotations

import torch
from hypnettorch.mnets import MLP
from torch import Tensor

from lwdctl.bench.timing import Comparison, compare
from lwdctl.models import generated
from lwdctl.models.generated import PolicyShape
from lwdctl.models.hypernetwork import PolicyDecoder

SLOTS = 32
LATENT = 256
METAWORLD = PolicyShape(39, (256, 256), 4)


def decode(device: torch.device, rounds: int) -> Comparison:
    """Decode 32 latents: flattened batch against a list of tensors per sample."""
    decoder = PolicyDecoder(METAWORLD, LATENT, (50, 50)).to(device)
    latents = torch.randn(SLOTS, LATENT, device=device)

    def batched() -> None:
        with torch.inference_mode():
            generated.unpack(decoder(latents), METAWORLD)
        _wait(device)

    def per_sample() -> None:
        with torch.inference_mode():
            for row in latents:
                decoder.network(cond_input=row.unsqueeze(0))
        _wait(device)

    return compare(
        f"decode {SLOTS} latents (xs)",
        ("batched, flattened", batched),
        ("hypnettorch HMLP, one sample at a time", per_sample),
        rounds,
    )


def step(device: torch.device, rounds: int) -> Comparison:
    """Run 32 policies for 20 steps: one batched product against hypnettorch's MLP per slot."""
    decoder = PolicyDecoder(METAWORLD, LATENT, (50, 50)).to(device)
    weights = decoder(torch.randn(SLOTS, LATENT, device=device)).detach()
    layers = generated.unpack(weights, METAWORLD)
    network = MLP(n_in=39, n_out=4, hidden_layers=[256, 256], no_weights=True, verbose=False)
    per_slot = [_pieces(row) for row in weights]
    observations = torch.randn(SLOTS, 1, 39, device=device)

    def batched() -> None:
        with torch.inference_mode():
            for _ in range(20):
                generated.run(layers, observations)
        _wait(device)

    def one_by_one() -> None:
        with torch.inference_mode():
            for _ in range(20):
                for slot in range(SLOTS):
                    network(observations[slot], weights=per_slot[slot])
        _wait(device)

    return compare(
        f"step {SLOTS} policies 20 times (256 x 256)",
        ("one batched product", batched),
        ("hypnettorch MLP, one slot at a time", one_by_one),
        rounds,
    )


def _pieces(weights: Tensor) -> list[Tensor]:
    """Cut one weight vector into hypnettorch's list of tensors."""
    sizes = [torch.Size(shape).numel() for shape in METAWORLD.parameter_shapes]
    parts = torch.split(weights, sizes)
    return [p.view(s) for p, s in zip(parts, METAWORLD.parameter_shapes, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
