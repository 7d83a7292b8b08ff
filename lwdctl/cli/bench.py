"""`lwdctl bench`: benchmarks against references, and FLOPs of every network size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lwdctl.artifacts.files import user_path, write_durably
from lwdctl.cli.bars import make_progress
from lwdctl.cli.generate import DEBUG, JSON, QUIET
from lwdctl.cli.output import format_value, print_json, print_table, print_text
from lwdctl.core.errors import LwdctlError

if TYPE_CHECKING:
    from lwdctl.bench.comparisons import Comparison, Spread


def command(  # noqa: PLR0913 - the options of the command line
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            help="Rows to measure; --list shows them. None measures all but the longest."
        ),
    ] = None,
    *,
    list_rows: Annotated[bool, typer.Option("--list", help="List the rows and end.")] = False,
    rounds: Annotated[
        int | None,
        typer.Option(help="Repetitions of both sides; each row has its own default.", min=1),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device to run on: auto, cpu, cuda or cuda:N.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads of the CPU; torch's number by default.", min=1)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file with the result, written anew after every row."),
    ] = None,
    show: Annotated[
        Path | None,
        typer.Option(help="Measure nothing; print the table of a file that --out wrote."),
    ] = None,
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
    """Measure what lwdctl is fast at, beside the code that it replaces.

    Both sides run in alternation; a ratio above 1 means that lwdctl is better. Rows that this
    machine cannot measure stay empty and say why. With --flops: the FLOPs per environment
    step of LWD, Diffusion Policy and MLPs of every size (one multiply-add counts as two), by
    default with Metaworld's ten tasks.
    """
    if count_flops:
        _print_flops(observation, action, tasks, episode, as_json=as_json)
        return
    if show is not None:
        _show(user_path(show), as_json=as_json)
        return
    if list_rows:
        _list_rows(as_json=as_json)
        return
    import torch

    from lwdctl.bench import comparisons
    from lwdctl.training.loop import choose_device

    names = rows or comparisons.names_by_default()
    for name in names:
        comparisons.ROWS.check(name)
    chosen = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    machine = comparisons.machine(chosen)
    found: list[tuple[str, Comparison]] = []
    with make_progress(quiet=be_quiet).task("bench", len(names), "row") as task:
        for name in names:
            for item in comparisons.measure(name, chosen, rounds, reraise=debug_mode):
                found.append((name, item))
                if out is not None:
                    text = json.dumps(_as_mapping(machine, found), indent=1, allow_nan=False)
                    write_durably(user_path(out), f"{text}\n".encode())
            task.advance(row=name)
    if as_json:
        print_json(None, out and user_path(out), _as_mapping(machine, found))
    else:
        _print_rows(machine, found)
    lost = [name for name, item in found if item.failed]
    if lost:
        raise LwdctlError(f"failed: {', '.join(lost)}", f"lwdctl bench {lost[0]} --debug")


def _show(path: Path, *, as_json: bool) -> None:
    from lwdctl.bench.comparisons import read_results

    machine, found = read_results(path)
    if as_json:
        print_json(None, path, _as_mapping(machine, found))
        return
    _print_rows(machine, found)


def _list_rows(*, as_json: bool) -> None:
    from lwdctl.bench.comparisons import ROWS

    table = {name: row.summary for name, row in ROWS.rows.items()}
    if as_json:
        print_json(None, None, {"rows": table})
        return
    print_table(["row", "measures"], [[name, text] for name, text in table.items()])


def _as_mapping(
    machine: Mapping[str, Any], found: Sequence[tuple[str, Comparison]]
) -> dict[str, Any]:
    rows = [{"row": name, **asdict(item), "reached": item.reached} for name, item in found]
    return {"machine": dict(machine), "rows": rows}


def _print_rows(machine: Mapping[str, Any], found: Sequence[tuple[str, Comparison]]) -> None:
    print_text(", ".join(f"{name} {format_value(value)}" for name, value in machine.items()))
    print_table(
        ["row", "work", "lwdctl", "reference", "unit", "ratio", "goal"],
        [
            [name, item.name, *_values(item), item.unit, _ratio(item), format_value(item.at_least)]
            for name, item in found
        ],
    )
    print_text("Medians with quartiles; a ratio is lwdctl against its reference, larger is better:")
    for name, item in found:
        if item.reference:
            note = f"; {item.note}" if item.note else ""
            print_text(f"  {name}: {item.ours}, against {item.reference}{note}")


def _values(item: Comparison) -> tuple[str, str]:
    if item.value is None or item.reference_value is None:
        return item.missing, "-"
    return _spread(item.value), _spread(item.reference_value)


def _spread(spread: Spread) -> str:
    return f"{spread.median:.4g} [{spread.low:.4g}, {spread.high:.4g}]"


def _ratio(item: Comparison) -> str:
    if item.ratio is None:
        return "-"
    missed = " (missed)" if item.reached is False else ""
    return f"{item.ratio:.3g}{missed}"


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
