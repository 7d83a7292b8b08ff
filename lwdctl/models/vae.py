"""The variational autoencoder over policies, its encoder and its loss (paper section 3.2).

The loss that is minimized is `reconstruction + beta_kl * kl`. The reductions are part of its
definition, because `beta_kl` means nothing without them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from msgspec import Meta
from torch import Tensor, nn

from lwdctl.artifacts.artifact import Artifact
from lwdctl.models import generated
from lwdctl.models.dynamics import Dynamics
from lwdctl.models.files import Layers, PolicySpec, Size, check_custom, load_model
from lwdctl.models.generated import Layer, PolicyDecoder, PolicyShape
from lwdctl.models.normalizer import Normalizer, noisy_observations, normal_like

REDUCTION = (
    "reconstruction: mean over valid steps of the sum over action components;"
    " kl: sum over latent components of sigma^2 + mu^2 - 1 - log sigma^2 (twice the"
    " divergence, as the paper has it); both averaged over the batch"
)


@dataclass(frozen=True)
class VaeSpec(PolicySpec):
    """What is needed to rebuild a policy VAE; see `PolicySpec` too.

    Attributes:
        snippet_length: Steps per snippet.
        latent_size: Components of the latent.
        decoder_layers: Hidden layers of the hypernetwork.
        policy_hidden: Hidden layers of the generated policy.
        time_input: Whether the policy sees the fraction of its snippet that has elapsed.
        stride: Steps between the starts of neighboring snippets of an episode.
        starts: Where snippets start: `"anywhere"` in the episode or only at its `"first"` step.
        min_valid_fraction: Smallest fraction of a snippet that must be real steps; the rest is
            padding.
        architecture: `"mlp"`, or `"custom"` for an encoder that the caller brought.
    """

    snippet_length: Size
    latent_size: Size
    decoder_layers: Layers
    policy_hidden: Layers
    time_input: bool
    stride: Size = 1
    starts: Literal["anywhere", "first"] = "anywhere"
    min_valid_fraction: Annotated[float, Meta(ge=0, le=1)] = 1.0
    architecture: Literal["mlp", "custom"] = "mlp"

    @property
    def window(self) -> tuple[int, int, float, bool]:
        """Which snippets the model was trained on: the arguments of `data.windows.WindowRule`."""
        first_only = self.starts == "first"
        return self.snippet_length, self.stride, self.min_valid_fraction, first_only

    @property
    def policy_shape(self) -> PolicyShape:
        """Sizes of the generated policy."""
        return PolicyShape(
            self.observation_size + int(self.time_input), self.policy_hidden, self.action_size
        )


class Snippets(Protocol):
    """What models read of a batch of snippets, environment units; see `data.batches.SnippetBatch`.

    Attributes:
        observations: (batch, time, obs).
        actions: (batch, time, action).
        mask: (batch, time), 1.0 for real steps, 0.0 for padding.
        start: (batch,), first step within the episode, negative before it.
        left: (batch,), steps of the episode from the snippet's first one on.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor
    start: Tensor
    left: Tensor


