"""Model files of others: refused by file and key, before memory is taken for them."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.files import EMA_WEIGHTS, SPEC, load_model, save_model
from lwdctl.models.skeleton import check_batch_memory, check_training_memory, skeleton
from lwdctl.models.vae import PolicyVae, VaeSpec

VAE = VaeSpec(
    observation_keys=("place",), observation_size=3, action_size=2, reference_start=None,
    snippet_length=4, latent_size=4, decoder_layers=(4,), policy_hidden=(4,), time_input=True,
)  # fmt: skip


def denoiser(architecture: str, **changes: Any) -> DiffusionSpec:
    network = DenoiserSpec(
        **{
            "architecture": architecture, "latent_size": 16, "condition_size": 3,
            "layout": (8, 2), "unet_size": "xs", "width": 16, "blocks": 1, "dropout": 0.0,
            "transformer_size": "xs", **changes,
        }
    )  # fmt: skip
    return DiffusionSpec(network, "sample", 20, ("state",), 3, 0, 0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = PolicyVae(VAE)
    save_model(tmp_path, VAE.to_mapping(), model, model)
    return tmp_path


def rewrite(saved: Path, **changes: Any) -> None:
    values = json.loads((saved / SPEC).read_text())
    (saved / SPEC).write_text(json.dumps({**values, **changes}))


def test_a_saved_model_is_loaded(saved: Path) -> None:
    state = PolicyVae.load(saved).state_dict()
    assert {
        name: value.shape for name, value in skeleton(lambda: PolicyVae(VAE)).state_dict().items()
    } == {name: value.shape for name, value in state.items()}


@pytest.mark.parametrize("architecture", ["mlp", "unet", "transformer"])
def test_a_skeleton_has_the_shapes_and_leaves_the_random_numbers_alone(architecture: str) -> None:
    spec = denoiser(architecture)
    state = torch.get_rng_state()
    bare = skeleton(lambda: LatentDiffusion(spec)).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    full = LatentDiffusion(spec).state_dict()
    assert [(n, v.shape, v.dtype) for n, v in bare.items()] == [
        (n, v.shape, v.dtype) for n, v in full.items()
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_size": "4"}, "latent_size: expected int, got str"),
        ({"latent_size": -1}, "latent_size: expected int >= 1"),
        ({"latent_size": 10**18}, "latent_size: expected int <= 100000000"),
        ({"decoder_layers": 3}, "decoder_layers: expected list"),
        ({"policy_hidden": [4, None]}, r"policy_hidden\[1\]: expected int, got null"),
        ({"starts": "nowhere"}, "starts: invalid enum value 'nowhere'"),
        ({"odd": 1}, "unknown key odd"),
        ({"reference_start": 2}, "reference_start"),
        ({"policy_hidden": [10**8, 10**8]}, "fits into no memory|do not fit|describes"),
        ({"snippet_length": 10**8, "latent_size": 10**6}, "fits into no memory|describes"),
        ({"snippet_length": 5}, "describes F32"),
    ],
)
def test_a_specification_is_checked_before_memory_is_taken(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    rewrite(saved, **change)
    with pytest.raises(ArtifactError, match=message) as caught:
        PolicyVae.load(saved)
    assert str(saved) in caught.value.message


@pytest.mark.parametrize(
    "change", ["missing", "more", "shape", "type", "nan", "cut", "pipe", "gone"]
)
def test_weights_that_are_not_those_of_the_model(saved: Path, change: str) -> None:
    path = saved / EMA_WEIGHTS
    tensors = load_file(path)
    name = "encoder.mean.weight"
    value = tensors[name]
    tensors |= {
        "more": {"x": value.clone()}, "shape": {name: value[:1].clone()},
        "type": {name: value.double()},
        "nan": {name: value * torch.nan},
    }.get(change, {})  # fmt: skip
    if change == "missing":
        del tensors[name]
    save_file(tensors, path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    if change in {"pipe", "gone"}:
        path.unlink()
    if change == "pipe":
        os.mkfifo(path)
    with pytest.raises(ArtifactError, match=r"ema\.safetensors"):
        PolicyVae.load(saved)


def test_a_header_of_gigabytes_is_refused(saved: Path) -> None:
    (saved / EMA_WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ArtifactError, match="cannot be read"):
        PolicyVae.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"condition_size": 4},
        {"observation_tokens": 2},
        {"layout": (8, 3), "architecture": "unet"},
        {"layout": (10**8, 1), "architecture": "transformer", "latent_size": 10**8},
        {"blocks": 10**6},
    ],
)
def test_sizes_that_do_not_fit_each_other(change: dict[str, Any]) -> None:
    spec = denoiser(**{"architecture": "mlp", **change}).to_mapping()
    with pytest.raises(ArtifactError, match=r"model\.json: "):
        DiffusionSpec.from_mapping(spec)


def test_what_this_machine_cannot_train_is_refused_with_its_size() -> None:
    with pytest.raises(ConfigError, match=r"needs [\d,]+ GB of memory"):
        check_training_memory(lambda: LatentDiffusion(denoiser("mlp", width=1_000_000)))
    with pytest.raises(ConfigError, match=r"needs 4,000 GB\s+of memory"):
        check_batch_memory(10**6, 4 * 10**6)
    check_training_memory(lambda: PolicyVae(VAE))


@pytest.mark.parametrize("size", [0, 7, 8, 100, -10])
def test_weights_that_are_cut_off_are_refused_where_no_header_was_compared(
    saved: Path, size: int
) -> None:
    path = saved / EMA_WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_model(lambda: PolicyVae(VAE), saved, checked_first=False)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_weights_that_cannot_be_written_are_an_error_of_the_system(saved: Path) -> None:
    """The error has the system's number and the path, as of every other file."""
    model = PolicyVae(VAE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_model(saved, VAE.to_mapping(), model, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert Path(caught.value.filename).parent == saved
