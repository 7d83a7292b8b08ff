"""DDIM without noise, in NumPy (Song et al. 2021, equation 12 with sigma 0).

The same map as the first-order DPM-Solver++ that `models.diffusion` samples with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lwdctl.core.records import FloatArray

Denoise = Callable[[FloatArray, int], FloatArray]
"""(noisy latent (1, latent), step) to the prediction (1, latent)."""


def sample(
    denoise: Denoise,
    noise: FloatArray,
    visited: Sequence[int],
    shares: FloatArray,
    prediction: str,
) -> FloatArray:
    """Denoise one latent.

    Args:
        denoise: The network.
        noise: Standard normal (1, latent).
        visited: Denoising steps from the noisiest to the cleanest.
        shares: (step,), the share of signal in the variance after each training step
            (alpha-bar).
        prediction: What the network predicts: `"sample"`, `"epsilon"` or `"v_prediction"`.

    Returns:
        (1, latent), standardized.
    """
    latent = noise
    # Beyond the cleanest step there is signal alone.
    following = [float(shares[step]) for step in visited[1:]] + [1.0]
    for step, next_share in zip(visited, following, strict=True):
        signal, spread = _parts(float(shares[step]))
        next_signal, next_spread = _parts(next_share)
        clean = _clean(denoise(latent, step), latent, signal, spread, prediction)
        direction = (latent - signal * clean) / spread
        latent = (next_signal * clean + next_spread * direction).astype(np.float32)
    return latent


def _parts(share: float) -> tuple[float, float]:
    return share**0.5, (1.0 - share) ** 0.5


def _clean(
    predicted: FloatArray, latent: FloatArray, signal: float, spread: float, prediction: str
) -> FloatArray:
    """Return the clean latent that a prediction stands for."""
    clean = predicted
    if prediction == "epsilon":
        clean = ((latent - spread * predicted) / signal).astype(np.float32)
    if prediction == "v_prediction":
        clean = (signal * latent - spread * predicted).astype(np.float32)
    return clean
