"""What training is compared with: the loop of commit 123f3ed, and hypnettorch's documented path.

The loop is kept as it was: batch indices from NumPy and their upload in every training step, noise
drawn on the CPU and copied to the device, a learning rate that Python sets, an EMA that reads its
step count back. On a CPU it gives the weights that lwdctl's own loop gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from hypnettorch.hnets import HMLP
from hypnettorch.mnets import MLP
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.seeding import derive_seed
from lwdctl.core.seeding import generator as numpy_generator
from lwdctl.data.batches import SnippetBatch, SnippetBatches
from lwdctl.models.chunks import ActionDiffusion
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae, Snippets, sample_posterior, vae_terms
from lwdctl.training.objectives import LatentTable
from lwdctl.training.update import LoopSettings, learning_rate_factor

Loss = Callable[[Any, int, torch.Generator], Tensor]
"""The loss of a model at a training step, a scalar; the generator is one of the CPU."""


class ReferenceLoop:
    """The training loop of commit 123f3ed, without checkpoints and progress.

    Args:
        model: What to train, on its device.
        loss: What to minimize.
        settings: How to train; weights do not decay.
    """

    def __init__(self, model: nn.Module, loss: Loss, settings: LoopSettings) -> None:
        self.model, self._loss, self._settings = model, loss, settings
        decay = settings.ema_decay

        def follow(average: Any, current: Any, count: Tensor | int) -> None:
            made = float(count)
            weight = 1.0 - min(decay, (1.0 + made) / (10.0 + made))
            torch._foreach_lerp_(list(average), list(current), weight)

        self.average = AveragedModel(model, multi_avg_fn=follow, use_buffers=False)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=settings.betas, weight_decay=0.0, fused=True
        )
        self._generator = torch.Generator()
        self._number = 0

    def step(self) -> None:
        """Make one training step."""
        number, settings = self._number, self._settings
        factor = learning_rate_factor(number, settings.updates, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self._generator.manual_seed(derive_seed("update", settings.seed, number))
        torch.manual_seed(derive_seed("dropout", settings.seed, number))
        loss = self._loss(self.model, number, self._generator)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm, foreach=True)
        self._optimizer.step()
        self.average.update_parameters(self.model)
        self._number += 1
        if self._number % settings.log_every == 0:
            loss.item()


class SnippetCutter:
    """Batches of snippets, cut by the host in every training step.

    Args:
        store: Snippet store.
        keys: Observation keys to concatenate.
        batches: Which snippets are drawn; only its order is used.
        size: Snippets per batch.
    """

    def __init__(
        self, store: SnippetStore, keys: tuple[str, ...], batches: SnippetBatches, size: int
    ) -> None:
        steps = [store.features(keys, 0, store.steps), store.read("action", 0, store.steps)]
        self._table = torch.from_numpy(np.concatenate(steps, axis=1)).to(batches.device)
        self._observation = sum(store.spec.sizes(keys))
        self._episodes, self._batches, self._size = store.episodes, batches, size

    def cut(self, update: int) -> SnippetBatch:
        """Return the batch of a training step."""
        table, device = self._episodes, self._table.device
        episodes, offsets = self._batches.drawn(update, self._size)
        within = offsets[:, None] + np.arange(self._batches.rule.length)
        last = table.length[episodes][:, None] - 1
        index = table.start[episodes][:, None] + np.clip(within, 0, last)
        rows = self._table[torch.from_numpy(index).to(device)]
        real = (within >= 0) & (within <= last)
        mask = torch.from_numpy(real.astype(np.float32)).to(device)
        remaining = table.length[episodes] - offsets
        start, task, label, left = (
            torch.from_numpy(column).long().to(device)
            for column in (offsets, table.task[episodes], table.label[episodes], remaining)
        )
        observations, actions = rows[..., : self._observation], rows[..., self._observation :]
        return SnippetBatch(observations, actions, mask, start, task, label, left)


def vae_loss(cutter: SnippetCutter, beta_kl: float, loss_steps: int | None) -> Loss:
    """Return the loss of the policy VAE on batches that the host cuts."""

    def loss(model: PolicyVae, update: int, generator: torch.Generator) -> Tensor:
        batch = cutter.cut(update)
        mean, log_variance = model.encode(batch)
        latent = mean + torch.exp(0.5 * log_variance) * _normal(mean, generator)
        weights = model.decoder(latent)
        observations, actions, mask = batch.observations, batch.actions, batch.mask
        length = mask.shape[1]
        elapsed = (torch.arange(length, device=mask.device) / length).expand_as(mask)
        if loss_steps is not None and loss_steps < length:
            scores = torch.rand(mask.shape, generator=generator).to(mask.device)
            drawn = torch.topk(scores + mask, loss_steps, dim=1, sorted=False).indices
            observations, actions = _take(observations, drawn), _take(actions, drawn)
            elapsed, mask = elapsed.gather(1, drawn), mask.gather(1, drawn)
        outputs = _run(model, weights, model.policy_inputs(observations, elapsed))
        target = model.action.normalize(actions - model.spec.reference(observations))
        terms = vae_terms(outputs, target, mask, mean, log_variance)
        return terms["reconstruction"] + beta_kl * terms["kl"]

    return loss


def latent_loss(table: LatentTable, batch_size: int, seed: int) -> Loss:
    """Return the denoising loss on latents whose rows NumPy draws in every training step."""

    def loss(model: LatentDiffusion, update: int, generator: torch.Generator) -> Tensor:
        rng = numpy_generator("latent-batch", seed, update)
        rows = torch.from_numpy(rng.integers(len(table.mean), size=batch_size))
        rows = rows.to(table.mean.device)
        mean = table.mean[rows]
        latent = mean + table.std[rows] * _normal(mean, generator)
        condition = model.condition(table.state[rows], table.task[rows], table.label[rows])
        return _denoising(model, latent, condition, generator)

    return loss


def chunk_loss(cutter: SnippetCutter) -> Loss:
    """Return the denoising loss of Diffusion Policy on chunks that the host cuts."""

    def loss(model: ActionDiffusion, update: int, generator: torch.Generator) -> Tensor:
        batch = cutter.cut(update)
        seen = batch.observations[:, : model.spec.history]
        chunk = batch.actions - model.spec.reference(seen[:, -1:])
        condition = model.diffusion.condition(seen.flatten(1), batch.task, batch.label)
        return _denoising(model.diffusion, chunk.flatten(1), condition, generator)

    return loss


class HypnettorchVae(nn.Module):
    """A policy VAE that decodes and runs one sample at a time, as hypnettorch documents it.

    Its hypernetwork returns a list of tensors per sample, and its main network takes that list.

    Args:
        vae: The VAE whose weights to begin with; it is copied.
    """

    def __init__(self, vae: PolicyVae) -> None:
        super().__init__()
        shape = vae.spec.policy_shape
        self.hypernetwork = HMLP(
            shape.parameter_shapes,
            uncond_in_size=0,
            cond_in_size=vae.spec.latent_size,
            layers=list(vae.spec.decoder_layers),
            num_cond_embs=0,
            no_cond_weights=True,
            verbose=False,
        )
        with torch.no_grad():
            pairs = zip(self.hypernetwork.parameters(), vae.decoder.parameters(), strict=True)
            for own, other in pairs:
                own.copy_(other)
        self.vae = copy.deepcopy(vae)
        del self.vae.decoder
        self.hypernetwork.to(vae.action.mean.device)
        self._policy = MLP(
            n_in=shape.inputs,
            n_out=shape.outputs,
            hidden_layers=list(shape.hidden),
            no_weights=True,
            verbose=False,
        )

    def terms(
        self, batch: Snippets, task: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return both terms of the loss on all steps; see `PolicyVae.terms`."""
        del task, label
        mean, log_variance = self.vae.encode(batch)
        latent = sample_posterior(mean, log_variance, generator)
        length = batch.mask.shape[1]
        elapsed = torch.arange(length, device=mean.device) / self.vae.spec.snippet_length
        inputs = self.vae.policy_inputs(batch.observations, elapsed.expand_as(batch.mask))
        outputs = []
        for place in range(len(latent)):
            weights = self.hypernetwork(cond_input=latent[place : place + 1])
            outputs.append(self._policy(inputs[place], weights=weights))
        target = self.vae.target(batch)
        return vae_terms(torch.stack(outputs), target, batch.mask, mean, log_variance)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device)


