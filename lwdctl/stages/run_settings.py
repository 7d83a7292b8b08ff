"""What every stage that runs policies lets the user choose about running them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lwdctl.core.config import option


@dataclass(frozen=True)
class RunConfig:
    """Settings that every stage with rollouts has."""

    sampler: str = option("ddim", "Denoising sampler", choices=("ddpm", "ddim", "dpm-solver"))
    num_inference_steps: int = option(10, "Denoising steps per query", minimum=1)
    num_envs: int = option(32, "Episodes stepped as one batch", minimum=1)
    workers: int = option(
        -1, "Simulator processes; 0 runs in this one, -1 one per core", minimum=-1
    )
    timeout: float = option(120.0, "Seconds to wait for a simulator before it counts as hung")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    @property
    def processes(self) -> int:
        """Simulator processes, 0 for none."""
        return self.workers if self.workers >= 0 else len(os.sched_getaffinity(0))
