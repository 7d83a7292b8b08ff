"""One training step: nothing from the host, on any objective; precision; what lies ahead."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lwdctl.artifacts.latents import LatentStore, LatentWriter
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import BaselineConfig, DiffusionConfig, EncodeConfig, VaeConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.data.batches import MemoryRows, SnippetBatches
from lwdctl.methods import BASELINES
from lwdctl.models.generated import PolicyDecoder, PolicyShape
from lwdctl.training import objectives
from lwdctl.training.diffusion import train_diffusion
from lwdctl.training.encode import encode
from lwdctl.training.loop import TrainingLoop
from lwdctl.training.objectives import (
    BLOCK,
    DiffusionObjective,
    LatentTable,
    SnippetObjective,
    SpilledLatents,
)
from lwdctl.training.update import Ahead, LoopSettings, Update
from lwdctl.training.vae import train_vae

sys.path.insert(0, str(Path(__file__).parent))
from made import random_walks

sys.path.pop(0)

VAE = VaeConfig(
    snippet_length=8, latent_size=8, policy_width=8, batch_size=4, updates=3, device="cpu",
    loss_steps=4, observation_noise=0.1, cache="ram", threads=1,
)  # fmt: skip
DIFFUSION = DiffusionConfig(
    width=16, blocks=1, batch_size=8, updates=3, device="cpu", latent_layout="8x1", unet_size="xs",
    transformer_size="xs", dropout=0.1, state_noise=0.1, threads=1,
    condition_dropout=0.1,
)  # fmt: skip
BASELINE = BaselineConfig(
    snippet_length=8, batch_size=4, updates=3, device="cpu", unet_size="xs", cache="ram",
    transformer_size="xs", latent_size=8, policy_width=8, warmup=1, threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> SnippetStore:
    return random_walks(episodes=6, steps=20, state=3, tasks=("reach", "push"))


class Began(Exception):  # noqa: N818 - no error
    """Training would begin now."""

    def __init__(self, loop: TrainingLoop[Any]) -> None:
        self.loop = loop


@pytest.fixture
def before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_before_loop(1, monkeypatch)


def stop_before_loop(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training raise `Began` where its loop of this number, counted from 1, would begin."""
    run, numbers = TrainingLoop.run, itertools.count(1)

    def begin(self: TrainingLoop[Any], title: str) -> dict[str, float]:
        if next(numbers) == number:
            raise Began(self)
        return run(self, title)

    monkeypatch.setattr(TrainingLoop, "run", begin)


class OnlyMeta(TorchDispatchMode):
    """Refuses tensors that are not on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.device.type != "meta":
                raise AssertionError(f"{func} works on {value.device}")
        return result


def need_nothing_from_the_host(loop: TrainingLoop[Any]) -> None:
    """Compute loss and gradients of one training step with everything on the meta device."""
    torch.__future__.set_swap_module_params_on_conversion(True)  # keeps shared parameters shared
    model, objective = copy.deepcopy(loop.model).to("meta"), on_meta(loop.objective)
    torch.__future__.set_swap_module_params_on_conversion(False)
    assert objective.load(0, BLOCK) == BLOCK
    place = torch.zeros(1, dtype=torch.long, device="meta")
    with OnlyMeta():
        loss, terms = objective.loss(model.train(), place, torch.Generator())
        loss.backward()
    assert loss.shape == ()
    assert all(term.shape == () for term in terms.values())
    assert all(p.grad is not None for p in model.parameters())


def on_meta(objective: Any) -> Any:
    if isinstance(objective, DiffusionObjective):
        table = LatentTable(**{k: v.to("meta") for k, v in vars(objective.table).items()})
        return replace(objective, table=table, _ahead=Ahead())
    assert isinstance(objective, SnippetObjective)
    batches = copy.copy(objective.batches)
    batches.device, batches._rows = torch.device("meta"), copy.copy(batches._rows)
    assert isinstance(batches._rows, MemoryRows)
    batches._rows.table, batches._steps = batches._rows.table.to("meta"), batches._steps.to("meta")
    return replace(objective, batches=batches, _ahead=Ahead())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dynamics_steps": 3},
        {"focus": "first"},
        {"focus": "last"},
        {"loss_steps": None},
        {"padding": "counted"},
        {"padding": "counted", "loss_steps": None},
    ],
)
def test_the_vae(
    data: SnippetStore, before_training: None, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = replace(VAE, **change)
    with pytest.raises(Began) as began:
        train_vae(data, config, directory=tmp_path, progress=SilentProgress())
    need_nothing_from_the_host(began.value.loop)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "epsilon", "flow"])
@pytest.mark.parametrize("denoiser", ["mlp", "unet", "transformer"])
def test_the_latent_denoiser(
    data: SnippetStore, tmp_path: Path, denoiser: str, prediction: Any, request: Any
) -> None:
    vae = train_vae(data, VAE, directory=tmp_path, progress=SilentProgress()).model
    latents = encode(vae, data, EncodeConfig(device="cpu"), None, SilentProgress())
    dropout = 0.0 if denoiser == "unet" else DIFFUSION.dropout
    config = replace(DIFFUSION, denoiser=denoiser, prediction=prediction, dropout=dropout)
    request.getfixturevalue("before_training")
    with pytest.raises(Began) as began:
        train_diffusion(
            latents, data, vae, config, directory=tmp_path / "d", progress=SilentProgress()
        )
    need_nothing_from_the_host(began.value.loop)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "loop", "change"),
    [
        ("dp", 1, {"denoiser": "unet"}),
        ("dp", 1, {"denoiser": "unet", "padding": "counted"}),
        ("dp", 1, {"denoiser": "transformer"}),
        ("dp", 1, {"denoiser": "transformer", "padding": "counted"}),
        ("ldp", 1, {}),
        ("ldp", 1, {"padding": "counted"}),
        ("ldp", 2, {}),  # the diffusion over the latents
        ("ldp", 2, {"observation_noise": 0.1}),
        ("mlp", 1, {"condition_dropout": 0.0}),
    ],
)
def test_a_baseline(
    data: SnippetStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    method: str,
    loop: int,
    change: dict[str, Any],
) -> None:
    stop_before_loop(loop, monkeypatch)
    config = replace(BASELINE, **{"method": method, "condition_dropout": 0.1, **change})
    with pytest.raises(Began) as began:
        BASELINES.load(method).train(data, config, tmp_path, SilentProgress())
    objective = DiffusionObjective if loop == 2 else SnippetObjective
    assert isinstance(began.value.loop.objective, objective)
    need_nothing_from_the_host(began.value.loop)


class Hosted(nn.Module):
    """A denoiser that asks the host: what the tests above would notice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        scale = float(latent.abs().max()) if latent.device.type == "meta" else 1.0
        found: Tensor = scale * self.layer(latent)
        return found


