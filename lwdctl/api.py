"""The front door: what `import lwdctl` offers, one function per thing to do.

Each function takes and returns objects. What comes from a workspace goes back to the workspace: a
model trained on a stored data set is published as the command line would publish it, with its
lineage. What is built from arrays in memory stays in memory until `save` is called.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import torch
from torch import nn

from lwdctl import configs
from lwdctl.analysis.comparison import Comparison, compare_evaluations
from lwdctl.analysis.comparison import compare as compare_results
from lwdctl.analysis.tables import Table
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import EnvSpec, Episode
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.core.suggest import did_you_mean
from lwdctl.data.arrays import store_from_arrays
from lwdctl.deploy.runtime import ExportedPolicy
from lwdctl.envs.table import Environment, environment_named
from lwdctl.evaluation.cost import condition_cost
from lwdctl.evaluation.episodes import EpisodeResult, plan_episodes
from lwdctl.evaluation.results import Condition, ConditionResult, ResultRow, result_rows
from lwdctl.evaluation.rollout import rollout
from lwdctl.methods.lwd import TrainedLwd
from lwdctl.methods.method import Acting, TrainedPolicy
from lwdctl.methods.trained import LoadedPolicy, load_method, open_trained
from lwdctl.models.files import load_spec
from lwdctl.pipeline.recipe import make_plan, read_recipe
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.pipeline.runner import run_plan
from lwdctl.policies.loading import load_diffusion, load_vae
from lwdctl.policies.policy import BatchPolicy
from lwdctl.policies.single import SingleRobotPolicies
from lwdctl.training.device import choose_device
from lwdctl.training.diffusion import train_diffusion as train_diffusion_model
from lwdctl.training.encode import encode as encode_snippets
from lwdctl.training.loop import Trained
from lwdctl.training.vae import train_vae as train_vae_model

if TYPE_CHECKING:
    import pandas as pd

Place = Workspace | str | Path | None
"""A workspace; None takes `$LWDCTL_WORKSPACE`, else `./lwd-runs`."""


@dataclass(frozen=True)
class Dataset(Sequence[Episode]):
    """Demonstrations: a sequence of episodes, each with its arrays.

    Use `load_dataset` or `Dataset.from_arrays`.

    Attributes:
        store: The snippet store that holds the steps.
        artifact: The artifact that it stands in, None for data in memory.
        workspace: Where that stands.
    """

    store: SnippetStore
    artifact: Artifact | None = None
    workspace: Workspace = field(default_factory=Workspace.locate)

    @classmethod
    def from_arrays(cls, observations: Any, actions: Any, **settings: Any) -> Dataset:
        """Build a data set in memory, one episode per pair of arrays.

        Args:
            observations: Per episode an array (time, obs) or a mapping from key to such arrays.
            actions: Per episode an array (time, action).
            **settings: `rewards`, `tasks`, `labels`, `env`, `action`, `validation_fraction` and
                `seed`, as `lwdctl.data.arrays.store_from_arrays` has them.

        Raises:
            DataError: The arrays do not fit each other, or hold NaN or infinity.
        """
        return cls(store_from_arrays(observations, actions, **settings))

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.store.episodes)

    def __getitem__(self, index: Any) -> Any:
        """Return an episode with its arrays; a slice gives a list."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return self.store.episode(index % len(self))

    def __iter__(self) -> Iterator[Episode]:
        """Iterate over the episodes."""
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        """Say what the data are."""
        spec, name = self.store.spec, self.artifact.reference if self.artifact else "in memory"
        keys = ", ".join(f"{item.name} [{item.size}]" for item in spec.observations)
        return (
            f"<Dataset {name}: {len(self)} episodes, {self.store.steps} steps of {keys};"
            f" action [{spec.action.size}]>"
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per step: episode, step, task, label, observations, actions, reward.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        import pandas as pd

        parts = []
        for number, episode in enumerate(self):
            columns: dict[str, Any] = {
                "episode": number, "step": range(episode.length),
                "task": episode.task, "label": episode.label,
            }  # fmt: skip
            for name, rows in {**episode.observations, "action": episode.actions}.items():
                columns |= {f"{name}_{place}": rows[:, place] for place in range(rows.shape[1])}
            if episode.rewards is not None:
                columns["reward"] = episode.rewards
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)


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
        """Write `model.json` and both sets of weights."""
        self.trained.save(Path(directory))

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


