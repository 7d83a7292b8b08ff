"""Opening, filling and showing what a workspace holds: data sets, policies, recipes, runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lwdctl.api.dataset import Dataset
from lwdctl.api.training import Baseline, Diffusion, Latents, Vae
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import user_path
from lwdctl.artifacts.manifest import MANIFEST_NAME, recording
from lwdctl.artifacts.references import HUB_PREFIX
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.workspace import Place, Workspace
from lwdctl.configs import IngestConfig
from lwdctl.core.config import from_mapping
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.records import SourceSpec
from lwdctl.core.trust import is_trusted, trusting
from lwdctl.core.untrusted import read_json
from lwdctl.data.inspection import Inspections, inspect_files
from lwdctl.data.reader import paths_of, source_settings
from lwdctl.deploy.runtime import ExportedPolicy
from lwdctl.envs.table import with_outside_environment
from lwdctl.methods.lwd import TrainedLwd
from lwdctl.methods.method import Acting, TrainedPolicy
from lwdctl.methods.trained import LoadedPolicy, open_directory, open_trained
from lwdctl.models.diffusion import LatentDiffusion
from lwdctl.models.files import SPEC, saved_method
from lwdctl.models.vae import PolicyVae
from lwdctl.pipeline.local import parse_jobs, run_recipe
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.recipe import read_recipe
from lwdctl.pipeline.run_stage import run_stage
from lwdctl.pipeline.slurm import run_as_jobs
from lwdctl.pipeline.status import StageStatus, recipe_status
from lwdctl.tracking.replay import REPLAY_SECONDS, Sent, replay
from lwdctl.tracking.tracking import Names, Tracking
from lwdctl.training.loop import choose_device

_CALLS_TO_A_POLICY = {
    Dataset: "lwdctl.train_diffusion(lwdctl.encode(lwdctl.train_vae(data)))",
    Vae: "lwdctl.train_diffusion(lwdctl.encode(vae))",
    Latents: "lwdctl.train_diffusion(latents)",
    Artifact: "artifact.path",
}
"""What to give `load_policy` instead of an object that is no policy."""


def load_dataset(reference: str | Path = "", *, workspace: Place = None) -> Dataset:
    """Open demonstrations that were ingested.

    Args:
        reference: `"snippets/lift_mh"`, `"lift_mh:v2"` or a path; "" takes the newest.
        workspace: Where to look.

    Raises:
        ArtifactError: None, several unrelated, or a damaged one; or `reference` is a data file.
    """
    place = Workspace.locate(workspace)
    try:
        artifact = place.resolve("snippets", str(reference))
    except ArtifactError as error:
        if not reference or not user_path(reference).is_file():
            raise
        where = "" if workspace is None else f", workspace={str(place.root)!r}"
        raise ArtifactError(
            f"{reference} is a file, not the reference or the directory of an artifact",
            f"if it holds demonstrations: data = lwdctl.ingest({str(reference)!r}{where})",
        ) from error
    return Dataset(SnippetStore.open(artifact.path), artifact, place)


def load_policy(
    source: str | Path | Diffusion | Baseline | TrainedPolicy = "",
    *,
    workspace: Place = None,
    device: str = "auto",
    trust: Collection[str] = (),
    **settings: Any,
) -> LoadedPolicy | ExportedPolicy:
    """Open a trained policy, whatever its method.

    Args:
        source: A reference (`"diffusion/lift_mh"`, `"baseline/lift_mh:v2"`), the directory of an
            artifact, of an exported policy or of what `save` wrote; what `train_diffusion` or
            `train_baseline` returned; or a `TrainedPolicy`. "" takes the newest LWD policy.
            `"hf:user/name[@revision]"` is first pulled into the workspace, unless it is there.
            A name without a version means the newest one, whatever its method; the text of the
            policy (`print(policy)`) begins with the method.
        workspace: Where to look.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`; a model in memory stays where it is.
        trust: Environments outside of lwdctl (`package.module:Class`), one or several, that
            `lwdctl.evaluate` may import where the data of the policy name them.
        **settings: How to run it: `horizon`, `latent`, `sampler`, `num_inference_steps`,
            `warm_start`, `temporal_ensemble`, `guidance`, `inpainting`, `replan_beyond`,
            `replan_after`; see `lwdctl.Acting`.

    Raises:
        ArtifactError: Nothing has that name, or it is damaged.
        ConfigError: It holds no policy, or a setting that the policy does not allow.
    """
    with trusting(trust):
        policy = _load_policy(source, workspace, device, settings)
        if isinstance(policy, LoadedPolicy) and is_trusted(policy.source.env.adapter):
            trained, spec = policy.trained, policy.source
            trained.source = replace(spec, env=replace(spec.env, stored=False))
    return policy


def _load_policy(
    source: str | Path | Diffusion | Baseline | TrainedPolicy,
    workspace: Place,
    device: str,
    settings: Mapping[str, Any],
) -> LoadedPolicy | ExportedPolicy:
    acting = from_mapping(Acting, settings)
    if isinstance(source, Diffusion):
        vae = source.latents.vae
        place = vae.model.observation.mean.device
        trained = TrainedLwd(vae.data.store.spec, place, vae.model, source.model)
        return LoadedPolicy(trained, acting, "lwd")
    if isinstance(source, Baseline):
        return LoadedPolicy(source.policy, acting, source.trained.spec["method"])
    if isinstance(source, TrainedPolicy):
        return LoadedPolicy(source, acting, type(source).__name__)
    if not isinstance(source, str | Path):
        raise ConfigError(
            f"source is an object of the type {type(source).__name__}, which is no trained policy",
            f"policy = lwdctl.load_policy({_CALLS_TO_A_POLICY.get(type(source), 'REFERENCE')})",
        )
    path = user_path(source)
    if source and (path / "policy.json").is_file():
        if settings:
            raise ConfigError(
                f"an exported policy has no setting '{next(iter(settings))}'",
                "choose it when exporting: lwdctl export policy --help",
            )
        return ExportedPolicy(path)
    saved = source and _open_saved(path, choose_device(device))
    if saved:
        return LoadedPolicy(saved[0], acting, saved[1])
    found = Workspace.locate(workspace)
    if str(source).startswith(HUB_PREFIX):
        from lwdctl.sharing.pull import pull_policy  # rarely needed, and it loads an HTTP client

        artifact = pull_policy(str(source), found, TqdmProgress())
    else:
        artifact = found.resolve("" if source else "diffusion", str(source))
    name = artifact.manifest.config.get("method", "lwd")
    return LoadedPolicy(open_trained(artifact, found, device), acting, name)


def _open_saved(path: Path, device: torch.device) -> tuple[TrainedPolicy, str] | None:
    """Open what `Diffusion.save` or `Baseline.save` wrote; None for anything else."""
    if (path / "source.json").is_file():
        source = SourceSpec.from_mapping(
            read_json(path / "source.json", allow_nan=True), str(path / "source.json")
        )
        vae, model = PolicyVae.load(path / "vae"), LatentDiffusion.load(path / "diffusion")
        return TrainedLwd(source, device, vae.to(device), model.to(device)), "lwd"
    if (path / SPEC).is_file() and not (path / MANIFEST_NAME).is_file():
        method = saved_method(path)
        if not method:
            raise ConfigError(
                f"{path} holds a model, but no policy",
                "open what save wrote of a diffusion model or a baseline",
            )
        return open_directory(method, path, device), method
    return None


def ingest(
    *paths: str | Path,
    name: str = "",
    workspace: Place = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Dataset:
    """Read demonstrations into the workspace, as `lwdctl ingest` does.

    Args:
        *paths: Files or directories. The first may be the name of a data format instead
            (`"robomimic"`); without one, the format is recognized by their content.
        name: Name of the artifact; "" takes the first file's.
        workspace: Where it goes.
        progress: Where to report; None draws bars with tqdm.
        **settings: Fields of `lwdctl.IngestConfig`.

    Raises:
        DataError: A file cannot be read as what it claims to be.
    """
    place = Workspace.locate(workspace)
    values = source_settings(paths, settings)
    artifact = run_stage("ingest", values, name=name, workspace=place, progress=progress)
    return Dataset(SnippetStore.open(artifact.path), artifact, place)


def collect(
    simulator: str,
    *,
    name: str = "",
    resume: bool = False,
    workspace: Place = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Artifact:
    """Record demonstrations of scripted experts, as `lwdctl collect` does.

    Args:
        simulator: Where to collect (`"metaworld"`, `"robosuite"`).
        name: Name of the artifact.
        resume: Go on after the episodes that an interrupted call of the same settings finished.
        workspace: Where it goes.
        progress: Where to report; None draws bars with tqdm.
        **settings: Fields of `lwdctl.CollectConfig`.

    Returns:
        The artifact; `ingest("robomimic")` without a path reads the newest one.
    """
    values = {"simulator": simulator, **settings}
    return run_stage(
        "collect", values, name=name, resume=resume, workspace=workspace, progress=progress
    )


def run(  # noqa: PLR0913 - the options of `lwdctl run`, by keyword only
    recipe: str | Path,
    *,
    assignments: str | Sequence[str] = (),
    sweep: str | Sequence[str] = (),
    smoke: bool = False,
    start: str = "",
    until: str = "",
    jobs: int | Literal["auto"] = 1,
    executor: Literal["here", "slurm", "local"] = "here",
    slurm: str | Sequence[str] = (),
    detach: bool = False,
    eval_jobs: int = 0,
    track: Names = (),
    track_project: str = "",
    workspace: Place = None,
    progress: Progress | None = None,
) -> dict[str, Artifact]:
    """Run the stages of a recipe that are not up to date, as `lwdctl run` does.

    Args:
        recipe: The TOML file.
        assignments: Settings to change, one or several, as `--set` takes them
            (`"train-vae.updates=500"`).
        sweep: Settings with several values, as `--sweep` takes them (`"seeds=0,1,2"`), beside the
            recipe's `[sweep]` table.
        smoke: Apply the recipe's toy sizes.
        start: First stage to run again, with all later ones; "" runs what is not up to date.
        until: Last stage to run; "" runs all.
        jobs: Number of stages to run at once, each in a process of its own; `"auto"` by cores,
            memory and GPUs. 1 runs them one after the other in this process.
        executor: `"slurm"` runs every stage as a job of a cluster, `"local"` as such a job on this
            machine; `"here"` follows `jobs`.
        slurm: Options of sbatch for every job (`["partition=gpu,gpus=1", "time=4:00:00"]`).
        detach: Return when the jobs of Slurm are submitted, with what is up to date.
        eval_jobs: Most jobs that the conditions of one evaluation are split into; 0 for one each.
        track: Trackers that follow its trainings and evaluations, one or several: `"wandb"`,
            `"trackio"`, `"tensorboard"`.
        track_project: Project that they file them under; "" takes the workspace's name.
        workspace: Where its artifacts go.
        progress: Where to report; None draws bars with tqdm.

    Returns:
        Stage id to artifact.

    Raises:
        ConfigError: The recipe has an unknown setting, or options do not go together.
        MissingExtraError: The package of a tracker is not installed.
        LwdctlError: A stage failed.
    """
    if jobs != 1 and executor != "here":
        raise ConfigError("jobs is about stages on this machine, executor about jobs of a cluster")
    if (slurm or detach) and executor != "slurm":
        raise ConfigError("slurm and detach are about jobs of Slurm", 'give executor="slurm"')
    if eval_jobs and executor == "here":
        raise ConfigError("eval_jobs is about jobs of a cluster", "give executor, or jobs instead")
    planned = RecipeRun(
        read_recipe(Path(recipe), _texts(sweep)),
        Workspace.locate(workspace),
        _texts(assignments),
        smoke,
        start,
        until,
        Tracking.of(track, track_project),
    )
    with recording(command=f"lwdctl.run({str(recipe)!r})"):
        progress = progress or TqdmProgress()
        if executor == "here":
            outcomes = run_recipe(planned, progress, jobs=parse_jobs(str(jobs)))
        else:
            outcomes = run_as_jobs(
                planned, progress, executor, slurm=_texts(slurm), detach=detach, eval_jobs=eval_jobs
            )
    return {item.step.id: item.artifact for item in outcomes if item.artifact}


def status(
    recipe: str | Path,
    *,
    assignments: str | Sequence[str] = (),
    sweep: str | Sequence[str] = (),
    smoke: bool = False,
    workspace: Place = None,
) -> list[StageStatus]:
    """Return where the stages of a recipe stand, as `lwdctl status` shows it.

    Args:
        recipe: The TOML file.
        assignments: Settings that were changed, as `--set` takes them.
        sweep: What was swept beside the recipe's `[sweep]` table.
        smoke: Look at the run at toy size.
        workspace: Where its artifacts are.

    Raises:
        ConfigError: The recipe has an unknown setting.
    """
    place = Workspace.locate(workspace)
    return recipe_status(
        RecipeRun(read_recipe(Path(recipe), _texts(sweep)), place, _texts(assignments), smoke)
    )


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def inspect(*paths: str | Path, progress: Progress | None = None, **settings: Any) -> Inspections:
    """Say what is in files before anything is made of them, as `lwdctl inspect` does.

    Args:
        *paths: Files or directories. The first may be the name of a data format instead
            (`"robomimic"`); without one, the format is recognized by their content.
        progress: Where to report; None draws bars with tqdm.
        **settings: Fields of `lwdctl.IngestConfig` that change what is read.

    Returns:
        What was found: `print` shows the text of the command, `files` holds one
        `lwdctl.Inspection` per file, `to_mapping` gives JSON-ready values. Files that cannot be
        ingested are no error: their `error` and `hint` say why.

    Raises:
        DataError: No path is given.
        ConfigError: An unknown setting, or a value that it does not accept.
    """
    config = from_mapping(IngestConfig, source_settings(paths, settings))
    files, progress = paths_of(config.paths), progress or TqdmProgress()
    return inspect_files(files, config, progress, with_outside_environment)


def track(
    artifact: str | Path | Artifact,
    to: Names,
    *,
    project: str = "",
    timeout: float = REPLAY_SECONDS,
    workspace: Place = None,
    progress: Progress | None = None,
) -> Sent:
    """Send a finished or interrupted run to trackers, as `lwdctl track` does.

    Args:
        artifact: An artifact; or `"vae/lift_mh"`, `"lift_mh:v2"`, the directory of an artifact or
            of an interrupted run, or the id of a run.
        to: `"wandb"`, `"trackio"` or `"tensorboard"`, one or several.
        project: Project that it is filed under; "" takes the workspace's name.
        timeout: Seconds without a sign of life after which a tracker counts as hung.
        workspace: Where to look.
        progress: Where to report; None draws bars with tqdm.

    Returns:
        The run's id and project in the trackers.

    Raises:
        ArtifactError: There is no such run, or it is damaged or still going on.
        ConfigError: An unknown tracker.
        MissingExtraError: A tracker's package is not installed.
        LwdctlError: A tracker failed; what was sent is kept.
    """
    reference = str(artifact.path.resolve()) if isinstance(artifact, Artifact) else str(artifact)
    tracking = Tracking.of(to, project)
    return replay(
        reference, Workspace.locate(workspace), tracking, progress or TqdmProgress(), timeout
    )
