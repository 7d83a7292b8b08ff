"""How cost grows with snippet length, decoder size, environments and the size of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch

from lwdctl.bench.comparisons import Comparison, Work, compare
from lwdctl.bench.training import LONG, VaeWork, pusht_store
from lwdctl.configs import DiffusionConfig, VaeConfig
from lwdctl.models import generated
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.generated import DECODER_SIZES
from lwdctl.models.vae import PolicyVae
from lwdctl.training.diffusion import diffusion_spec
from lwdctl.training.vae import vae_spec

ROUNDS = 5
LENGTHS = (16, 32, 64, 128, 256)
NUM_ENVS = (1, 4, 16, 64)
EPISODES = (50, 200, 800, 3200)
HISTORY = 2


def snippet_length(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Time training steps of the VAE by snippet length."""
    works = {f"T {length}": _training(device, snippet_length=length) for length in LENGTHS}
    yield from _growth("VAE update", works, device, rounds)


def decoder_size(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Time training steps of the VAE by decoder size."""
    works = {f"decoder {name}": _training(device, decoder=name) for name in DECODER_SIZES}
    yield from _growth("VAE update", works, device, rounds)


def data_size(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Time training steps of the VAE by the number of demonstrations."""
    works = {f"{count} episodes": _training(device, episodes=count) for count in EPISODES}
    yield from _growth("VAE update", works, device, rounds)


def num_envs(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Time a re-plan (DDIM 10 and decoding) and a step of the policies by environments."""
    source, config = pusht_store().spec, DiffusionConfig()
    vae = PolicyVae(vae_spec(VaeConfig(), pusht_store())).to(device).eval()
    observation = vae.spec.observation_size
    spec = diffusion_spec(config, ("state",), 256, observation, HISTORY, source)
    diffusion = LatentDiffusion(spec).to(device).eval()

    def replan(count: int) -> None:
        generators = [torch.Generator().manual_seed(place) for place in range(count)]
        condition = torch.zeros(count, spec.state_size, device=device)
        with torch.inference_mode():
            vae.decoder(diffusion.sample(condition, generators, "ddim", 10))

    def act(count: int) -> Work:
        with torch.inference_mode():
            weights = vae.decoder(torch.zeros(count, 256, device=device))
        layers = generated.unpack(weights, vae.spec.policy_shape)
        seen, elapsed = torch.zeros(count, observation, device=device), torch.zeros(count)
        elapsed = elapsed.to(device)

        def step() -> None:
            with torch.inference_mode():
                vae.act(layers, seen, elapsed)

        return step

    plans = {f"num_envs {count}": partial(replan, count) for count in NUM_ENVS}
    yield from _growth("re-plan, DDIM 10 and decoder s", plans, device, rounds)
    steps = {f"num_envs {count}": act(count) for count in NUM_ENVS}
    yield from _growth("one step of the policies, 2 x 256", steps, device, rounds, repeat=20)


def _training(device: torch.device, episodes: int = 206, **settings: int | str) -> Work:
    config = replace(VaeConfig(policy_width=128, updates=LONG), **settings)  # type: ignore[arg-type]
    training = VaeWork.of(pusht_store(episodes), config, device).ours()
    return partial(training.run, 1)


def _growth(
    name: str,
    works: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int | None,
    repeat: int = 3,
) -> Iterator[Comparison]:
    """Compare every work with the first, in alternation."""
    first, base = next(iter(works.items()))

    def repeated(work: Callable[[], object]) -> Work:
        def run() -> None:
            for _ in range(repeat):
                work()

        return run

    for title, work in list(works.items())[1:]:
        comparison = Comparison(f"{name}, {title}", title, first, "ms")
        sides = repeated(work), repeated(base)
        yield compare(comparison, *sides, rounds or ROUNDS, device, count=repeat)
