"""`lwdctl export`: write a policy or a snippet store for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import user_path
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.failures import CommandLineError
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE, configuration
from lwdctl.cli.output import print_json, print_summary, print_text, reserved_stdout
from lwdctl.configs import IngestConfig
from lwdctl.core.progress import Progress
from lwdctl.core.records import EnvSpec, SourceSpec
from lwdctl.data.reader import ingest_command

if TYPE_CHECKING:
    from lwdctl.data.lerobot_export import LeRobotExport
    from lwdctl.data.minari_package import Exported


FORMATS = ("policy", "minari", "lerobot")

_DIFFUSION = Annotated[
    str,
    typer.Option(
        help="Diffusion model of the policy: NAME, NAME:v2 or a path  [default: the newest]",
        metavar="REF",
        show_default=False,
    ),
]
_BASELINE = Annotated[
    str,
    typer.Option(
        help="Trained baseline to export instead (dp, ldp, mlp): NAME, NAME:v2 or a path.",
        metavar="REF",
        show_default=False,
    ),
]
_SNIPPETS = Annotated[
    str,
    typer.Argument(help="Snippet store to export: NAME, NAME:v2 or a path; default: the newest."),
]
_LABEL = Annotated[
    str, typer.Option(help="Export only episodes with this behavior label.", metavar="NAME")
]
_RUN = Annotated[
    str,
    typer.Option(
        "--run",
        help="Name of an artifact, to choose its lineage where several have a diffusion model.",
        metavar="NAME",
        show_default=False,
    ),
]


class Formats(TyperGroup):
    """The export formats; an unknown one is an error that lists the known ones."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of one format.

        Raises:
            CommandLineError: No format has that name.
        """
        if cmd_name not in FORMATS and not cmd_name.startswith("-"):
            raise CommandLineError(
                f"there is no export format '{cmd_name}'", f"known: {', '.join(FORMATS)}"
            )
        return super().get_command(ctx, cmd_name)


command = typer.Typer(
    cls=Formats,
    help="Export a policy or a dataset for other programs.",
    add_completion=False,
    rich_markup_mode=None,
)


@command.command()
def policy(
    diffusion: _DIFFUSION = "",
    baseline: _BASELINE = "",
    run_name: _RUN = "",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write  [default: NAME-policy]", metavar="DIR", show_default=False
        ),
    ] = None,
    horizon: Annotated[
        str | None,
        typer.Option(
            help="Action horizon: steps executed per re-plan, or 'episode' for one plan all episode"
            "  [default: the snippet length; of a dp, its --executed]",
            metavar="INTEGER|episode",
            show_default=False,
        ),
    ] = None,
    num_inference_steps: Annotated[
        int,
        typer.Option(
            help="Number of denoising (DDIM) steps per re-plan.", min=1, metavar="INTEGER"
        ),
    ] = 10,
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Export a trained policy to a directory that runs on a robot, without torch.

    The directory holds two ONNX graphs (plan.onnx re-plans, act.onnx takes a control step) and
    policy.json. Before it is written, the exported policy is compared with the trained one on
    demonstrations and on random inputs: the largest differences of an action before and after
    clipping, and the times of both per control step and per re-plan, are printed and stored in
    policy.json.

    On the robot: pip install numpy onnxruntime msgspec; pip install --no-deps . in a checkout; then
    lwdctl.deploy.runtime.ExportedPolicy(DIR) (examples/control_loop.py).
    """
    del debug_mode
    workspace = Workspace.locate(workspace_path or None)
    progress = make_progress(quiet=be_quiet)
    if diffusion and baseline:
        raise CommandLineError("--diffusion and --baseline name two policies", "leave one out")
    kind, named = ("baseline", baseline) if baseline else ("diffusion", diffusion)
    artifact = workspace.resolve(kind, named, run_name)
    how = artifact.method or ("" if named else "the newest")
    progress.message(f"reading {artifact.reference}" + (f" ({how})" if how else ""))
    directory = user_path(output or f"{artifact.name}-policy")
    inputs = {**workspace.ancestors(artifact), kind: artifact}
    with reserved_stdout():
        from lwdctl.deploy.export import export_policy
        from lwdctl.methods.method import Acting

        how_to_run = {"horizon": horizon, "num_inference_steps": num_inference_steps}
        acting = configuration(Acting, how_to_run, "export policy")
        exported = export_policy(inputs, directory, acting, progress)
    summary = {
        "source": artifact.reference,
        "horizon": "episode" if exported.horizon is None else exported.horizon,
        "num_inference_steps": exported.num_inference_steps,
        "observations": {item.name: item.size for item in exported.observations},
        "bytes": sum(int(file["bytes"]) for file in exported.files.values()),
        "parity": exported.parity,
    }
    _print(directory, summary, as_json=as_json)


