"""Training and encoding: functions from data to models, with what each was made from."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lwdctl import configs
from lwdctl.api.dataset import Dataset
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import user_path, write_durably
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import Settings, to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.plain_text import listed
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.methods.method import TrainedPolicy
from lwdctl.methods.trained import open_directory, open_trained, train_method
from lwdctl.models.diffusion import load_diffusion
from lwdctl.models.files import EMA_WEIGHTS, SPEC, WEIGHTS, load_spec
from lwdctl.models.vae import load_vae
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.tracking.history import write_summary
from lwdctl.tracking.tracking import Names, Tracking
from lwdctl.training.diffusion import train_diffusion as train_diffusion_model
from lwdctl.training.encode import encode as encode_snippets
from lwdctl.training.loop import Trained, choose_device
from lwdctl.training.vae import train_vae as train_vae_model

C = TypeVar("C", bound=Settings)

_MODEL_FILES = (SPEC, EMA_WEIGHTS, WEIGHTS)


@dataclass(frozen=True, repr=False)
class _TrainedModel:
    """A trained model with what it was trained on.

    Attributes:
        trained: EMA weights, last weights and the summary.
        artifact: The artifact that it was published as, None for a model in memory.
    """

    trained: Trained[Any]
    artifact: Artifact | None

    @property
    def model(self) -> Any:
        """The module with its EMA weights, in evaluation mode."""
        return self.trained.model

    @property
    def summary(self) -> Mapping[str, Any]:
        """Training steps, seconds, last losses and sizes."""
        return self.trained.summary

    def save(self, directory: str | Path) -> None:
        """Write `model.json`, and the weights with and without EMA, into a directory.

        Raises:
            ConfigError: The directory holds anything but such files, which are replaced.
        """
        target = user_path(directory)
        _check_replaced(target, _MODEL_FILES)
        if self.artifact is None:
            self.trained.save(target)
            return
        target.mkdir(parents=True, exist_ok=True)
        for name in _MODEL_FILES:
            shutil.copy(self.artifact.payload(name), target)

    def __repr__(self) -> str:
        """Say what was trained and how well."""
        name = self.artifact.reference if self.artifact else "in memory"
        shown = ("reconstruction", "kl", "denoising", "squared_error")
        losses = ", ".join(f"{key} {self.summary[key]:.3g}" for key in shown if key in self.summary)
        updates = self.summary.get("updates", 0)
        return f"<{type(self).__name__} {name}: {updates} training steps, {losses or 'no loss'}>"


@dataclass(frozen=True, repr=False)
class Vae(_TrainedModel):
    """A trained policy VAE and its data."""

    data: Dataset


@dataclass(frozen=True, repr=False)
class Diffusion(_TrainedModel):
    """A trained latent diffusion model, with the latents that it learned to sample."""

    latents: Latents

    def save(self, directory: str | Path) -> None:
        """Write the policy, the VAE included, into a directory that `load_policy` opens.

        Raises:
            ConfigError: The directory holds anything but such a policy, which is replaced.
        """
        target = user_path(directory)
        _check_replaced(target, ("diffusion", "vae", "source.json"))
        for part in ("diffusion", "vae"):
            _check_replaced(target / part, _MODEL_FILES)
        super().save(target / "diffusion")
        self.latents.vae.save(target / "vae")
        source = self.latents.vae.data.store.spec.to_mapping()
        write_durably(target / "source.json", f"{json.dumps(source, indent=1)}\n".encode())


@dataclass(frozen=True, repr=False)
class Baseline(_TrainedModel):
    """A trained baseline and its data."""

    data: Dataset
    policy: TrainedPolicy


@dataclass(frozen=True)
class Latents:
    """Encoded snippets, with the VAE that encoded them."""

    store: LatentStore
    vae: Vae
    artifact: Artifact | None = None

    def __len__(self) -> int:
        """Return the number of snippets."""
        return len(self.store.mean)

    def __repr__(self) -> str:
        """Say how many there are."""
        name = self.artifact.reference if self.artifact else "in memory"
        return f"<Latents {name}: {len(self)} snippets of {self.store.latent_size} components>"


def train_vae(
    data: Dataset,
    config: configs.VaeConfig | None = None,
    *,
    encoder: nn.Module | None = None,
    name: str = "",
    resume: bool = False,
    track: Names = (),
    track_project: str = "",
    progress: Progress | None = None,
) -> Vae:
    """Train the policy VAE (paper section 3.2).

    Args:
        data: Demonstrations. Those of a workspace give an artifact there, those in memory a model
            in memory.
        config: Settings; None takes the defaults.
        encoder: A module of your own in the place of the encoder: it maps steps
            (batch, time, obs + action) and mask (batch, time) to mean and log-variance, each
            (batch, latent). The model then stays in memory.
        name: Name of the artifact.
        resume: Go on from the last checkpoint of the newest unfinished run of the same settings,
            bit for bit on a CPU. A training in memory keeps none.
        track: Trackers that follow the training, one or several: `"wandb"`, `"trackio"`,
            `"tensorboard"`.
        track_project: Project that they file it under; "" takes the workspace's name.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: An argument is of another type, the settings do not fit the data, or nothing
            can be resumed.
        MissingExtraError: The package of a tracker is not installed.
        LwdctlError: Training diverged.
    """
    _check_given(data, Dataset)
    tracking = Tracking.of(track, track_project)
    config = _checked(config, configs.VaeConfig)
    if data.artifact is not None and encoder is None:
        inputs = {"snippets": data.artifact}
        options = {"name": name, "resume": resume, "track": tracking, "progress": progress}
        artifact = _publish("train-vae", config, inputs, data.workspace, **options)
        model = load_vae(artifact, choose_device(config.device))
        return Vae(_published(artifact, model), artifact, data)
    with _run_in_memory("vae", data, config, resume, tracking, progress) as run:
        trained = train_vae_model(data.store, config, encoder=encoder, **run)
        write_summary(run["directory"], trained.summary)
    return Vae(trained, None, data)


def encode(
    vae: Vae,
    config: configs.EncodeConfig | None = None,
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Latents:
    """Encode every snippet of the VAE's data (paper section 3.3).

    Args:
        vae: What `train_vae` returned.
        config: Settings; None takes the defaults.
        name: Name of the artifact.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: `vae` is no `Vae`, or `config` no `EncodeConfig`.
    """
    _check_given(vae, Vae)
    config, data = _checked(config, configs.EncodeConfig), vae.data
    if data.artifact and vae.artifact:
        inputs = {"snippets": data.artifact, "vae": vae.artifact}
        options = {"name": name, "progress": progress}
        artifact = _publish("encode", config, inputs, data.workspace, **options)
        return Latents(LatentStore.open(artifact.path), vae, artifact)
    store = encode_snippets(vae.model, data.store, config, None, progress or TqdmProgress())
    return Latents(store, vae)


def train_diffusion(
    latents: Latents,
    config: configs.DiffusionConfig | None = None,
    *,
    denoiser: nn.Module | None = None,
    name: str = "",
    resume: bool = False,
    track: Names = (),
    track_project: str = "",
    progress: Progress | None = None,
) -> Diffusion:
    """Train the diffusion model that samples latents (paper section 3.3).

    Args:
        latents: What `encode` returned.
        config: Settings; None takes the defaults.
        denoiser: A module of your own in the place of the denoiser: it maps noisy latents
            (batch, latent), timesteps (batch,) and condition (batch, condition) to the prediction
            (batch, latent). The model then stays in memory.
        name: Name of the artifact.
        resume: Go on from the last checkpoint of the newest unfinished run of the same settings,
            bit for bit on a CPU. A training in memory keeps none.
        track: Trackers that follow the training, one or several: `"wandb"`, `"trackio"`,
            `"tensorboard"`.
        track_project: Project that they file it under; "" takes the workspace's name.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: An argument is of another type, the settings do not fit the data, or nothing
            can be resumed.
        MissingExtraError: The package of a tracker is not installed.
        LwdctlError: Training diverged.
    """
    _check_given(latents, Latents)
    tracking = Tracking.of(track, track_project)
    config = _checked(config, configs.DiffusionConfig)
    vae, data = latents.vae, latents.vae.data
    if data.artifact and vae.artifact and latents.artifact and denoiser is None:
        inputs = {"snippets": data.artifact, "vae": vae.artifact, "latents": latents.artifact}
        options = {"name": name, "resume": resume, "track": tracking, "progress": progress}
        artifact = _publish("train-diffusion", config, inputs, data.workspace, **options)
        model = load_diffusion(artifact, choose_device(config.device))
        return Diffusion(_published(artifact, model), artifact, latents)
    with _run_in_memory("diffusion", data, config, resume, tracking, progress) as run:
        trained = train_diffusion_model(
            latents.store, data.store, vae.model, config, denoiser=denoiser, **run
        )
        write_summary(run["directory"], trained.summary)
    return Diffusion(trained, None, latents)


def train_baseline(
    method: str,
    data: Dataset,
    config: configs.BaselineConfig | None = None,
    *,
    name: str = "",
    resume: bool = False,
    track: Names = (),
    track_project: str = "",
    progress: Progress | None = None,
) -> Baseline:
    """Train what LWD is compared with: `"dp"`, `"ldp"`, `"mlp"`, or a method of another package.

    Args:
        method: Name of the method.
        data: Demonstrations. Those of a workspace give an artifact there.
        config: Settings; None takes the method's defaults.
        name: Name of the artifact.
        resume: Go on from the last checkpoint of the newest unfinished run of the same settings,
            bit for bit on a CPU. A training in memory keeps none.
        track: Trackers that follow the training, one or several: `"wandb"`, `"trackio"`,
            `"tensorboard"`.
        track_project: Project that they file it under; "" takes the workspace's name.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: An argument is of another type, the settings do not fit the method or the
            data, or nothing can be resumed.
        MissingExtraError: The package of a tracker is not installed.
        LwdctlError: Training diverged.
    """
    if not isinstance(method, str):
        raise ConfigError(
            f"method is of the type {type(method).__name__}, expected a name",
            'lwdctl.train_baseline("mlp", data)',
        )
    _check_given(data, Dataset)
    tracking = Tracking.of(track, track_project)
    config = replace(_checked(config, configs.BaselineConfig), method=method)
    if data.artifact is not None:
        inputs = {"snippets": data.artifact}
        options = {"name": name, "resume": resume, "track": tracking, "progress": progress}
        artifact = _publish("train-baseline", config, inputs, data.workspace, **options)
        policy = open_trained(artifact, data.workspace, config.device)
        return Baseline(_published(artifact, policy.model), artifact, data, policy)
    with _run_in_memory("baseline", data, config, resume, tracking, progress) as run:
        trained = train_method(data.store, config, **run)
        trained.save(run["directory"])
        write_summary(run["directory"], trained.summary)
        policy = open_directory(method, run["directory"], torch.device("cpu"))
        _ = policy.model  # reads the weights while they are there
    return Baseline(trained, None, data, policy)


def _check_replaced(directory: Path, names: Collection[str]) -> None:
    """Check that saving replaces all that a directory holds, so that no two models are mixed.

    Hidden files, as those of a file manager, do not matter.

    Args:
        directory: Where a model is saved; it may be missing.
        names: Names of all files and directories that are written.

    Raises:
        ConfigError: It holds anything else, or is a file.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory} is a file", "save into a directory")
    found = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    if others := sorted(found - set(names)):
        raise ConfigError(
            f"{directory} is not empty: it holds {listed(others)}", "save into another directory"
        )


