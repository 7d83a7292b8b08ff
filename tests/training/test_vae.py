"""The VAE's normalizers, honest about what they leave, and rollouts in its training."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.configs import DiffusionConfig, EncodeConfig, VaeConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress
from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.training import checkpoint
from lwdctl.training.diffusion import train_diffusion
from lwdctl.training.encode import encode
from lwdctl.training.vae import fit_normalizers, train_vae

sys.path.insert(0, str(Path(__file__).parent))
from made import random_walks

sys.path.pop(0)

SPEC = VaeSpec(("seen",), 2, 3, None, 4, 8, (8,), (8,), True)


@pytest.mark.parametrize(
    ("deviation", "count"), [((1.0, 5e-5, 0.0), 1), ((0.02, 0.1, 0.0), 0), ((5e-5, 5e-5, 2e-5), 3)]
)
def test_actions_in_tiny_steps_are_reported(deviation: tuple[float, ...], count: int) -> None:
    store = SimpleNamespace(
        moments=lambda keys, _: SimpleNamespace(
            mean=np.zeros(2 if keys == ("seen",) else 3),
            deviation=np.ones(2) if keys == ("seen",) else np.array(deviation),
        )
    )
    model = PolicyVae(SPEC)
    assert fit_normalizers(model, store) == count
    expected = [1.0 if item <= 1e-4 else item for item in deviation]
    np.testing.assert_allclose(model.action.scale.numpy(), expected, rtol=1e-6)


def config(dynamics_steps: int) -> VaeConfig:
    return VaeConfig(
        snippet_length=8, latent_size=8, policy_width=8, decoder="xs", batch_size=4, updates=4,
        device="cpu", threads=1, snapshots=2, dynamics_steps=dynamics_steps,
    )  # fmt: skip


def test_the_model_of_rollouts_shapes_the_policies_and_is_not_kept(tmp_path: Path) -> None:
    data, quiet = random_walks(episodes=6, steps=20, state=3), SilentProgress()
    for name in ("plain", "work"):
        (tmp_path / name).mkdir()
    plain = train_vae(data, config(0), directory=tmp_path / "plain", progress=quiet)
    work = train_vae(data, config(3), directory=tmp_path / "work", progress=quiet)
    errors = {"dynamics", "rollout", "held_out_dynamics", "held_out_rollout", "held_out_drift"}
    assert work.summary.keys() - plain.summary.keys() == errors
    work.save(tmp_path / "kept")
    kept = PolicyVae.load(tmp_path / "kept").state_dict()
    assert kept.keys() == plain.model.state_dict().keys()
    changed = [name for name in kept if not kept[name].equal(plain.model.state_dict()[name])]
    assert any(name.startswith("decoder.") for name in changed)
    loaded = PolicyVae(work.model.spec)
    checkpoint.load_snapshot(loaded, tmp_path / "work", 4)
    assert all(value.equal(kept[name]) for name, value in loaded.state_dict().items())


def test_rollouts_grow_over_what_fits_into_a_time_limit(tmp_path: Path) -> None:
    data = random_walks(episodes=6, steps=20, state=3)
    limited = replace(config(3), updates=10_000_000, time_limit=1 / 60)
    last = train_vae(data, limited, directory=tmp_path, progress=SilentProgress()).last
    assert last.train().dynamics.weights().tolist() == [1, 1, 1]


def test_rollouts_longer_than_snippets_are_refused(tmp_path: Path) -> None:
    data = random_walks(episodes=6, steps=20, state=3)
    with pytest.raises(
        ConfigError, match="a rollout of 8 steps needs 9 observations, and a snippet has 8"
    ):
        train_vae(data, config(8), directory=tmp_path, progress=SilentProgress())


def test_options_without_effect_are_said(tmp_path: Path) -> None:
    data, said = random_walks(episodes=4, steps=12, state=3), list[str]()

    class Messages(SilentProgress):
        def message(self, text: str) -> None:
            said.append(text)

    short = replace(config(0), updates=1, snapshots=0)
    odd = replace(short, focus_weight=2.0, dynamics_weight=2.0, starts="first", stride=3)
    for name, chosen in (("a", short), ("b", odd)):
        (tmp_path / name).mkdir()
        vae = train_vae(data, chosen, directory=tmp_path / name, progress=Messages())
    latents = encode(vae.model, data, EncodeConfig(device="cpu", stride=3), None, Messages())
    settings = DiffusionConfig(updates=1, threads=1, device="cpu", width=8, state_noise=0.1)
    for part in ("state", "none"):
        (tmp_path / part).mkdir()
        train_diffusion(
            latents, data, vae.model, replace(settings, condition=(part,)),
            directory=tmp_path / part, progress=Messages(),
        )  # fmt: skip
    assert [line for line in said if "has no use for" in line] == [
        "warning: a loss without --focus has no use for --focus-weight",
        "warning: a loss without --dynamics-steps has no use for --dynamics-weight",
        "warning: --starts first has no use for --stride",
        "warning: a VAE that was trained with --starts first has no use for --stride",
        "warning: a condition without the state has no use for --state-noise",
    ]