def _print(path: Path, summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(None, path, summary)
        return
    print_text(str(path))
    print_summary(summary)


@command.command()
def minari(
    snippets: _SNIPPETS = "",
    identifier: Annotated[
        str,
        typer.Option(
            "--id", help="Name of the Minari dataset: NAME/task/level-v0.", metavar="NAME"
        ),
    ] = "",
    output: Annotated[
        Path,
        typer.Option(
            help="Folder that holds Minari datasets.", metavar="DIR", envvar="MINARI_DATASETS_PATH"
        ),
    ] = Path("minari"),
    task_name: Annotated[
        str,
        typer.Option("--task", help="Task to export, where the store has several.", metavar="NAME"),
    ] = "",
    label: _LABEL = "",
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Export the episodes of a snippet store as a Minari dataset, for minari.load_dataset.

    An episode without a recorded last observation loses its last action.

    A Minari dataset does not hold labels, recorded initial states, the simulator's settings or
    real terminations: every episode ends as a truncation. lwdctl can evaluate on an ingested copy
    of it only where Gymnasium can rebuild the environment.
    """
    del debug_mode
    if not identifier:
        raise CommandLineError("--id is missing", "for example: --id lift/scripted/mh-v0")
    progress = make_progress(quiet=be_quiet)
    artifact = _snippets(workspace_path, snippets, "minari NAME --id ...", progress)
    with reserved_stdout():
        from lwdctl.artifacts.snippets import SnippetStore
        from lwdctl.data.minari_package import MinariTarget, export_minari

        target = MinariTarget(identifier, user_path(output), task_name, label, artifact.reference)
        store = SnippetStore.open(artifact.path)
        exported = export_minari(store, target, progress)
    summary = {
        "source": artifact.reference,
        "dataset": target.identifier,
        **{name: value for name, value in asdict(exported).items() if name != "path"},
        **_next(exported, artifact.reference, store.spec.env, target.task),
    }
    _print(exported.path, summary, as_json=as_json)


def _snippets(workspace_path: str, name: str, words: str, progress: Progress) -> Artifact:
    """Return the snippet store to export, the newest one by default."""
    workspace = Workspace.locate(workspace_path or None)
    choose = f"name one: lwdctl export {words}"
    artifact = workspace.resolve("snippets", name, choose=choose)
    progress.message(f"reading {artifact.reference}")
    return artifact


def _next(exported: Exported, source: str, env: EnvSpec, task: str) -> dict[str, object]:
    """Return the command that ingests the dataset, or a note that none is of use."""
    if not exported.has_environment:
        return {"note": f"the dataset is for other programs; evaluate on {source}"}
    config = IngestConfig("minari", env=_environment(env, task))
    return {"next": ingest_command([exported.path], config)}


def _environment(env: EnvSpec, task: str) -> str | None:
    """Return what `--env` says of the episodes of a task, where one is chosen or the only one."""
    name = task or (env.tasks[0] if len(env.tasks) == 1 else "")
    return f"{env.adapter}/{name}".rstrip("/") if env.adapter else None


@command.command()
def lerobot(
    snippets: _SNIPPETS = "",
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Directory to create; default: NAME-lerobot.", metavar="DIR", show_default=False
        ),
    ] = None,
    fps: Annotated[
        float,
        typer.Option(
            help="Steps per second  [default: the control rate of the store]",
            min=0,
            metavar="NUMBER",
            show_default=False,
        ),
    ] = 0.0,
    task_name: Annotated[
        str, typer.Option("--task", help="Export only episodes of this task.", metavar="NAME")
    ] = "",
    label: _LABEL = "",
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Export the episodes of a snippet store as a LeRobot dataset, version 3.0.

    An observation KEY becomes the feature observation.KEY, and tasks become task texts. The
    validation split comes last and is called val.

    A LeRobot dataset does not hold the observation after the last action, recorded initial states,
    action limits or the simulator's settings; behavior labels are a column of the episodes'
    metadata. Success is written if it is known for every episode.
    """
    del debug_mode
    progress = make_progress(quiet=be_quiet)
    artifact = _snippets(workspace_path, snippets, "lerobot NAME DIR", progress)
    with reserved_stdout():
        from lwdctl.artifacts.snippets import SnippetStore
        from lwdctl.data.lerobot_export import LeRobotTarget, export_lerobot

        path = user_path(directory or f"{artifact.name}-lerobot")
        store = SnippetStore.open(artifact.path)
        exported = export_lerobot(store, LeRobotTarget(path, task_name, label, fps), progress)
    summary = {
        "source": artifact.reference,
        **{name: value for name, value in asdict(exported).items() if name != "path"},
        "next": _ingest_lerobot(exported, store.spec, task_name),
    }
    _print(exported.path, summary, as_json=as_json)


def _ingest_lerobot(exported: LeRobotExport, spec: SourceSpec, task: str) -> str:
    """Return the command that ingests the dataset."""
    declared = {"delta": "delta", "absolute": "recorded-absolute"}
    config = IngestConfig(
        "lerobot",
        label_from="label" if exported.labels else None,
        env=_environment(spec.env, task),
        actions=declared.get(spec.action.semantics, "recorded"),  # type: ignore[arg-type]
    )
    return ingest_command([exported.path], config)
