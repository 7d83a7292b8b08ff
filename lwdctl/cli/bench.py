"""`lwdctl bench`: ours beside the library it could have used, as ratios of one run."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import DEBUG, JSON, QUIET
from lwdctl.cli.output import print_json, print_table, print_text


def command(
    rounds: Annotated[int, typer.Option(help="Repetitions of each side.", min=1)] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: JSON = False,
    be_quiet: QUIET = False,
    debug_mode: DEBUG = False,
) -> None:
    """Time decoding, stepping and batches side by side; above 1 ours is faster."""
    del debug_mode
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