def test_a_network_that_asks_the_host_is_noticed(
    data: SnippetStore, tmp_path: Path, request: Any
) -> None:
    vae = train_vae(data, VAE, directory=tmp_path, progress=SilentProgress()).model
    latents = encode(vae, data, EncodeConfig(device="cpu"), None, SilentProgress())
    request.getfixturevalue("before_training")
    with pytest.raises(Began) as began:
        train_diffusion(
            latents, data, vae, DIFFUSION, directory=tmp_path / "d", progress=SilentProgress(),
            denoiser=Hosted(),
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="meta"):
        need_nothing_from_the_host(began.value.loop)


@pytest.mark.slow
@pytest.mark.parametrize("on_disk", [False, True])
def test_latents_in_a_file_train_the_same_model(
    data: SnippetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    quiet = SilentProgress()
    vae = train_vae(data, VAE, directory=tmp_path, progress=quiet).model
    path = tmp_path / "latents.zarr" if on_disk else None
    latents = encode(vae, data, EncodeConfig(device="cpu"), path, quiet)
    # Several reads of the store, and blocks of a few training steps.
    monkeypatch.setattr(objectives, "READ_ROWS", 7)
    monkeypatch.setattr(objectives, "BLOCK_BYTES", 3000)
    found = {}
    for cache in ("ram", "none"):
        config = replace(DIFFUSION, updates=9, cache=cache)
        directory = tmp_path / cache
        directory.mkdir()
        found[cache] = train_diffusion(
            latents, data, vae, config, directory=directory, progress=quiet
        )
    numbers = ("denoising", "held_out_denoising")
    assert [found["ram"].summary[name] for name in numbers] == [
        found["none"].summary[name] for name in numbers
    ]
    pairs = zip(found["ram"].last.parameters(), found["none"].last.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_latents_in_a_file_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "READ_ROWS", 7)
    numbers = np.arange(40, dtype=np.float32)[:, None]
    indices = np.arange(40) % 4 - 1  # -1 is none
    episode = np.repeat(np.arange(5), 8)
    with LatentWriter(tmp_path / "latents.zarr", 1, 2) as writer:
        state = np.concatenate([-numbers, 2 * numbers], axis=1)
        writer.append(numbers, -0.1 * numbers, state, indices, indices[::-1], episode, indices)
        writer.close()
    store = LatentStore.written_by(writer)
    wanted = np.array([True, False, True, True, False])
    device = torch.device("cpu")
    memory = LatentTable.read(store, device, wanted)
    file = SpilledLatents(store, device, wanted, tmp_path / "spilled")
    assert len(memory) == len(file) == objectives.count_rows(store, wanted) == 24
    rows = torch.tensor([23, 0, 8, 7, 11, 0])
    for one, other in zip(memory.take(rows), file.take(rows), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    kept = np.flatnonzero(wanted[episode])[rows]
    assert memory.take(rows)[0].tolist() == numbers[kept].tolist()
    assert memory.take(rows)[4].tolist() == indices[::-1][kept].tolist()


class Squares:
    """Fits a line; the batch of a training step is its number."""

    def __init__(self) -> None:
        self.ahead, self.blocks = Ahead(), []

    def load(self, update: int, left: int) -> int:
        self.blocks.append(update)
        self.ahead.put(torch.arange(update, update + 4.0))
        return 4

    def loss(
        self, model: nn.Module, place: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        (number,) = self.ahead.take(place)
        inputs = torch.randn(8, 2, generator=generator, device=place.device)
        error = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().float()
        return error, {"error": error.detach(), "number": number}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return {}


SETTINGS = LoopSettings(
    updates=10, learning_rate=1e-2, warmup=2, clip_norm=1.0, ema_decay=0.9, seed=0, batch_size=8
)


def update_of(settings: LoopSettings = SETTINGS) -> tuple[Update[nn.Module], Squares]:
    torch.manual_seed(0)
    objective = Squares()
    return Update(nn.Linear(2, 1), objective, settings, print), objective


def test_every_step_takes_its_own_batch_from_the_block() -> None:
    update, objective = update_of()
    seen = []
    for number in range(6, 13):
        update.step(number, 20)
        seen.append(int(update.terms["number"]))
    assert seen == list(range(6, 13))
    assert objective.blocks == [6, 10]


def test_rehearsals_change_nothing() -> None:
    plain, _ = update_of()
    rehearsed, _ = update_of()
    for number in range(7):
        plain.step(number, 10)
        rehearsed.step(number, 10)
        if number in (0, 4):
            with rehearsed.undone():
                rehearsed.rehearse()
                rehearsed.rehearse()
    for one, two in zip(plain.save().values(), rehearsed.save().values(), strict=True):
        assert torch.equal(one, two)


def test_a_change_of_the_planned_steps_holds_from_the_next_step_on() -> None:
    planned, _ = update_of()
    late, _ = update_of()
    for number in range(6):
        planned.step(number, 20)
        late.step(number, 20 if number < 3 else 30)
    assert float(planned._rate) < float(late._rate)


def test_bfloat16_keeps_weights_and_losses_in_single_precision() -> None:
    update, _ = update_of(replace(SETTINGS, precision="bf16"))
    for number in range(8):
        update.step(number, 10)
    assert update.loss.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in update.save().values())
    exact, _ = update_of()
    for number in range(8):
        exact.step(number, 10)
    assert float(update.loss) == pytest.approx(float(exact.loss), rel=0.1)
    assert float(update.loss) != float(exact.loss)


def test_generated_weights_stay_in_single_precision() -> None:
    decoder = PolicyDecoder(PolicyShape(3, (8,), 2), 4, (5,))
    latent = torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = decoder(latent)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, decoder(latent))


def test_a_gradient_that_is_not_finite_is_noticed() -> None:
    class Root(Squares):
        def loss(self, model: nn.Module, place: Tensor, generator: torch.Generator) -> Any:
            value = (model(torch.zeros(1, 2)) - model(torch.zeros(1, 2))).abs().sqrt().sum()
            return value, {"error": value.detach()}

    update = Update(nn.Linear(2, 1), Root(), SETTINGS, print)
    update.step(0, 10)
    assert "norm of the gradient is nan" in update.not_finite()


@pytest.mark.parametrize("method", ["mlp", "dp", "ldp"])
def test_baselines_take_the_settings_of_the_loop(
    data: SnippetStore, before_training: None, tmp_path: Path, method: str
) -> None:
    config = replace(BASELINE, method=method, threads=2, precision="bf16", cuda_graphs="off")
    with pytest.raises(Began) as began:
        BASELINES.load(method).train(data, config, tmp_path, SilentProgress())
    settings = began.value.loop.settings
    assert (settings.threads, settings.precision, settings.cuda_graphs) == (2, "bf16", "off")


def test_snippets_that_are_uploaded_are_those_on_the_device(data: SnippetStore) -> None:
    """Steps that do not lie on the device are staged in blocks of a bounded size."""
    from lwdctl.data.windows import WindowRule

    rule = WindowRule(8, min_valid_fraction=0.25)
    kept = SnippetBatches(data, ("state",), rule, split="train", seed=0, cache="ram")
    streamed = SnippetBatches(data, ("state",), rule, split="train", seed=0, cache="none")
    assert kept.resident
    assert not streamed.resident
    place = torch.zeros(1, dtype=torch.long)
    for update in (0, 70):
        objectives = [SnippetObjective(batches, None, 4) for batches in (kept, streamed)]
        found = []
        for objective in objectives:
            objective.load(update, 100)
            found.append(objective.batches.assemble(*objective._ahead.take(place + 3)))
        expected = kept.batch(update + 3, 4)
        for batch in found:
            assert all(torch.equal(getattr(batch, k), v) for k, v in vars(expected).items())
