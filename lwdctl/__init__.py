"""Latent Weight Diffusion: sample the weights of small closed-loop policies.

`lwdctl` turns demonstrations into a generator of neural policies: a VAE whose
decoder is a hypernetwork, and a diffusion model over its latents (LWD, later
published as WARPD). Each stage writes one versioned artifact that the next
stage reads; see `ARCHITECTURE.md`.
"""

__version__ = "0.1.0"
