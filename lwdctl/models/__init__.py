"""Networks, losses and samplers, and the files that they are stored in."""

from __future__ import annotations

from lwdctl.core.registry import Registry, Row

DENOISERS = Registry(
    "denoiser",
    {
        "mlp": Row("lwdctl.models.denoiser:ResidualMlp", "Residual MLP on the flat latent."),
        "unet": Row("lwdctl.models.unet:LatentUnet", "1-D U-Net of Diffusion Policy."),
        "transformer": Row(
            "lwdctl.models.transformer:LatentTransformer", "Transformer of Diffusion Policy."
        ),
    },
    entry_points="lwdctl.denoisers",
)
"""Adding a denoiser is one module and one row, or an entry point of another package."""
