"""Training steps per second beside the loop of commit 123f3ed and hypnettorch's documented path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.bench import reference
from lwdctl.bench.comparisons import Comparison, alternate, compare, needs_cuda, seconds_of
from lwdctl.bench.reference import HypnettorchVae, ReferenceLoop, SnippetCutter
from lwdctl.configs import CollectConfig, DiffusionConfig, IngestConfig, VaeConfig
from lwdctl.core.errors import LwdctlError
from lwdctl.core.progress import SilentProgress
from lwdctl.core.records import ActionSpec, FloatArray
from lwdctl.core.simulator_facts import PUSHT_ACTION, PUSHT_OBSERVATIONS
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.dataset import store_from_arrays
from lwdctl.data.ingest import ingest
from lwdctl.data.reader import open_source
from lwdctl.data.windows import WindowRule
from lwdctl.evaluation.collect import collect
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.vae import PolicyVae
from lwdctl.training.diffusion import diffusion_spec
from lwdctl.training.objectives import DiffusionObjective, LatentTable, SnippetObjective
from lwdctl.training.threads import keep_freed_memory
from lwdctl.training.update import LoopSettings, Objective, Update, matrix_precision
from lwdctl.training.vae import fit_normalizers, vae_spec

ROUNDS = 10
LONG = 1_000_000
"""Training steps of the learning rate's schedule: none of these trainings gets far."""
LOOP = "the loop of commit 123f3ed"
LEVELS = (0.1, 0.05, 0.03)
"""Held-out reconstruction errors to reach, as fractions of the variance of the actions."""
MOST_STEPS = 2000
HISTORY = 2


class Training:
    """A training of lwdctl, advanced step by step as `TrainingLoop` does it.

    Args:
        model: What to train, on its device.
        objective: What to minimize.
        settings: How to train.

    Attributes:
        messages: What the training step had to say, for example why it is not captured.
    """

    def __init__(self, model: nn.Module, objective: Objective, settings: LoopSettings) -> None:
        self.messages: list[str] = []
        self._settings = settings
        self.update = Update(model.train(), objective, settings, self.messages.append)
        if self.update.device.type == "cpu":
            keep_freed_memory()
        self._number = 0

    def run(self, count: int) -> None:
        """Make `count` training steps; a CUDA device may still be at work on them."""
        device, precision = self.update.device, self._settings.precision
        # On a CPU the library is measured with the matrix products that torch gives it.
        is_library = isinstance(self.update.model, HypnettorchVae) and device.type == "cpu"
        with nullcontext() if is_library else matrix_precision(device, precision):
            for _ in range(count):
                self.update.step(self._number, self._settings.updates)
                self._number += 1


@dataclass(frozen=True)
class VaeWork:
    """A VAE with what it is trained on, the same for both sides.

    Attributes:
        model: With its initial weights, to be copied.
        store: Demonstrations.
        batches: Training snippets.
        settings: Of the loop.
        config: Of the stage.
    """

    model: PolicyVae
    store: SnippetStore
    batches: SnippetBatches
    settings: LoopSettings
    config: VaeConfig

    @classmethod
    def of(cls, store: SnippetStore, config: VaeConfig, device: torch.device) -> VaeWork:
        """Build the model and cut the training split, as `train_vae` does."""
        spec = vae_spec(config, store)
        torch.manual_seed(0)
        model = PolicyVae(spec).to(device)
        fit_normalizers(model, store)
        rule = WindowRule(*spec.window)
        batches = SnippetBatches(
            store, spec.observation_keys, rule, split="train", seed=config.seed, device=device
        )
        return cls(model, store, batches, LoopSettings.of(config), config)

    def ours(self, model: nn.Module | None = None, **changes: Any) -> Training:
        """Return lwdctl's training of the model, or of another one with the same terms."""
        own = model is None
        options = {"loss_steps": self.config.loss_steps} if own else {}
        objective = SnippetObjective(
            self.batches,
            None,
            self.config.batch_size,
            weights={"kl": self.config.beta_kl},
            options=options,
        )
        chosen = copy.deepcopy(self.model) if model is None else model
        return Training(chosen, objective, replace(self.settings, **changes))

    def reference(self) -> ReferenceLoop:
        """Return the same training in the loop of commit 123f3ed."""
        keys = self.model.spec.observation_keys
        cutter = SnippetCutter(self.store, keys, self.batches, self.config.batch_size)
        loss = reference.vae_loss(cutter, self.config.beta_kl, self.config.loss_steps)
        return ReferenceLoop(copy.deepcopy(self.model), loss, self.settings)


