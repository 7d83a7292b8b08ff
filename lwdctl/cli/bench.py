"""`lwdctl bench`: benchmarks against library code, and FLOPs of every network size."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import DEBUG, JSON, QUIET
from lwdctl.cli.output import print_json, print_table, print_text


def command(
    rounds: Annotated[int, typer.Option(help="Repetitions of each implementation.", min=1)] = 20,
    device: Annotated[
        str, typer.Option(help="Device to run on: auto, cpu, cuda or cuda:N.")
    ] = "auto",
    count_flops: Annotated[
        bool,
        typer.Option(
            "--flops",
            help="Instead count the FLOPs per environment step of every network size.",
        ),
    ] = False,
    observation: Annotated[int, typer.Option(help="--flops: observation size.", min=1)] = 39,
    action: Annotated[int, typer.Option(help="--flops: action size.", min=1)] = 4,
    tasks: Annotated[int, typer.Option(help="--flops: number of tasks.", min=1)] = 10,
    episode: Annotated[int, typer.Option(help="--flops: steps per episode.", min=1)] = 500,
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Benchmark the batched decoder and the data loader against the library code they replace.

    A speed-up above 1 means that lwdctl is faster. With --flops: the FLOPs per environment step of
    LWD, Diffusion Policy and MLPs of every size (one multiply-add counts as two), by default with
    Metaworld's ten tasks.
    """
    del debug_mode
    if count_flops:
        _print_flops(observation, action, tasks, episode, as_json=as_json)
        return
    import torch

    from lwdctl.bench.comparisons import COUNT, run_all
    from lwdctl.training.loop import choose_device

    chosen = choose_device(device)
    rows = []
    with make_progress(quiet=be_quiet).task("bench", COUNT, "comparison") as task:
        for row in run_all(chosen, rounds):
            rows.append(row)
            task.advance()
    machine = {"device": str(chosen), "threads": torch.get_num_threads()}
    if as_json:
        print_json(None, None, {**machine, "comparisons": [asdict(row) for row in rows]})
        return
    print_text(f"device {chosen}, {machine['threads']} threads; medians of {rounds} rounds")
    print_table(
        ["work", "lwdctl", "reference", "speed-up"],
        [[row.name, row.implementation, row.reference, f"{row.speedup:.2f}"] for row in rows],
    )


def _print_flops(observation: int, action: int, tasks: int, episode: int, *, as_json: bool) -> None:
    from lwdctl.bench.flops import Sizes, count_all

    sizes = Sizes(observation, action, tasks, episode)
    rows = count_all(sizes)
    if as_json:
        print_json(None, None, {**asdict(sizes), "counts": [asdict(row) for row in rows]})
        return
    print_text(
        f"{sizes.episode} steps, {sizes.num_inference_steps} denoiser calls per re-plan,"
        f" observation {sizes.observation}, action {sizes.action}, {sizes.tasks} tasks"
    )
    heads = ["policy", "network", "horizon", "MFLOP per call", "MFLOP per step", "parameters"]
    counts = [(f"{row.denoiser / 1e6:.4g}", f"{row.per_step / 1e6:.4g}") for row in rows]
    table = [
        [row.policy, row.network, str(row.horizon or "-"), *pair, f"{row.parameters:,}"]
        for row, pair in zip(rows, counts, strict=True)
    ]
    print_table(heads, table)
