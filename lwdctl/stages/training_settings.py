"""What both training stages let the user choose about optimization."""

from __future__ import annotations

from lwdctl.configs import TrainingConfig
from lwdctl.training.loop import Budget, LoopSettings


def loop_settings(
    config: TrainingConfig, batch_size: int, weight_decay: float = 0.0
) -> LoopSettings:
    """Turn a stage's configuration into the loop's settings."""
    return LoopSettings(
        budget=Budget(config.updates, config.time_limit or None),
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        weight_decay=weight_decay,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        seed=config.seed,
        batch_size=batch_size,
    )
