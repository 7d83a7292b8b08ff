"""The options of `lwdctl run` that send its stages to a cluster."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated

import typer

from lwdctl.artifacts.files import user_path
from lwdctl.cli.failures import CommandLineError
from lwdctl.cli.generate import bare_option
from lwdctl.cli.output import print_json, print_text
from lwdctl.core.progress import Progress
from lwdctl.pipeline.executor import EXECUTORS
from lwdctl.pipeline.plan import RecipeRun
from lwdctl.pipeline.runner import Outcome
from lwdctl.stages.stage import REST, Part

EXECUTOR = Annotated[
    str,
    bare_option(
        "Where stages run. here: in this process, or in several with --jobs. slurm: as jobs of a"
        " Slurm cluster, each after the jobs that it depends on, while this command waits (needs"
        " the extra slurm). local: as the same jobs on this machine, to try them  [default: here]",
        "--executor",
        metavar="here|slurm|local",
    ),
]
SLURM = Annotated[
    list[str] | None,
    bare_option(
        "Options of sbatch for every job, for example partition=gpu,gpus=1,time=4:00:00; repeat"
        " --slurm for more. Near the time limit, and after preemption, a job is requeued and"
        " continues from its checkpoint.",
        "--slurm",
        metavar="KEY=VALUE,...",
    ),
]
SCRIPT = Annotated[
    str,
    bare_option(
        "Write a file for sbatch per stage, and submit.sh, into this new directory; submit nothing."
        " The files need sbatch and lwdctl on the cluster, and no further package.",
        "--slurm-script",
        metavar="DIR",
    ),
]
DETACH = Annotated[
    bool,
    bare_option(
        "Submit the jobs and return at once. Without it, the command waits and prints the results;"
        " if it is interrupted, the jobs keep running, and the same command waits for them again.",
        "--detach",
    ),
]
EVAL_JOBS = Annotated[
    int,
    typer.Option(
        "--eval-jobs",
        help="Largest number of jobs that the conditions of one evaluation are split into"
        "  [default: 0, one job per condition]",
        metavar="INTEGER",
        show_default=False,
        min=0,
    ),
]
PART = Annotated[
    str,
    typer.Option(
        "--part",
        help="With --only STAGE, an evaluation: measure part I (counted from 0) of N parts of its"
        " conditions, or, beside the process that runs it, the rest. Other processes use it.",
        metavar="I/N|rest",
        hidden=True,
    ),
]


@dataclass(frozen=True)
class ClusterOptions:
    """What the command line says about a cluster.

    Attributes:
        executor: `--executor`.
        slurm: `--slurm`.
        script: `--slurm-script`, or "".
        detach: `--detach`.
        eval_jobs: `--eval-jobs`; 0 for one job per condition.
        jobs: `--jobs`.
        only: `--only`.
    """

    executor: str
    slurm: tuple[str, ...] = ()
    script: str = ""
    detach: bool = False
    eval_jobs: int = 0
    jobs: str = "1"
    only: str = ""

    def __post_init__(self) -> None:
        """Check that the options go together.

        Raises:
            CommandLineError: They do not.
        """
        if self.executor not in EXECUTORS:
            raise CommandLineError(
                f"--executor takes {', '.join(EXECUTORS)}, not '{self.executor}'"
            )
        if self.jobs != "1" and self.is_used:
            raise CommandLineError(
                "--jobs runs stages side by side on this machine, not as jobs of a cluster",
                "leave out --jobs, or --executor",
            )
        if self.only and self.is_used:
            raise CommandLineError(
                "--only runs one stage in this process, not as a job",
                "--until STAGE ends a run early",
            )
        if self.eval_jobs and not self.is_used:
            raise CommandLineError(
                "--eval-jobs is about jobs of a cluster", "add --executor, or give --jobs instead"
            )
        here = self.executor != "slurm"
        for given, name in ((self.slurm, "--slurm"), (self.detach, "--detach")):
            if given and here and not self.script:
                raise CommandLineError(f"{name} is about jobs of Slurm", "add --executor slurm")

    @property
    def is_used(self) -> bool:
        """Whether stages run as jobs, or files for jobs are written."""
        return self.executor != "here" or bool(self.script)

    def arguments(self) -> tuple[str, ...]:
        """Return the options again, for messages."""
        words = ["--executor", self.executor]
        words += [word for item in self.slurm for word in ("--slurm", item)]
        words += ["--eval-jobs", str(self.eval_jobs)] if self.eval_jobs else []
        return tuple(words)


def run_on_cluster(run: RecipeRun, options: ClusterOptions, progress: Progress) -> list[Outcome]:
    """Run a recipe's stages as jobs; see `pipeline.slurm.run_as_jobs`.

    Raises:
        LwdctlError: A job is refused, or stages failed.
    """
    from lwdctl.pipeline.slurm import run_as_jobs

    return run_as_jobs(
        run, progress, options.executor, slurm=options.slurm, detach=options.detach,
        eval_jobs=options.eval_jobs, options=options.arguments(),
    )  # fmt: skip


def write_files(run: RecipeRun, options: ClusterOptions, *, as_json: bool) -> None:
    """Write the files of `--slurm-script` and print what to do with them."""
    from lwdctl.pipeline.slurm_jobs import write_scripts
    from lwdctl.pipeline.slurm_systems import parse_slurm_options

    folder, given = user_path(options.script), parse_slurm_options(options.slurm)
    files = write_scripts(run, folder, given, options.eval_jobs)
    submit = shlex.quote(str(files[0].absolute()))
    if as_json:
        print_json(None, folder, {"files": [str(path) for path in files]})
    else:
        print_text(f"wrote {len(files)} files; submit the jobs with: {submit}")


def parse_part(text: str, only: str) -> Part | None:
    """Return what `--part` says.

    Raises:
        CommandLineError: It is neither `rest` nor `I/N` with 0 <= I < N, or `--only` is missing.
    """
    if not text:
        return None
    if text == REST and only:
        return REST
    index, _, count = text.partition("/")
    if text != REST and not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise CommandLineError(
            f"--part takes I/N with I below N, or rest, not '{text}'", "--part 0/4"
        )
    if not only:
        raise CommandLineError("--part needs the evaluation's stage", "add --only STAGE")
    return int(index), int(count)