@dataclass(frozen=True)
class ResultTable:
    """Results of an evaluation: one condition per policy, one row per task.

    Attributes:
        conditions: Per policy its rows and every episode.
    """

    conditions: tuple[ConditionResult, ...]

    @property
    def rows(self) -> list[ResultRow]:
        """All rows; the last one of each policy is for all tasks together."""
        return [row for condition in self.conditions for row in condition.rows]

    @property
    def episodes(self) -> dict[str, tuple[EpisodeResult, ...]]:
        """Every episode, by the name of the policy."""
        return {item.overall.policy: item.episodes for item in self.conditions}

    def _table(self) -> Table:
        columns = ("policy", "task", "success", "95 % interval", "score", "episodes", "errors")
        return Table(
            columns,
            tuple(
                (
                    row.policy,
                    row.task,
                    row.success.value,
                    f"{row.success.low:.3f} to {row.success.high:.3f}",
                    row.score,
                    row.episodes,
                    row.errors,
                )
                for row in self.rows
            ),
        )

    def __repr__(self) -> str:
        """Return the table as text."""
        return str(self._table())

    def _repr_markdown_(self) -> str:
        """Return the table for a notebook."""
        return self._table().to_markdown()

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per policy and task.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame([row.to_json() for row in self.rows])

    def save(self, directory: str | Path) -> Path:
        """Write `results.json` and `results.csv` into a directory, and return it."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        records = [condition.to_json() for condition in self.conditions]
        (target / "results.json").write_text(json.dumps(records, indent=1) + "\n")
        (target / "results.csv").write_text(self._table().to_csv())
        return target


def load_dataset(reference: str | Path = "", *, workspace: Place = None) -> Dataset:
    """Open demonstrations that were ingested.

    Args:
        reference: `"snippets/lift_mh"`, `"lift_mh:v2"` or a path; "" takes the newest.
        workspace: Where to look.

    Raises:
        ArtifactError: None, several unrelated, or a damaged one.
    """
    place = _workspace(workspace)
    artifact = place.resolve("snippets", str(reference))
    return Dataset(SnippetStore.open(artifact.path), artifact, place)


def load_policy(
    source: str | Path | Diffusion | Baseline | TrainedPolicy = "",
    *,
    workspace: Place = None,
    device: str = "auto",
    **settings: Any,
) -> LoadedPolicy | ExportedPolicy:
    """Open a trained policy, whatever its method.

    Args:
        source: A reference (`"diffusion/lift_mh"`, `"baseline/lift_mh:v2"`), the directory of an
            artifact or of an exported policy, or what `train_diffusion` or `train_baseline`
            returned. "" takes the newest LWD policy.
        workspace: Where to look.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
        **settings: How to run it: `horizon`, `latent`, `sampler`, `num_inference_steps`,
            `warm_start`; see `lwdctl.Acting`.

    Raises:
        ArtifactError: Nothing, or no policy, has that name, or it is damaged.
        ConfigError: A setting that the policy does not allow.
    """
    acting = _settings(Acting, settings)
    if isinstance(source, Diffusion):
        vae = source.latents.vae
        place = vae.model.observation.mean.device
        trained = TrainedLwd(vae.data.store.spec, place, vae.model, source.model)
        return LoadedPolicy(trained, acting, "lwd")
    if isinstance(source, Baseline):
        return LoadedPolicy(source.policy, acting, source.trained.spec["method"])
    if isinstance(source, TrainedPolicy):
        return LoadedPolicy(source, acting, type(source).__name__)
    if source and (Path(source) / "policy.json").is_file():
        if settings:
            raise ConfigError(
                f"an exported policy has no setting '{next(iter(settings))}'",
                "choose it when exporting: lwdctl export policy --help",
            )
        return ExportedPolicy(Path(source))
    found = _workspace(workspace)
    artifact = found.resolve("" if source else "diffusion", str(source))
    name = artifact.manifest.config.get("method", "lwd")
    return LoadedPolicy(open_trained(artifact, found, device), acting, name)


def ingest(
    format: str,  # noqa: A002 - the word of the command line
    *paths: str | Path,
    name: str = "",
    workspace: Place = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Dataset:
    """Read demonstrations of a data format into the workspace, as `lwdctl ingest` does.

    Args:
        format: Name of the data format (`"robomimic"`).
        *paths: Files or directories.
        name: Name of the artifact; "" takes the first file's.
        workspace: Where it goes.
        progress: Where to report; None draws bars with tqdm.
        **settings: Fields of `lwdctl.IngestConfig`.

    Raises:
        DataError: A file cannot be read as what it claims to be.
    """
    place = _workspace(workspace)
    values = {"format": format, "paths": [str(path) for path in paths], **settings}
    artifact = run_stage("ingest", place, values, name=name, progress=progress)
    return Dataset(SnippetStore.open(artifact.path), artifact, place)


def collect(
    simulator: str,
    *,
    name: str = "",
    workspace: Place = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Artifact:
    """Record demonstrations of scripted experts, as `lwdctl collect` does.

    Args:
        simulator: Where to collect (`"metaworld"`, `"robosuite"`).
        name: Name of the artifact.
        workspace: Where it goes.
        progress: Where to report; None draws bars with tqdm.
        **settings: Fields of `lwdctl.CollectConfig`.

    Returns:
        The artifact; `ingest("robomimic")` without a path reads the newest one.
    """
    values = {"simulator": simulator, **settings}
    return run_stage("collect", _workspace(workspace), values, name=name, progress=progress)


def train_vae(
    data: Dataset,
    config: configs.VaeConfig | None = None,
    *,
    encoder: nn.Module | None = None,
    name: str = "",
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
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: The settings do not fit the data.
        LwdctlError: Training diverged.
    """
    config = config or configs.VaeConfig()
    if data.artifact is None or encoder is not None:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_vae_model(
                data.store,
                config,
                directory=Path(folder),
                progress=progress or TqdmProgress(),
                encoder=encoder,
            )
        return Vae(trained, None, data)
    inputs = {"snippets": data.artifact}
    artifact = _publish("train-vae", data.workspace, config, inputs, name, progress)
    return Vae(
        _read_trained(artifact, load_vae(artifact, choose_device(config.device))), artifact, data
    )


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
    """
    config = config or configs.EncodeConfig()
    if vae.artifact is None:
        report = progress or TqdmProgress()
        return Latents(encode_snippets(vae.model, vae.data.store, config, None, report), vae)
    assert vae.data.artifact is not None
    inputs = {"snippets": vae.data.artifact, "vae": vae.artifact}
    artifact = _publish("encode", vae.data.workspace, config, inputs, name, progress)
    return Latents(LatentStore.open(artifact.path), vae, artifact)


def train_diffusion(
    latents: Latents,
    config: configs.DiffusionConfig | None = None,
    *,
    denoiser: nn.Module | None = None,
    name: str = "",
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
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: The settings do not fit the data.
        LwdctlError: Training diverged.
    """
    config = config or configs.DiffusionConfig()
    vae, data = latents.vae, latents.vae.data
    if latents.artifact is None or denoiser is not None:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_diffusion_model(
                latents.store,
                data.store,
                vae.model,
                config,
                directory=Path(folder),
                progress=progress or TqdmProgress(),
                denoiser=denoiser,
            )
        return Diffusion(trained, None, latents)
    assert data.artifact is not None
    assert vae.artifact is not None
    inputs = {"snippets": data.artifact, "vae": vae.artifact, "latents": latents.artifact}
    artifact = _publish("train-diffusion", data.workspace, config, inputs, name, progress)
    model = load_diffusion(artifact, choose_device(config.device))
    return Diffusion(_read_trained(artifact, model), artifact, latents)