_HINTS: Mapping[type, tuple[str, str, Mapping[type, str]]] = {
    Dataset: (
        "data = lwdctl.load_dataset({!r})",
        "data = lwdctl.Dataset.from_arrays(observations, actions)",
        {},
    ),
    Vae: (
        'lwdctl.run_stage("encode", inputs={{"vae": {!r}}})',
        "vae = lwdctl.train_vae(data)",
        {Dataset: "lwdctl.encode(lwdctl.train_vae(data))"},
    ),
    Latents: (
        'lwdctl.run_stage("train-diffusion", inputs={{"latents": {!r}}})',
        "latents = lwdctl.encode(vae)",
        {
            Dataset: "lwdctl.train_diffusion(lwdctl.encode(lwdctl.train_vae(data)))",
            Vae: "lwdctl.train_diffusion(lwdctl.encode(vae))",
        },
    ),
}
"""Type to the line that uses a reference instead, the one that makes an object of it, and those
for objects that come before it."""


def _check_given(given: object, needed: type) -> None:
    """Check that a function got what it works on.

    Raises:
        ConfigError: It is of another type; the hint is the line to write.
    """
    if isinstance(given, needed):
        return
    if isinstance(given, Artifact):
        given = given.reference
    of_reference, made, before = _HINTS[needed]
    hint = before.get(type(given), made)
    if isinstance(given, str | Path):
        is_file = needed is Dataset and user_path(given).is_file()
        hint = ("data = lwdctl.ingest({!r})" if is_file else of_reference).format(str(given))
    shown = repr(str(given)) if isinstance(given, str | Path) else "the argument"
    raise ConfigError(
        f"{shown} is of the type {type(given).__name__}, expected {needed.__name__}", hint
    )


