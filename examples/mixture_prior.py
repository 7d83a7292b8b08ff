"""A denoiser of your own that holds a mixture of Gaussians; its network runs once per re-plan.

The mean of the clean latent given a noisy one has a closed form, so that the mixture is trained
and sampled as any denoiser is: python examples/mixture_prior.py
"""

import torch
from reach import ReachEnv, demonstrate
from torch import nn

import lwdctl
from lwdctl.models.denoiser import Denoiser
from lwdctl.models.samplers import noise_levels


class GaussianMixture(Denoiser):
    uses_layout = False

    def __init__(self, spec, components=8, timesteps=100):
        super().__init__()
        self.shape = components, 2 * spec.latent_size
        first = nn.Linear(spec.condition_size, spec.width)
        self.body = nn.Sequential(first, nn.SiLU(), nn.Linear(spec.width, spec.width), nn.SiLU())
        self.weights = nn.Linear(spec.width, components)
        self.parts = nn.Linear(spec.width, components * 2 * spec.latent_size)
        means, _ = self.parts.bias.detach().view(self.shape).chunk(2, dim=1)
        means.normal_()  # components that begin alike would stay alike
        self.register_buffer("levels", torch.stack(noise_levels(timesteps, "sample"), 1), False)

    def context(self, step, condition, rows=None):
        hidden = self.body(condition)
        means, log_variances = self.parts(hidden).view(-1, *self.shape).chunk(2, dim=2)
        variances = log_variances.clamp(-10.0, 3.0).exp()
        return self.levels[step], self.weights(hidden).log_softmax(1), means, variances

    def contexts(self, timesteps, condition):
        rows = len(condition)
        _, *mixture = self.context(timesteps[:1].expand(rows), condition)
        return ((self.levels[step].expand(rows, 2), *mixture) for step in timesteps)

    def predict(self, latent, context):
        levels, log_weights, means, variances = context
        signal, std = levels.unsqueeze(1).split(1, dim=2)
        apart, spread = latent.unsqueeze(1) - signal * means, signal**2 * variances + std**2
        log_density = -0.5 * (apart.square() / spread + spread.log()).sum(2)
        share = (log_weights + log_density).softmax(1).unsqueeze(2)
        return (share * (means + signal * variances / spread * apart)).sum(1)


if __name__ == "__main__":
    seen, done = zip(*(demonstrate(ReachEnv(), seed) for seed in range(50)), strict=True)
    data = lwdctl.Dataset.from_arrays(observations=seen, actions=done)
    vae = lwdctl.VaeConfig(snippet_length=10, policy_width=32, decoder="xs", updates=300)
    latents = lwdctl.encode(lwdctl.train_vae(data, vae))
    config = lwdctl.DiffusionConfig(updates=1500, width=64)
    diffusion = lwdctl.train_diffusion(latents, config)
    own = GaussianMixture(diffusion.model.spec.denoiser)
    trained = {"diffusion": diffusion, "own": lwdctl.train_diffusion(latents, config, denoiser=own)}
    policies = {name: lwdctl.load_policy(model, horizon=10) for name, model in trained.items()}
    print(lwdctl.evaluate(policies, ReachEnv, episodes=20, max_steps=30))
