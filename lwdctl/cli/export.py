"""`lwdctl export`: a policy or a snippet store as files that other programs use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.bars import make_progress
from lwdctl.cli.failures import CommandLineError
from lwdctl.cli.generate import DEBUG, JSON, QUIET, WORKSPACE
from lwdctl.cli.output import print_json, print_summary, print_text, reserved_stdout
from lwdctl.core.errors import ArtifactError

if TYPE_CHECKING:
    from lwdctl.artifacts.artifact import Artifact
    from lwdctl.core.progress import Progress
    from lwdctl.core.records import EnvSpec
    from lwdctl.data.minari_package import Exported


FORMS = ("policy", "minari")

_DIFFUSION = Annotated[
    str,
    typer.Option(
        help="The diffusion model to read: NAME, NAME:v2 or a path  [default: the newest]",
        metavar="REF",
        show_default=False,
    ),
]
_RUN = Annotated[
    str,
    typer.Option(
        "--run",
        help="Chain to read from when several could be meant: the name of one of its artifacts.",
        metavar="NAME",
        show_default=False,
    ),
]


class Forms(TyperGroup):
    """What can be exported; an unknown word is refused with the known ones."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one form's command.

        Raises:
            CommandLineError: There is none of that name.
        """
        if cmd_name not in FORMS and not cmd_name.startswith("-"):
            raise CommandLineError(
                f"there is no export format '{cmd_name}'", f"known: {', '.join(FORMS)}"
            )
        return super().get_command(ctx, cmd_name)


command = typer.Typer(
    cls=Forms,
    help="Write for other programs: a policy, or a data set.",
    add_completion=False,
    rich_markup_mode=None,
)


@command.command()
def policy(
    diffusion: _DIFFUSION = "",
    run_name: _RUN = "",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory to make  [default: NAME-policy]", metavar="DIR", show_default=False
        ),
    ] = None,
    horizon: Annotated[
        str | None,
        typer.Option(
            help="Executed steps between two plans, or 'episode' for one plan all episode"
            "  [default: the snippet length]",
            metavar="INTEGER|episode",
            show_default=False,
        ),
    ] = None,
    num_inference_steps: Annotated[
        int, typer.Option(help="DDIM steps per plan.", min=1, metavar="INTEGER")
    ] = 10,
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Write a trained policy as a directory that runs without torch, on a robot.

    It holds ONNX graphs of denoiser and decoder, constants, and policy.json. Before it appears,
    it is run beside the trained policy on a demonstration: the largest difference of an action
    and both one's times per control step and per re-plan are printed and kept.

    On the robot: pip install numpy onnxruntime safetensors; pip install --no-deps . in a checkout;
    then lwdctl.deploy.runtime.ExportedPolicy(DIR) (examples/control_loop.py).
    """
    del debug_mode
    workspace = Workspace.locate(workspace_path or None)
    progress = make_progress(quiet=be_quiet)
    artifact = workspace.resolve("diffusion", diffusion, run_name)
    progress.message(f"reading {artifact.reference}" + ("" if diffusion else " (the newest)"))
    directory = output or Path(f"{artifact.name}-policy")
    inputs = {**workspace.ancestors(artifact), "diffusion": artifact}
    with reserved_stdout():
        from lwdctl.deploy.export import ExportSettings, export_policy

        settings = ExportSettings(_horizon(horizon), num_inference_steps)
        made = export_policy(inputs, directory, settings, progress)
    summary = {
        "source": artifact.reference,
        "horizon": "episode" if made.horizon is None else made.horizon,
        "num_inference_steps": len(made.timesteps),
        "observations": {item.name: item.size for item in made.observations},
        "bytes": sum(int(file["bytes"]) for file in made.files.values()),
        **made.parity,
    }
    if as_json:
        print_json(None, directory, summary)
        return
    print_text(str(directory))
    print_summary(summary)


def _horizon(text: str | None) -> int | Literal["episode"] | None:
    if text is None or text == "episode":
        return text  # type: ignore[return-value]
    if not text.isdigit():
        raise CommandLineError(f"--horizon: '{text}' is no number of steps", "or 'episode'")
    return int(text)


@command.command()
def minari(
    snippets: Annotated[
        str, typer.Argument(help="Snippet store: NAME, NAME:v2 or a path; default: the newest.")
    ] = "",
    identifier: Annotated[
        str,
        typer.Option("--id", help="Name of the data set: NAME/task/level-v0.", metavar="NAME"),
    ] = "",
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of Minari data sets.", metavar="DIR", envvar="MINARI_DATASETS_PATH"
        ),
    ] = Path("minari"),
    task_name: Annotated[
        str,
        typer.Option("--task", help="Task to write, of a store with several.", metavar="NAME"),
    ] = "",
    label: Annotated[
        str, typer.Option(help="Only episodes with this behavior label.", metavar="NAME")
    ] = "",
    workspace_path: WORKSPACE = "",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Write a snippet store's episodes as a Minari data set, read with minari.load_dataset.

    An episode without a recorded last observation loses its last action.

    Such a set does not hold labels, recorded starts, the simulator's settings or real
    terminations: every episode ends as a truncation. lwdctl evaluates on the snippet store; it
    reads the set back for evaluation only where Gymnasium can rebuild the environment.
    """
    del debug_mode
    if not identifier:
        raise CommandLineError("--id is missing", "for example: --id lift/scripted/mh-v0")
    artifact = _find(Workspace.locate(workspace_path or None), snippets)
    progress = make_progress(quiet=be_quiet)
    progress.message(f"reading {artifact.reference}")
    path, summary = _write(artifact, (identifier, output, task_name, label), progress)
    if as_json:
        print_json(None, path, summary)
        return
    print_text(str(path))
    print_summary(summary)


def _write(
    artifact: Artifact, words: tuple[str, Path, str, str], progress: Progress
) -> tuple[Path, dict[str, object]]:
    """Export a store and return where to and what there is to say about it."""
    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.data.minari_package import MinariTarget, export_minari

    target = MinariTarget(*words, artifact.reference)
    store = SnippetStore.open(artifact.path)
    with reserved_stdout():
        done = export_minari(store, target, progress)
    _say_what_differs(done, progress)
    return done.path, {
        "source": artifact.reference,
        "dataset": target.identifier,
        **{name: value for name, value in asdict(done).items() if name != "path"},
        **_next(done, artifact.reference, store.spec.env, target.task),
    }


def _find(workspace: Workspace, reference: str) -> Artifact:
    try:
        return workspace.resolve("snippets", reference)
    except ArtifactError as error:
        if reference or "--snippets" not in error.hint:
            raise
        # Stages take inputs as options, this command as a word.
        hint = "name one: lwdctl export minari NAME --id ..."
        raise ArtifactError(error.message, hint) from None


def _say_what_differs(done: Exported, progress: Progress) -> None:
    if done.shortened:
        progress.message(
            f"{done.shortened} episodes lost their last action: the store has no observation "
            "after it"
        )
    if done.left_out:
        progress.message(f"{done.left_out} episodes of one such action were left out")
    if not done.has_rewards:
        progress.message("the store has no rewards: zeros were written")


def _next(done: Exported, source: str, env: EnvSpec, task: str) -> dict[str, object]:
    """Return the command that reads the set, or the remark that there is none to go on with."""
    if not done.has_environment:
        return {"note": f"the set is for other programs; evaluation goes on from {source}"}
    place = f" --env {env.adapter}/{task or env.tasks[0]}" if env.adapter and env.tasks else ""
    return {"next": f"lwdctl ingest minari {done.path}{place}"}
