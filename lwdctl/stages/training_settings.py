"""What both training stages let the user choose about optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwdctl.core.config import option

if TYPE_CHECKING:
    from lwdctl.training.loop import LoopSettings


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that every training stage has."""

    learning_rate: float = option(1e-3, "Peak learning rate of Adam", minimum=0)
    warmup: int = option(100, "Updates of linear warm-up", minimum=0)
    clip_norm: float = option(1.0, "Largest gradient norm; 0 for no clipping", minimum=0)
    ema_decay: float = option(0.999, "Largest decay of the averaged weights", minimum=0, maximum=1)
    updates: int = option(8000, "Optimizer updates", minimum=1)
    time_limit: float = option(
        0.0, "Minutes of training after which to finish; 0 for none", minimum=0
    )
    seed: int = option(0, "Training seed", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")


def loop_settings(
    config: TrainingConfig, batch_size: int, weight_decay: float = 0.0
) -> LoopSettings:
    """Turn a stage's configuration into the loop's settings."""
    from lwdctl.training.loop import Budget, LoopSettings

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