def _checked(config: Any, kind: type[C]) -> C:
    """Return the settings of a function, the defaults for None.

    Raises:
        ConfigError: They are of another type.
    """
    if config is None:
        return kind()
    if not isinstance(config, kind):
        given = config.items() if isinstance(config, Mapping) else ()
        settings = ", ".join(f"{name}={value!r}" for name, value in given)
        raise ConfigError(
            f"config is an object of the type {type(config).__name__}, expected a {kind.__name__}",
            f"config=lwdctl.{kind.__name__}({settings})",
        )
    return config


@contextmanager
def _run_in_memory(
    kind: str,
    data: Dataset,
    config: Any,
    resume: bool,
    tracking: Tracking,
    progress: Progress | None,
) -> Iterator[dict[str, Any]]:
    """Give a training a directory for its checkpoints that vanishes with it.

    Raises:
        ConfigError: It is to be resumed.
    """
    if resume:
        raise ConfigError(
            "a training in memory keeps no checkpoint that it could resume from",
            "ingest the data and train without a module of your own: data = lwdctl.ingest(...)",
        )
    progress = progress or TqdmProgress()
    with (
        tempfile.TemporaryDirectory() as folder,
        tracking.follow_in_memory(
            kind, data.store.spec.env.adapter, to_mapping(config), Path(folder), progress
        ),
    ):
        yield {"directory": Path(folder), "progress": progress}


def _publish(
    command: str, config: Any, inputs: Mapping[str, Artifact], workspace: Workspace, **options: Any
) -> Artifact:
    references = {kind: str(item.path) for kind, item in inputs.items()}
    return run_stage(command, config, inputs=references, workspace=workspace, **options)


def _published(artifact: Artifact, model: nn.Module) -> Trained[Any]:
    return Trained(load_spec(artifact.path), model, model, artifact.manifest.summary)