class SnippetEncoder(nn.Module):
    """MLP from a flattened snippet to the posterior over latents: three hidden layers, two heads.

    Args:
        length: Snippet length in steps.
        step_size: Components per step (observation and action together).
        latent_size: Components of the latent.
        width: Width of the hidden layers.
        initial_log_variance: Initial bias of the log-variance head. With a small posterior
            variance, reconstruction is learned almost without noise at first.
    """

    def __init__(
        self,
        length: int,
        step_size: int,
        latent_size: int = 256,
        width: int = 512,
        initial_log_variance: float = -6.0,
    ) -> None:
        super().__init__()
        sizes = itertools.pairwise((length * step_size, width, width, width))
        layers = [part for i, o in sizes for part in (nn.Linear(i, o), nn.ReLU())]
        self.trunk = nn.Sequential(*layers)
        self.mean = nn.Linear(width, latent_size)
        self.log_variance = nn.Linear(width, latent_size)
        nn.init.normal_(self.log_variance.weight, std=1e-3)
        nn.init.constant_(self.log_variance.bias, initial_log_variance)

    def forward(self, steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (in [-20, 4]), each (batch, latent).

        Steps are (batch, time, obs + action), normalized. The mask (batch, time) is 1 for real
        steps; padded ones are set to zero.
        """
        hidden = self.trunk((steps * mask.unsqueeze(-1)).flatten(1))
        return self.mean(hidden), torch.clamp(self.log_variance(hidden), -20.0, 4.0)


def sample_posterior(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a latent (batch, latent) from each Gaussian posterior, differentiably."""
    return mean + torch.exp(0.5 * log_variance) * normal_like(mean, generator)


@dataclass(frozen=True)
class Focus:
    """Steps of demonstrations whose error counts more than that of others.

    Attributes:
        where: The `"first"` steps of a demonstration, or its `"last"` ones.
        steps: How many.
        weight: Weight of their squared error; others have 1.
    """

    where: Literal["first", "last"]
    steps: int
    weight: float

    def weights(self, batch: Snippets) -> Tensor:
        """Return the weight (batch, time) of every step."""
        place = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        if self.where == "first":
            near = place + batch.start.unsqueeze(1) < self.steps
        else:
            near = batch.left.unsqueeze(1) - place <= self.steps
        return 1.0 + (self.weight - 1.0) * (near & (batch.mask > 0))


def counted_steps(mask: Tensor, padding: str) -> Tensor:
    """Return which steps (batch, time) a loss counts: the real ones, or all if `"counted"`."""
    return torch.ones_like(mask) if padding == "counted" else mask


def vae_terms(
    predicted: Tensor,
    target: Tensor,
    mask: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return both terms of the VAE loss, unweighted scalars.

    Args:
        predicted: Normalized actions of the decoded policy or chunk (batch, time, action).
        target: Normalized actions of the demonstration (batch, time, action).
        mask: (batch, time), 1 for real steps.
        mean: Posterior mean (batch, latent).
        log_variance: Logarithm of the posterior variance (batch, latent).
        weights: (batch, time), factors of the steps' squared errors; None for 1.

    Returns:
        `reconstruction`: the squared error, summed over action components, averaged over valid
        steps and over the batch. `kl`: sigma^2 + mu^2 - 1 - log sigma^2 (twice the divergence, as
        the paper writes it), summed over latent components and averaged over the batch.
    """
    squared = (predicted - target).square().sum(-1) * mask
    if weights is not None:
        squared = squared * weights
    error = squared.sum(1) / mask.sum(1).clamp(min=1.0)
    kl = torch.sum(log_variance.exp() + mean.square() - 1.0 - log_variance, dim=1)
    return {"reconstruction": error.mean(), "kl": kl.mean()}


class PolicyVae(nn.Module):
    """Encoder, hypernetwork decoder and the normalizers that belong to them.

    Args:
        spec: Sizes, and which snippets the model is trained on.
        encoder: A module of your own in the place of `SnippetEncoder`: it maps normalized steps
            (batch, time, obs + action) and their mask (batch, time) to mean and log-variance,
            each (batch, latent). Goes with `spec.architecture == "custom"`.

    Attributes:
        dynamics: The model through which decoded policies are rolled out in training, or None.

    Raises:
        ConfigError: An encoder is missing or too many.
    """

    def __init__(self, spec: VaeSpec, encoder: nn.Module | None = None) -> None:
        super().__init__()
        check_custom(spec.architecture, encoder, "encoder")
        self.spec = spec
        self.observation = Normalizer(spec.observation_size)
        self.action = Normalizer(spec.action_size)
        step_size = spec.observation_size + spec.action_size
        self.encoder = encoder or SnippetEncoder(spec.snippet_length, step_size, spec.latent_size)
        self.decoder = PolicyDecoder(spec.policy_shape, spec.latent_size, spec.decoder_layers)
        self.dynamics: Dynamics | None = None

    @classmethod
    def load(cls, directory: Path, encoder: nn.Module | None = None) -> PolicyVae:
        """Load what `train_vae(...).save` wrote: EMA weights, on the CPU, for inference.

        Raises:
            ConfigError: The module that it was trained with is missing, or there was none.
            ArtifactError: The files are missing, damaged, or not those of a policy VAE.
        """
        spec = VaeSpec.load(directory)
        return load_model(lambda: cls(spec, encoder), directory)

    def encode(self, batch: Snippets) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and log-variance, each (batch, latent)."""
        steps = torch.cat([self.observation.normalize(batch.observations), self.target(batch)], -1)
        mean, log_variance = self.encoder(steps, batch.mask)
        return mean.float(), log_variance.float()

    def target(self, batch: Snippets) -> Tensor:
        """Return the normalized actions (batch, time, action) that the policy should output."""
        return self.action.normalize(batch.actions - self.spec.reference(batch.observations))

    def policy_inputs(self, observations: Tensor, elapsed: Tensor) -> Tensor:
        """Return what the generated policy sees (batch, time, input).

        Observations are (batch, time, obs), environment units. The fraction of the snippet that has
        elapsed is (batch, time), in [0, 1].
        """
        inputs = self.observation.normalize(observations)
        if not self.spec.time_input:
            return inputs
        return torch.cat([inputs, (2.0 * elapsed - 1.0).unsqueeze(-1)], -1)

    def act(self, layers: list[Layer], observations: Tensor, elapsed: Tensor) -> Tensor:
        """Run decoded policies closed loop for one step.

        Args:
            layers: Unpacked weights of one policy per environment.
            observations: (env, obs), environment units.
            elapsed: (env,), fraction of the snippet that has elapsed, in [0, 1].

        Returns:
            (env, action), environment units, not clipped.
        """
        inputs = self.policy_inputs(observations.unsqueeze(1), elapsed.unsqueeze(1))
        outputs = generated.run(layers, inputs).squeeze(1)
        return self.action.restore(outputs) + self.spec.reference(observations)

    def terms(
        self,
        batch: Snippets,
        task: Tensor,
        label: Tensor,
        generator: torch.Generator,
        loss_steps: int | None = None,
        observation_noise: float = 0.0,
        padding: str = "masked",
        focus: Focus | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms of the loss, unweighted: see `vae_terms`, and `Dynamics.terms`.

        Args:
            batch: Snippets with `snippet_length` steps.
            task: Ignored, as `label` is.
            label: Ignored.
            generator: Source of the posterior noise and of the drawn steps.
            loss_steps: Reconstruct this many steps drawn per snippet; None takes all.
            observation_noise: Size of the noise on the policy's normalized observations; see
                `noisy_observations`.
            padding: `"masked"` leaves padded steps out of the reconstruction; `"counted"` does not:
                in them the robot stays where it is. The encoder does not see them either way.
            focus: Steps whose error counts more than that of others.
        """
        del task, label
        mean, log_variance = self.encode(batch)
        latent = sample_posterior(mean, log_variance, generator)
        layers = generated.unpack(self.decoder(latent), self.spec.policy_shape)
        observations, actions = batch.observations, batch.actions
        mask = counted_steps(batch.mask, padding)
        weights = None if focus is None else focus.weights(batch)
        length = mask.shape[1]
        elapsed = torch.arange(length, device=mask.device) / self.spec.snippet_length
        elapsed = elapsed.expand_as(mask)
        if loss_steps is not None and loss_steps < length:
            drawn = _draw_steps(mask, loss_steps, generator)
            observations, actions = _take(observations, drawn), _take(actions, drawn)
            elapsed, mask = elapsed.gather(1, drawn), mask.gather(1, drawn)
            weights = None if weights is None else weights.gather(1, drawn)
        if observation_noise > 0:
            observations = noisy_observations(
                observations, self.observation.scale, self.spec, observation_noise, generator
            )
        outputs = generated.run(layers, self.policy_inputs(observations, elapsed))
        target = self.action.normalize(actions - self.spec.reference(observations))
        terms = vae_terms(outputs, target, mask, mean, log_variance, weights)
        if self.dynamics is not None:
            terms |= self.dynamics.terms(self, layers, batch, generator)
        return terms


def _draw_steps(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` steps (batch, count) per snippet without repeats, real ones first."""
    scores = torch.rand(mask.shape, generator=generator, device=mask.device)
    return torch.topk(scores + mask, count, dim=1, sorted=False).indices


def _take(values: Tensor, steps: Tensor) -> Tensor:
    """Pick (batch, count, component) out of (batch, time, component)."""
    return values.gather(1, steps.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def load_vae(
    artifact: Artifact, device: torch.device, encoder: nn.Module | None = None
) -> PolicyVae:
    """Return the policy VAE of an artifact for inference; see `PolicyVae.load`."""
    artifact.check()
    return PolicyVae.load(artifact.path, encoder).to(device)
