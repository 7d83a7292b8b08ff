"""The decoder: hypnettorch's MLP hypernetwork, latent to policy weights.

This is the only model that uses hypnettorch (paper section 3.2; sizes from its appendix).
"""

from __future__ import annotations

from typing import cast

from hypnettorch.hnets import HMLP
from torch import Tensor, nn

from lwdctl.models.generated import PolicyShape

DECODER_SIZES: dict[str, tuple[int, ...]] = {
    "xs": (50, 50),
    "s": (100, 100),
    "m": (200, 200),
    "l": (400, 400),
}
"""Hidden layers of the hypernetwork by the paper's size names."""


class PolicyDecoder(nn.Module):
    """Full hypernetwork from a latent to the weights of one policy.

    Args:
        shape: Sizes of the generated policy.
        latent_size: Components of the latent.
        layers: Hidden layers of the hypernetwork.
    """

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
        """Decode latents (batch, latent) to weight vectors (batch, weight)."""
        return cast(Tensor, self.network(cond_input=latent, ret_format="flattened"))

    @property
    def flops(self) -> int:
        """FLOPs of decoding one latent; one multiply-add counts as two."""
        return sum(2 * p.numel() for p in self.network.parameters() if p.dim() > 1)