def vae_update(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Train the VAE at PushT's sizes: T 64, decoder s, policy 2 x 128, 32 loss steps."""
    work = pusht_vae(device)
    name = "VAE, PushT T 64, decoder s, policy 2 x 128, batch 64, 32 loss steps"
    yield from _against_loop(name, 8.0, work.ours(), work.reference(), device, rounds, (10, 200))


def denoiser_update(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Train the latent denoiser, a residual MLP, with batches of 256."""
    ours, theirs = latent_denoiser(device)
    name = f"latent denoiser, residual MLP, batch {DiffusionConfig.batch_size}"
    yield from _against_loop(name, 8.0, ours, theirs, device, rounds, (10, 200))


def latent_denoiser(device: torch.device) -> tuple[Training, ReferenceLoop]:
    """Return both trainings of the latent denoiser, from the same weights."""
    config = DiffusionConfig(updates=LONG)
    observation = sum(item.size for item in PUSHT_OBSERVATIONS if item.network)
    spec = diffusion_spec(config, ("state",), 256, observation, HISTORY, pusht_store().spec)
    torch.manual_seed(0)
    model = LatentDiffusion(spec).to(device)
    table = _latents(25_000, 256, spec.state_size, device)
    ours = DiffusionObjective(table, None, config.batch_size, config.seed)
    theirs = reference.latent_loss(table, config.batch_size, config.seed)
    settings = LoopSettings.of(config)
    return (
        Training(copy.deepcopy(model), ours, settings),
        ReferenceLoop(model, theirs, settings),
    )


def denoiser_training() -> Training:
    """Return the training of the latent denoiser on the CPU."""
    return latent_denoiser(torch.device("cpu"))[0]


def metaworld_training() -> Training:
    """Return the training of the Metaworld VAE on the CPU."""
    return VaeWork.of(metaworld_store(), metaworld_config(), torch.device("cpu")).ours()


def dp_update(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Train Diffusion Policy's U-Net m on chunks of 20 steps with batches of 256."""
    ours, theirs = diffusion_policy(pusht_store(), device)
    rounds = rounds or (3 if device.type == "cpu" else ROUNDS)
    name = "Diffusion Policy, U-Net m, chunk 20, batch 256"
    yield from _against_loop(name, 4.0, ours, theirs, device, rounds, (1, 50))


def diffusion_policy(
    store: SnippetStore,
    device: torch.device,
    *,
    chunk: int = 20,
    batch_size: int = 256,
    unet_size: str = "m",
) -> tuple[Training, ReferenceLoop]:
    """Return both trainings of Diffusion Policy, from the same weights; padded steps count."""
    sizes = vae_spec(VaeConfig(snippet_length=chunk, action_target="absolute"), store)
    config = DiffusionConfig(
        denoiser="unet",
        latent_layout=f"{chunk}x{sizes.action_size}",
        unet_size=unet_size,  # type: ignore[arg-type]
        prediction="epsilon",
        updates=LONG,
        batch_size=batch_size,
        clip_norm=0.0,
    )
    latent, observation = chunk * sizes.action_size, sizes.observation_size
    diffusion = diffusion_spec(config, ("state",), latent, observation, HISTORY, store.spec)
    torch.manual_seed(0)
    model = ActionDiffusion(
        ChunkSpec(**sizes.shared(), history=HISTORY, horizon=chunk, diffusion=diffusion)
    ).to(device)
    rule = WindowRule(chunk, before=HISTORY - 1, after=chunk - 1)
    keys = sizes.observation_keys
    batches = SnippetBatches(store, keys, rule, split="train", seed=0, device=device, every=True)
    settings = LoopSettings.of(config)
    objective = SnippetObjective(batches, None, batch_size, options={"padding": "counted"})
    theirs = reference.chunk_loss(SnippetCutter(store, keys, batches, batch_size))
    return (
        Training(copy.deepcopy(model), objective, settings),
        ReferenceLoop(model, theirs, settings),
    )


def vae_hypnettorch(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Train the VAE at Metaworld's sizes on all steps: T 500, decoder xs, policy 2 x 256."""
    config = metaworld_config(loss_steps=None)
    work = VaeWork.of(metaworld_store(), config, device)
    ours = work.ours()
    theirs = work.ours(HypnettorchVae(work.model), cuda_graphs="off")
    name = "VAE, Metaworld T 500, decoder xs, policy 2 x 256, batch 32, all steps"
    comparison = Comparison(
        f"{name}, {_on(device)}",
        "all policies of a batch at once",
        "hypnettorch's documented path, weights per sample into its MLP",
        "updates/s",
        at_least=1.3,
    )
    on_gpu = replace(comparison, name=f"{name}, GPU", at_least=40.0)
    cuda = device.type == "cuda"
    measured = on_gpu if cuda else comparison
    yield _training_steps(measured, ours, theirs.run, device, rounds, (1, 20))
    if not cuda:
        yield needs_cuda(on_gpu)


def vae_to_loss(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Train the Metaworld VAE until held-out losses are reached, with the default loss steps.

    The demonstrations are collected first. Both sides begin with the same weights, and are done
    when their EMA weights leave `LEVELS` of the variance of the held-out actions unexplained.
    Validation is not timed. The rounds differ in their initial weights.
    """
    races: list[tuple[Race, Race]] = []
    store = _collected()
    for seed in range(rounds or 1):
        work = VaeWork.of(
            store, metaworld_config(beta_kl=1e-5, time_input=False, seed=seed), device
        )
        per_sample = work.ours(HypnettorchVae(work.model), cuda_graphs="off")
        ours, theirs = Race(work, work.ours(), 10), Race(work, per_sample, 5)
        while not (ours.finished and theirs.finished):
            ours.advance()
            theirs.advance()
        races.append((ours, theirs))
    for place, level in enumerate(LEVELS):
        sides = [[race.reached[place] for race in side] for side in zip(*races, strict=True)]
        steps = ["/".join(str(steps) for _, steps in side) for side in sides]
        yield Comparison(
            "VAE, Metaworld T 500, decoder xs, policy 2 x 256, batch 32, to a held-out loss of"
            f" {level:.0%} of the variance, {_on(device)}",
            f"{VaeConfig.loss_steps} loss steps, all policies of a batch at once",
            "hypnettorch's documented path, all steps, weights per sample into its MLP",
            "s",
            at_least=3.0 if device.type == "cpu" else None,
            note=f"{steps[0]} against {steps[1]} training steps",
        ).measured(*([seconds for seconds, _ in side] for side in sides))


class Race:
    """A training that is timed until its EMA weights reach held-out losses.

    Args:
        work: What is trained, and its data.
        training: The training.
        every: Training steps between validations.

    Attributes:
        reached: Seconds of training, without validation, and training steps, for each of the
            `LEVELS` that is reached.
    """

    def __init__(self, work: VaeWork, training: Training, every: int) -> None:
        self._training, self._every = training, every
        held_out = work.batches.of_split("validation")
        self._batch = held_out.cut(*held_out.every())
        target, mask = work.model.target(self._batch), self._batch.mask
        self._variance = float((target.square().sum(-1) * mask).sum() / mask.sum())
        self._device = held_out.device
        self._seconds, self._steps = 0.0, 0
        self.reached: list[tuple[float, int]] = []

    @property
    def finished(self) -> bool:
        """Whether every loss is reached."""
        return len(self.reached) == len(LEVELS)

    def advance(self) -> None:
        """Train until the next validation, unless every loss is reached already.

        Raises:
            LwdctlError: A loss is not reached at all.
        """
        if self.finished:
            return
        self._seconds += seconds_of(partial(self._training.run, self._every), self._device)
        self._steps += self._every
        fraction = self._loss() / self._variance
        while not self.finished and fraction <= LEVELS[len(self.reached)]:
            self.reached.append((self._seconds, self._steps))
        if not self.finished and self._steps > MOST_STEPS:
            raise LwdctlError(f"{fraction:.0%} of the variance are left after {MOST_STEPS} steps")

    @torch.no_grad()
    def _loss(self) -> float:
        model: Any = self._training.update.average.eval()
        generator = torch.Generator(self._device).manual_seed(0)
        batch = self._batch
        return float(model.terms(batch, batch.task, batch.label, generator)["reconstruction"])


def matmul_share(device: torch.device, rounds: int | None = None) -> Iterator[Comparison]:
    """Compare a training step of the VAE with its matrix products alone."""
    cpu = torch.device("cpu")
    del device  # a statement about the CPU
    training, repeat = pusht_vae(cpu).ours(), 5
    products, flops = products_of_step(training)
    seconds, reference_seconds = alternate(
        lambda: training.run(repeat), products.repeated(repeat), rounds or ROUNDS
    )
    rates = ([repeat * flops / 1e9 / s for s in side] for side in (seconds, reference_seconds))
    yield Comparison(
        "matrix products of a VAE update, PushT T 64, batch 64, CPU",
        "a whole update",
        f"torch.matmul of the same {len(products.shapes)} sizes and nothing else",
        "GFLOP/s",
        at_least=0.6,
    ).measured(*rates)


class Products(TorchDispatchMode):
    """Records the matrix products of what runs inside the context.

    Attributes:
        shapes: Sizes of both factors of every product, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run an operation and note the factors of a product."""
        del types
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.shapes.append((args[0].shape, args[1].shape))
        elif name in ("addmm", "baddbmm"):
            self.shapes.append((args[1].shape, args[2].shape))
        return func(*args, **(kwargs or {}))

    def repeated(self, count: int) -> Callable[[], None]:
        """Return a function that computes every product `count` times, on random factors."""
        factors = [(torch.randn(a), torch.randn(b)) for a, b in self.shapes]

        def multiply() -> None:
            for _ in range(count):
                for a, b in factors:
                    torch.matmul(a, b)

        return multiply


def products_of_step(training: Training) -> tuple[Products, int]:
    """Return the matrix products of a training step, and its FLOPs as torch counts them."""
    training.run(1)
    counter, products = FlopCounterMode(display=False), Products()
    with counter:
        training.run(1)
    with products:
        training.run(1)
    return products, counter.get_total_flops()


def pusht_vae(device: torch.device) -> VaeWork:
    """Return the VAE of the PushT rows."""
    config = VaeConfig(policy_width=128, updates=LONG)
    return VaeWork.of(pusht_store(), config, device)


def metaworld_config(**changes: Any) -> VaeConfig:
    """Return the settings of the Metaworld rows."""
    config = VaeConfig(
        snippet_length=500, starts="first", decoder="xs", batch_size=32, updates=LONG
    )
    return replace(config, **changes)


def _against_loop(
    name: str,
    goal: float,
    ours: Training,
    theirs: ReferenceLoop,
    device: torch.device,
    rounds: int | None,
    counts: tuple[int, int],
) -> Iterator[Comparison]:
    def run(count: int) -> None:
        for _ in range(count):
            theirs.step()

    theirs.model.train()
    comparison = Comparison(f"{name}, {_on(device)}", "one update", LOOP, "updates/s")
    if device.type == "cuda":
        comparison = replace(comparison, ours="captured as one CUDA graph", at_least=goal)
    yield _training_steps(comparison, ours, run, device, rounds, counts)
    if device.type != "cuda":
        wanted = "captured as one CUDA graph"
        yield needs_cuda(Comparison(f"{name}, GPU", wanted, LOOP, "updates/s", at_least=goal))


def _training_steps(
    comparison: Comparison,
    ours: Training,
    theirs: Callable[[int], None],
    device: torch.device,
    rounds: int | None,
    counts: tuple[int, int],
) -> Comparison:
    """Compare training steps per second; `counts` says how many a round has, on CPU and CUDA."""
    count = counts[device.type == "cuda"]
    measured = compare(
        comparison,
        lambda: ours.run(count),
        lambda: theirs(count),
        rounds or ROUNDS,
        device,
        count=count,
    )
    return replace(measured, note="; ".join(ours.messages))


def _on(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "CPU"


def _latents(count: int, size: int, state: int, device: torch.device) -> LatentTable:
    draw = torch.Generator().manual_seed(0)
    mean, std = torch.randn(count, size, generator=draw), torch.full((count, size), 0.1)
    nothing = torch.zeros(count, dtype=torch.long)
    parts = (mean, std, torch.randn(count, state, generator=draw), nothing, nothing)
    return LatentTable(*(part.to(device) for part in parts))


def pusht_store(episodes: int = 206) -> SnippetStore:
    """Return random episodes of PushT's sizes and lengths, by default as many as it has."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 200, size=episodes)
    keys = [item for item in PUSHT_OBSERVATIONS if item.network]
    observations = [
        {item.name: _rows(rng, length, item.size) for item in keys} for length in lengths
    ]
    actions = [_actions(rng, length, PUSHT_ACTION) for length in lengths]
    return store_from_arrays(observations, actions, action=PUSHT_ACTION, env="pusht/push_t")


def _collected() -> SnippetStore:
    """Return demonstrations of the quick start's tasks, a fifth of them held out."""
    quiet = SilentProgress()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "demonstrations.hdf5"
        tasks = ("reach", "drawer-open", "button-press")
        collect(CollectConfig(task=tasks, episodes=12, workers=0), path, quiet)
        config = IngestConfig(paths=(str(path),), validation_fraction=0.2)
        with open_source("robomimic", (path,), config) as source:
            return ingest(source, config, None, quiet)[0]


def metaworld_store() -> SnippetStore:
    """Return random episodes of Metaworld's sizes and length."""
    rng = np.random.default_rng(0)
    observations = [_rows(rng, 500, 39) for _ in range(100)]
    meaning = ActionSpec(4, "delta", "normalized", (-1.0,) * 4, (1.0,) * 4)
    actions = [_actions(rng, 500, meaning) for _ in range(100)]
    return store_from_arrays(observations, actions, action=meaning)


def _rows(rng: np.random.Generator, steps: int, size: int) -> FloatArray:
    return rng.normal(size=(steps, size)).astype(np.float32)


def _actions(rng: np.random.Generator, steps: int, action: ActionSpec) -> FloatArray:
    """Return random actions (time, action) within the limits."""
    drawn = rng.uniform(action.low, action.high, size=(steps, action.size))
    return drawn.astype(np.float32)
