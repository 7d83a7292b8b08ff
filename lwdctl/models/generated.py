"""Generated policies: the hypernetwork that outputs their weights, and how they are run in batches.

The decoder is hypnettorch's MLP hypernetwork (paper section 3.2; sizes from its appendix).

The policy of the paper has two hidden layers of 256 with ReLU (section 3.2). A weight vector holds,
layer by layer, the matrix (out, in) row by row and then the bias (out,), as in `torch.nn.Linear`.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lwdctl.models.hypernetwork import HMLP

DECODER_SIZES: dict[str, tuple[int, ...]] = {
    "xs": (50, 50),
    "s": (100, 100),
    "m": (200, 200),
    "l": (400, 400),
}
"""Hidden layers of the hypernetwork by the paper's size names."""


@dataclass(frozen=True)
class PolicyShape:
    """Sizes of a generated MLP policy: input components, hidden widths, output components."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of every layer."""
        sizes = (self.inputs, *self.hidden, self.outputs)
        return tuple(itertools.pairwise(sizes))

    @property
    def parameter_shapes(self) -> list[list[int]]:
        """Shapes in weight-vector order: `[out, in], [out]` per layer."""
        return [shape for width, out in self.layers for shape in ([out, width], [out])]

    @property
    def weight_count(self) -> int:
        """Length of the weight vector."""
        return sum((width + 1) * out for width, out in self.layers)

    @property
    def flops(self) -> int:
        """FLOPs of one forward pass; one multiply-add counts as two."""
        return sum(2 * width * out for width, out in self.layers)


Layer = tuple[Tensor, Tensor]


def unpack(weights: Tensor, shape: PolicyShape) -> list[Layer]:
    """Cut weight vectors (batch, weight) into layers.

    Returns:
        Per layer the transposed matrix (batch, in, out) and the bias (batch, 1, out), in the form
        that `torch.baddbmm` takes. They are views, not copies.
    """
    sizes = [part for i, o in shape.layers for part in (i * o, o)]
    pieces = torch.split(weights, sizes, dim=1)
    layers = []
    for number, (width, out) in enumerate(shape.layers):
        matrix = pieces[2 * number].view(-1, out, width).transpose(1, 2)
        layers.append((matrix, pieces[2 * number + 1].unsqueeze(1)))
    return layers


def run(layers: list[Layer], inputs: Tensor) -> Tensor:
    """Run every unpacked policy on its own inputs (batch, time, input): (batch, time, output)."""
    hidden = inputs
    for number, (matrix, bias) in enumerate(layers):
        hidden = torch.baddbmm(bias, hidden, matrix)
        if number + 1 < len(layers):
            hidden = torch.relu(hidden)
    return hidden


class PolicyDecoder(nn.Module):
    """Full hypernetwork with the hidden `layers`, from a latent to the weights of one policy."""

    def __init__(self, shape: PolicyShape, latent_size: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.network = HMLP(
            shape.parameter_shapes,
            uncond_in_size=0,
            cond_in_size=latent_size,
            layers=list(layers),
            num_cond_embs=0,
            no_cond_weights=True,
            verbose=False,
        )
        # Otherwise the generated weights are far too large for the first training steps.
        self.network.apply_hyperfan_init()

    def forward(self, latent: Tensor) -> Tensor:
        """Decode latents (batch, latent) to weight vectors (batch, weight), in single precision."""
        device = latent.device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            return cast(Tensor, self.network(cond_input=latent, ret_format="flattened"))
