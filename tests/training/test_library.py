"""Training on arrays in memory, with networks of the caller's own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import DiffusionConfig, EncodeConfig, VaeConfig
from lwdctl.core import registry
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import Episode
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae
from lwdctl.training.diffusion import train_diffusion
from lwdctl.training.encode import encode
from lwdctl.training.vae import train_vae

sys.path.insert(0, str(Path(__file__).parent))
from made import random_walks

sys.path.pop(0)

LATENT = 6
VAE = VaeConfig(
    snippet_length=8, latent_size=LATENT, policy_width=8, batch_size=4, updates=3, device="cpu"
)
DIFFUSION = DiffusionConfig(width=16, blocks=1, batch_size=8, updates=3, device="cpu")


@pytest.fixture(scope="module")
def data() -> SnippetStore:
    return random_walks(episodes=6, steps=20, state=3)


class Recurrent(nn.Module):
    """An encoder that reads a snippet step by step."""

    def __init__(self, latent: int = LATENT, inputs: int = 5) -> None:
        super().__init__()
        self.recurrence = nn.GRU(inputs, 8, batch_first=True)
        self.heads = nn.Linear(8, 2 * latent)

    def forward(self, steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.recurrence(steps * mask.unsqueeze(-1))
        mean, log_variance = self.heads(hidden[:, -1]).chunk(2, dim=1)
        return mean, log_variance


class Linear(nn.Module):
    """A denoiser without any hidden layer."""

    def __init__(self, condition: int) -> None:
        super().__init__()
        self.layer = nn.Linear(LATENT + 1 + condition, LATENT)
        self.time = nn.Embedding(100, 1)

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        found: Tensor = self.layer(torch.cat([latent, self.time(step), condition], dim=1))
        return found


def run(path: Path) -> dict[str, object]:
    path.mkdir()
    return {"directory": path, "progress": SilentProgress()}


def weights(model: nn.Module) -> list[Tensor]:
    return [value for value in model.state_dict().values() if value.is_floating_point()]


def test_the_whole_pipeline_runs_in_memory(data: SnippetStore, tmp_path: Path) -> None:
    vae = train_vae(data, VAE, **run(tmp_path / "vae"))
    assert vae.summary["snippet_length"] == 8
    assert "PolicyVae" in repr(vae)
    latents = encode(vae.model, data, EncodeConfig(device="cpu"), None, SilentProgress())
    assert (latents.path, latents.latent_size, latents.state_size) == (None, LATENT, 6)
    found = train_diffusion(latents, data, vae.model, DIFFUSION, **run(tmp_path / "diffusion"))
    assert found.model.spec.history == 2
    found.save(tmp_path / "model")
    loaded = LatentDiffusion.load(tmp_path / "model")
    for one, two in zip(weights(found.model), weights(loaded), strict=True):
        assert torch.equal(one, two)


def test_a_finished_run_resumes_to_the_same_weights(data: SnippetStore, tmp_path: Path) -> None:
    first = train_vae(data, VAE, **run(tmp_path / "vae"))
    again = train_vae(data, VAE, directory=tmp_path / "vae", progress=SilentProgress())
    for one, two in zip(weights(first.model), weights(again.model), strict=True):
        assert torch.equal(one, two)
    assert again.summary["reconstruction"] == first.summary["reconstruction"]


def test_an_encoder_of_one_s_own(data: SnippetStore, tmp_path: Path) -> None:
    trained = train_vae(data, VAE, encoder=Recurrent(), **run(tmp_path / "vae"))
    assert trained.spec["architecture"] == "custom"
    trained.save(tmp_path / "model")
    with pytest.raises(ConfigError, match="encoder of this model is a module of your own"):
        PolicyVae.load(tmp_path / "model")
    loaded = PolicyVae.load(tmp_path / "model", encoder=Recurrent())
    latents = encode(loaded, data, EncodeConfig(device="cpu"), None, SilentProgress())
    assert np.isfinite(latents.mean).all()
    with pytest.raises(ConfigError, match=r"\(2, 6\)"):
        train_vae(data, VAE, encoder=Recurrent(4), **run(tmp_path / "narrow"))
    other_data = nn.Sequential(nn.Flatten(), nn.Linear(7, LATENT))
    for encoder, reason in ((other_data, "takes 2 positional"), (Recurrent(inputs=7), "7")):
        with pytest.raises(ConfigError, match=f"the encoder cannot be called: .*{reason}") as error:
            train_vae(data, VAE, encoder=encoder, directory=tmp_path, progress=SilentProgress())
        assert error.value.hint == "it was given inputs of the shapes (2, 8, 5), (2, 8)"


def test_a_denoiser_of_one_s_own(data: SnippetStore, tmp_path: Path) -> None:
    vae = train_vae(data, VAE, **run(tmp_path / "vae")).model
    latents = encode(vae, data, EncodeConfig(history=1, device="cpu"), None, SilentProgress())
    trained = train_diffusion(
        latents, data, vae, DIFFUSION, denoiser=Linear(3), **run(tmp_path / "diffusion")
    )
    trained.save(tmp_path / "model")
    with pytest.raises(ConfigError, match="denoiser of this model is a module of your own"):
        LatentDiffusion.load(tmp_path / "model")
    loaded = LatentDiffusion.load(tmp_path / "model", denoiser=Linear(3))
    condition = loaded.condition(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1))
    assert loaded.sample(condition, [torch.Generator()]).shape == (1, LATENT)

    class Flat(Linear):
        def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
            return super().forward(latent, step, condition)[:, 0]

    with pytest.raises(ConfigError, match=r"\(2, 6\)"):
        train_diffusion(latents, data, vae, DIFFUSION, denoiser=Flat(3), **run(tmp_path / "flat"))
    with pytest.raises(ConfigError, match="the denoiser cannot be called: mat1 and mat2") as error:
        train_diffusion(latents, data, vae, DIFFUSION, denoiser=Linear(9), **run(tmp_path / "wide"))
    assert error.value.hint == "it was given inputs of the shapes (2, 6), (2,), (2, 3)"


def test_latents_need_a_training_split(data: SnippetStore, tmp_path: Path) -> None:
    vae = train_vae(data, VAE, **run(tmp_path / "vae")).model
    held_out = [
        Episode(
            "demo",
            {"state": np.zeros((20, 3), np.float32)},
            np.zeros((20, 2), np.float32),
            task="reach",
            split="validation",
        )
    ]
    store = SnippetStore.in_memory(held_out, data.spec)
    with pytest.raises(ConfigError, match="training split"):
        encode(vae, store, EncodeConfig(device="cpu"), None, SilentProgress())


def test_an_unknown_denoiser_is_named() -> None:
    with pytest.raises(ConfigError, match="unett") as caught:
        DiffusionConfig(denoiser="unett", device="cpu")
    assert "unet" in caught.value.hint


PLUGIN = """
from torch import nn


class Plain(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.latent_size + spec.condition_size, spec.latent_size)

    def forward(self, latent, step, condition):
        return self.layer(__import__("torch").cat([latent, condition], dim=1))
"""


def test_a_denoiser_of_another_package(
    data: SnippetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site" / "plain-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[lwdctl.denoisers]\nplain = plain_denoiser:Plain\n")
    (folder.parent / "plain_denoiser.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder.parent))
    registry._entry_points.cache_clear()
    try:
        vae = train_vae(data, VAE, **run(tmp_path / "vae")).model
        latents = encode(vae, data, EncodeConfig(device="cpu"), None, SilentProgress())
        config = DiffusionConfig(denoiser="plain", batch_size=8, updates=3, device="cpu")
        trained = train_diffusion(latents, data, vae, config, **run(tmp_path / "diffusion"))
        trained.save(tmp_path / "model")
        loaded = LatentDiffusion.load(tmp_path / "model")
    finally:
        registry._entry_points.cache_clear()
    assert type(loaded.denoiser).__name__ == "Plain"
