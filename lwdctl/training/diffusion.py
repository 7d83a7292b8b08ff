"""What the latent diffusion model's training minimizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lwdctl.artifacts.latents import LatentStore
from lwdctl.core.seeding import generator as numpy_generator
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.noise import normal_like

VALIDATION_ROWS = 1024


@dataclass(frozen=True)
class LatentTable:
    """Encoded snippets on the training device.

    Attributes:
        mean: (snippet, latent).
        deviation: (snippet, latent), posterior standard deviation.
        state: (snippet, obs), observation at the snippet's first step.
        task: (snippet,).
        label: (snippet,).
    """

    mean: Tensor
    deviation: Tensor
    state: Tensor
    task: Tensor
    label: Tensor

    @classmethod
    def read(
        cls,
        store: LatentStore,
        rows: np.ndarray[tuple[int], np.dtype[np.int64]],
        device: torch.device,
    ) -> LatentTable:
        """Load the given rows of a latent store."""

        def put(values: object) -> Tensor:
            return torch.from_numpy(np.asarray(values)[rows]).to(device)

        return cls(
            mean=put(store.mean).float(),
            deviation=torch.exp(0.5 * put(store.log_variance).float()),
            state=put(store.state).float(),
            task=put(store.task).long(),
            label=put(store.label).long(),
        )

    def __len__(self) -> int:
        """Return the number of snippets."""
        return len(self.mean)


@dataclass
class DiffusionObjective:
    """Denoising loss on latents drawn afresh from their posteriors.

    Attributes:
        table: Encoded snippets of the training split.
        held_out: Encoded snippets of the validation split, or None.
        batch_size: Snippets per update.
        seed: Seed of the visit order.
        state_noise: Deviation of noise on the normalized state condition.
    """

    table: LatentTable
    held_out: LatentTable | None
    batch_size: int
    seed: int
    state_noise: float

    def loss(
        self, model: nn.Module, update: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of one update."""
        rng = numpy_generator("latent-batch", self.seed, update)
        rows = torch.from_numpy(rng.integers(len(self.table), size=self.batch_size))
        value = self._loss(model, self.table, rows, generator, self.state_noise)
        return value, {"denoising": value.detach()}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Denoise a fixed draw of held-out latents."""
        if self.held_out is None:
            return {}
        rng = numpy_generator("latent-validation", self.seed)
        rows = torch.from_numpy(rng.integers(len(self.held_out), size=VALIDATION_ROWS))
        generator = torch.Generator().manual_seed(0)
        value = self._loss(model, self.held_out, rows, generator, 0.0)
        return {"held_out_denoising": float(value)}

    def _loss(
        self,
        model: nn.Module,
        table: LatentTable,
        rows: Tensor,
        generator: torch.Generator,
        state_noise: float,
    ) -> Tensor:
        assert isinstance(model, LatentDiffusion)
        rows = rows.to(table.mean.device)
        mean = table.mean[rows]
        latent = mean + table.deviation[rows] * normal_like(mean, generator)
        state = table.state[rows]
        if state_noise and model.spec.state_size:
            state = state + state_noise * model.state.scale * normal_like(state, generator)
        condition = model.condition(state, table.task[rows], table.label[rows])
        return model.loss(latent, condition, generator)
