"""`lwdctl bench`: ours beside the library it could have used; operations of every size."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import DEBUG, JSON, QUIET
from lwdctl.cli.output import print_json, print_table, print_text

if TYPE_CHECKING:
    from lwdctl.bench.flops import Sizes


def command(
    rounds: Annotated[int, typer.Option(help="Repetitions of each side.", min=1)] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    operations: Annotated[
        bool,
        typer.Option(
            "--flops",
            help="Time nothing; count operations per environment step of every network size.",
        ),
    ] = False,
    observation: Annotated[
        int, typer.Option(help="--flops: components of the observation.", min=1)
    ] = 39,
    action: Annotated[int, typer.Option(help="--flops: components of the action.", min=1)] = 4,
    tasks: Annotated[int, typer.Option(help="--flops: tasks told apart.", min=1)] = 10,
    episode: Annotated[int, typer.Option(help="--flops: steps per episode.", min=1)] = 500,
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Time decoding, stepping and batches side by side; above 1 ours is faster.

    With --flops: what LWD, Diffusion Policy and MLPs of every size cost per environment
    step (one multiply-add counts as two), by default with Metaworld's ten tasks.
    """
    del debug_mode
    if operations:
        from lwdctl.bench.flops import Sizes

        sizes = Sizes(observation, action, tasks, episode)
        _print_operations(sizes, as_json=as_json)
        return
    import torch

    from lwdctl.bench import policies, snippets
    from lwdctl.training.device import choose_device

    chosen = choose_device(device)
    works = {
        "decode": partial(policies.decode, chosen),
        "step": partial(policies.step, chosen),
        "ram": partial(snippets.batches, "ram"),
        "none": partial(snippets.batches, "none"),
    }
    rows = []
    with make_progress(quiet=be_quiet).task("bench", len(works), "comparison") as task:
        for work in works.values():
            rows.append(work(rounds))
            task.advance()
    machine = {"device": str(chosen), "threads": torch.get_num_threads()}
    if as_json:
        print_json(None, None, {**machine, "comparisons": [asdict(row) for row in rows]})
        return
    print_text(f"device {chosen}, {machine['threads']} threads; medians of {rounds} rounds")
    print_table(
        ["work", "ours", "reference", "speed-up"],
        [[row.name, row.ours, row.reference, f"{row.speedup:.2f}"] for row in rows],
    )


def _print_operations(sizes: Sizes, *, as_json: bool) -> None:
    from lwdctl.bench.flops import count_all

    rows = count_all(sizes)
    if as_json:
        print_json(None, None, {**asdict(sizes), "counts": [asdict(row) for row in rows]})
        return
    print_text(
        f"{sizes.episode} steps, {sizes.num_inference_steps} denoiser calls per query,"
        f" observation {sizes.observation}, action {sizes.action}, {sizes.tasks} tasks"
    )
    heads = ["policy", "network", "horizon", "MFLOP per call", "MFLOP per step", "parameters"]
    print_table(
        heads,
        [
            [
                row.policy,
                row.network,
                str(row.horizon or "-"),
                f"{row.denoiser / 1e6:.4g}",
                f"{row.per_step / 1e6:.4g}",
                f"{row.parameters:,}",
            ]
            for row in rows
        ],
    )
