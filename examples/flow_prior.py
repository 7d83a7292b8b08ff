"""A denoiser of your own that is a normalizing flow, which turns noise into a latent.

It is trained by the latents' likelihood and sampled in one step: python examples/flow_prior.py
"""

import torch
from reach import ReachEnv, demonstrate
from torch import nn

import lwdctl
from lwdctl.models.denoiser import Denoiser


class NormalizingFlow(Denoiser):  # affine coupling layers: Dinh et al. 2017
    uses_layout = False

    def __init__(self, spec, layers=8, blur=0.05):
        super().__init__()
        self.blur, self.layers = blur, nn.ModuleList()
        half, width = spec.latent_size // 2, spec.width
        for _ in range(layers):
            first, last = nn.Linear(half + spec.condition_size, width), nn.Linear(width, 2 * half)
            inner = nn.Linear(width, width)
            self.layers.append(nn.Sequential(first, nn.SiLU(), inner, nn.SiLU(), last))

    def training_loss(self, latent, condition, noise):
        halves, growth = (latent + self.blur * noise).chunk(2, dim=1), 0.0  # blur bounds it
        for layer in reversed(self.layers):
            moved, seen = halves
            shift, scale = layer(torch.cat([seen, condition], 1)).chunk(2, dim=1)
            halves, growth = (seen, (moved - shift) * (-scale.tanh()).exp()), growth + scale.tanh()
        return (0.5 * torch.cat(halves, 1).square().sum(1) + growth.sum(1)).mean() / latent.shape[1]

    def context(self, step, condition, rows=None):
        return (condition,)

    def contexts(self, timesteps, condition):
        if len(timesteps) == 1:
            return [(condition,)]
        raise lwdctl.ConfigError("a flow is sampled in one step", "--num-inference-steps 1")

    def predict(self, latent, context):
        halves = latent.chunk(2, dim=1)
        for layer in self.layers:
            seen, moved = halves
            shift, scale = layer(torch.cat([seen, *context], 1)).chunk(2, dim=1)
            halves = moved * scale.tanh().exp() + shift, seen
        return torch.cat(halves, dim=1)


if __name__ == "__main__":
    seen, done = zip(*(demonstrate(ReachEnv(), seed) for seed in range(50)), strict=True)
    data = lwdctl.Dataset.from_arrays(observations=seen, actions=done)
    vae = lwdctl.VaeConfig(snippet_length=10, policy_width=32, decoder="xs", updates=300)
    latents = lwdctl.encode(lwdctl.train_vae(data, vae))
    config = lwdctl.DiffusionConfig(updates=1500, width=64)
    own = NormalizingFlow(lwdctl.train_diffusion(latents, config).model.spec.denoiser)
    flow = lwdctl.train_diffusion(latents, config, denoiser=own)
    flow = lwdctl.load_policy(flow, horizon=10, num_inference_steps=1)
    print(lwdctl.evaluate({"flow": flow}, ReachEnv, episodes=20, max_steps=30))
