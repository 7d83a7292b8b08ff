"""DDIM without noise (Song et al. 2021, equation 12 with sigma 0), for tensors and NumPy arrays.

This module imports no torch: the diffusion models sample with it, and so does the runtime of an
exported policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def coefficients(alpha_cumprod: float) -> tuple[float, float]:
    """Return the factor of the clean sample and the standard deviation of the noise.

    `alpha_cumprod` is the fraction of signal in the variance, as in diffusers' `alphas_cumprod`.
    """
    return alpha_cumprod**0.5, (1.0 - alpha_cumprod) ** 0.5


def clean_sample(predicted: Any, noisy: Any, prediction: str, signal: float, std: float) -> Any:
    """Return the clean sample that a network's prediction implies, each (batch, latent).

    `prediction` is what the network predicts: `"sample"`, `"epsilon"` or `"v_prediction"`. The
    noisy sample is `signal` times the clean one plus noise of the standard deviation `std`.
    """
    if prediction == "sample":
        return predicted
    if prediction == "epsilon":
        return (noisy - std * predicted) / signal
    return signal * noisy - std * predicted


def sample(
    predict_clean: Callable[[Any, int], Any],
    noise: Any,
    timesteps: Sequence[int],
    alphas_cumprod: Sequence[float],
    clip: Callable[[Any], Any] | None = None,
) -> Any:
    """Denoise a batch.

    Clipping is that of Diffusion Policy: the clean sample is clipped, the direction of the noise
    comes from the unclipped one.

    Args:
        predict_clean: Returns the clean sample (batch, latent) that the network predicts for a
            noisy one (batch, latent) at a timestep.
        noise: What to start from (batch, latent).
        timesteps: Inference timesteps from the noisiest to the cleanest.
        alphas_cumprod: (timestep,), fraction of signal in the variance after each training
            timestep.
        clip: Clips a clean sample; None leaves it as it is.

    Returns:
        (batch, latent), normalized.
    """
    latent = noise
    # After the cleanest step only signal is left.
    following = [float(alphas_cumprod[step]) for step in timesteps[1:]] + [1.0]
    for step, next_alpha in zip(timesteps, following, strict=True):
        clean = predict_clean(latent, step)
        signal, std = coefficients(float(alphas_cumprod[step]))
        direction = (latent - signal * clean) / std
        next_signal, next_std = coefficients(next_alpha)
        if clip is not None:
            clean = clip(clean)
        latent = next_signal * clean + next_std * direction
    return latent