def _take(values: Tensor, steps: Tensor) -> Tensor:
    return values.gather(1, steps.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _run(model: PolicyVae, weights: Tensor, hidden: Tensor) -> Tensor:
    layers = model.spec.policy_shape.layers
    pieces = torch.split(weights, [part for i, o in layers for part in (i * o, o)], dim=1)
    for number, (width, out) in enumerate(layers):
        matrix = pieces[2 * number].view(-1, out, width).transpose(1, 2)
        hidden = torch.baddbmm(pieces[2 * number + 1].unsqueeze(1), hidden, matrix)
        if number + 1 < len(layers):
            hidden = torch.relu(hidden)
    return hidden


def _denoising(
    model: LatentDiffusion, latent: Tensor, condition: Tensor, generator: torch.Generator
) -> Tensor:
    clean = model.latent.normalize(latent)
    noise = _normal(clean, generator)
    last = model.spec.num_train_timesteps
    step = torch.randint(last, (len(clean),), generator=generator).to(clean.device)
    alphas = model.alphas_cumprod.to(clean.device)
    signal, std = (alphas**0.5)[step].unsqueeze(1), ((1.0 - alphas) ** 0.5)[step].unsqueeze(1)
    noisy = signal * clean + std * noise
    target = clean if model.spec.prediction == "sample" else noise
    return nn.functional.mse_loss(cast(Tensor, model.denoiser(noisy, step, condition)), target)