def train_baseline(
    method: str,
    data: Dataset,
    config: configs.BaselineConfig | None = None,
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Baseline:
    """Train what LWD is compared with: `"dp"`, `"ldp"`, `"mlp"`, or a method of another package.

    Args:
        method: Name of the method.
        data: Demonstrations. Those of a workspace give an artifact there.
        config: Settings; None takes the method's defaults.
        name: Name of the artifact.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: The settings do not fit the method or the data.
        LwdctlError: Training diverged.
    """
    config = replace(config or configs.BaselineConfig(), method=method)
    if data.artifact is None:
        with tempfile.TemporaryDirectory() as folder:
            trained = load_method(method).train(
                data.store, config, Path(folder), progress or TqdmProgress()
            )
            trained.save(Path(folder))
            policy = load_method(method).open_directory(Path(folder), torch.device("cpu"), method)
            _ = policy.model  # reads the weights while they are there
        return Baseline(trained, None, data, policy)
    inputs = {"snippets": data.artifact}
    artifact = _publish("train-baseline", data.workspace, config, inputs, name, progress)
    policy = open_trained(artifact, data.workspace, config.device)
    return Baseline(_read_trained(artifact, policy.model), artifact, data, policy)


def evaluate(  # noqa: PLR0913 - the settings of an evaluation, by keyword only
    policies: Any,
    env: str | Environment | None = None,
    *,
    episodes: int = 50,
    tasks: Sequence[str] = (),
    labels: Sequence[str] = (),
    seed: int = EVALUATION_SEED_START,
    max_steps: int | None = None,
    perturbation: float = 0.0,
    perturbation_probability: float = 0.1,
    num_envs: int | None = None,
    workers: int = 0,
    timeout: float = 120.0,
    progress: Progress | None = None,
) -> ResultTable:
    """Run policies on the same initial states and score them with intervals.

    Args:
        policies: Name to policy: what `load_policy` returned, or anything with `reset` and `act`
            (see `lwdctl.Policy`). One policy alone is called `"policy"`.
        env: Where they run: a name (`"robosuite/Lift"`, `"pusht"`), a `gymnasium.Env`, or a factory
            that returns one or a simulator. None takes the environment of the first trained
            policy's data.
        episodes: Episodes per task, and per label where labels are named.
        tasks: Tasks to run; () takes all that `env` names.
        labels: Behavior labels to run one after the other.
        seed: First evaluation seed; every policy meets the same ones.
        max_steps: Steps per episode; None takes the environment's limit.
        perturbation: Magnitude of random perturbations, in the environment's unit.
        perturbation_probability: Probability of a perturbation before each step.
        num_envs: Environments stepped as one batch; None takes 1 for a `gymnasium.Env`, else up to
            16.
        workers: Processes that hold the environments; 0 holds them in this one.
        timeout: Seconds to wait for a simulator.
        progress: Where to report; None draws bars with tqdm.

    Raises:
        ConfigError: An unknown environment or task, or a policy that does not fit it.
    """
    named = dict(policies) if isinstance(policies, Mapping) else {"policy": policies}
    place, spec = _environment(env, named, tasks)
    plans = plan_episodes(spec, episodes, seed, tasks, labels)
    single = isinstance(place, gymnasium.Env)
    count = num_envs or (1 if single else min(16, len(plans)))
    found = []
    for name, policy in named.items():
        finished = rollout(
            _batch_policy(policy, count),
            place,
            plans,
            num_envs=count,
            workers=workers,
            max_steps=max_steps,
            perturbation=perturbation,
            perturbation_probability=perturbation_probability,
            timeout=timeout,
            progress=progress or TqdmProgress(),
        )
        rows = result_rows(
            finished.episodes,
            finished.score,
            _condition(name, policy, spec.adapter, perturbation),
            cost=partial(condition_cost, policy.cost())
            if isinstance(policy, LoadedPolicy)
            else None,
        )
        found.append(ConditionResult(tuple(rows), finished.episodes))
    return ResultTable(tuple(found))


def compare(
    results: ResultTable | str | Path | Sequence[str | Path] = "",
    against: str | None = None,
    *,
    metric: str | None = None,
    workspace: Place = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare policies: each one against one reference, on the same initial states.

    Args:
        results: What `evaluate` returned, or one or several references of evaluations; "" takes the
            newest evaluation.
        against: Policy that the others are tested against; None takes `lwd` if it is there.
        metric: Name of the score; None takes the environment's first metric.
        workspace: Where the evaluations stand.
        progress: Where to report.

    Returns:
        Tables, tests and figures; `save(directory)` writes them.

    Raises:
        ConfigError: An unknown metric or reference.
        ArtifactError: The conditions cannot be compared.
    """
    if isinstance(results, ResultTable):
        return compare_results(results.conditions, against, metric, progress)
    references = [results] if isinstance(results, str | Path) else results
    place = _workspace(workspace)
    found = [place.resolve("evaluation", str(item)) for item in references]
    return compare_evaluations(found, place.root, against=against, metric=metric, progress=progress)


def run(
    recipe: str | Path,
    *,
    smoke: bool = False,
    workspace: Place = None,
    progress: Progress | None = None,
) -> dict[str, Artifact]:
    """Run the stages of a recipe that are not up to date, as `lwdctl run` does.

    Args:
        recipe: The TOML file.
        smoke: Apply the recipe's toy sizes.
        workspace: Where its artifacts go.
        progress: Where to report; None draws bars with tqdm.

    Returns:
        Stage id to artifact.

    Raises:
        ConfigError: The recipe has an unknown setting.
        LwdctlError: A stage failed.
    """
    plan = make_plan(read_recipe(Path(recipe)), smoke=smoke)
    outcomes = run_plan(plan, _workspace(workspace), progress or TqdmProgress())
    return {item.step.id: item.artifact for item in outcomes if item.artifact}


def _workspace(place: Place) -> Workspace:
    return place if isinstance(place, Workspace) else Workspace.locate(place)


def _settings(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"unknown setting '{name}'", did_you_mean(name, known))
    return kind(**settings)


def _publish(
    command: str,
    workspace: Workspace,
    config: Any,
    inputs: Mapping[str, Artifact],
    name: str,
    progress: Progress | None,
) -> Artifact:
    references = {kind: str(item.path) for kind, item in inputs.items()}
    values = to_mapping(config)
    return run_stage(command, workspace, values, inputs=references, name=name, progress=progress)


def _read_trained(artifact: Artifact, model: nn.Module) -> Trained[Any]:
    """Return a published model; its last weights stay on disk."""
    return Trained(load_spec(artifact.path), model, model, artifact.manifest.summary)


def _environment(
    env: str | Environment | None, policies: Mapping[str, Any], tasks: Sequence[str]
) -> tuple[Environment, EnvSpec]:
    """Return what is run, and its description with the tasks to run."""
    trained = [item.source.env for item in policies.values() if isinstance(item, LoadedPolicy)]
    if env is None:
        if not trained:
            raise ConfigError("no policy says where it runs", 'name the environment: env="pusht"')
        env = trained[0]
    if isinstance(env, str):
        named = environment_named(env)
        # The data know the environment's settings and versions.
        same = [item for item in trained if item.adapter == named.adapter]
        settled = same[0] if same else named
        env = replace(settled, tasks=named.tasks if "/" in env else settled.tasks)
    if isinstance(env, EnvSpec):
        return env, env
    return env, EnvSpec(str(getattr(env, "__name__", env)), tuple(tasks) or ("",))


def _batch_policy(policy: Any, num_envs: int) -> BatchPolicy:
    if isinstance(policy, LoadedPolicy):
        return policy.batch_policy(num_envs)
    return SingleRobotPolicies(policy, num_envs)


def _condition(name: str, policy: Any, env: str, perturbation: float) -> Condition:
    if not isinstance(policy, LoadedPolicy):
        return Condition(name, "", env, perturbation=perturbation)
    acting, trained = policy.acting, policy.trained
    samples = trained.snippet_length is not None
    return Condition(
        name,
        acting.latent if isinstance(trained, TrainedLwd) else "",
        env,
        snippet_length=trained.snippet_length,
        horizon=trained.horizon(acting),
        perturbation=perturbation,
        sampler=acting.sampler if samples else "",
        num_inference_steps=acting.num_inference_steps if samples else None,
        warm_start=acting.warm_start if samples else 0.0,
    )
