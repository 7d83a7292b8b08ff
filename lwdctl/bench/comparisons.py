"""The rows of `lwdctl bench`: our work beside the same work in a reference, timed in alternation.

Both sides run one after the other in every round, so that what else the machine does falls on both.
Medians are compared; only the ratio is reported as a result.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lwdctl.core.errors import ConfigError, MissingExtraError
from lwdctl.core.registry import Registry, Row
from lwdctl.core.untrusted import read_json, typed

if TYPE_CHECKING:  # the rows are listed and shown without torch
    import torch

Work = Callable[[], object]
Measure = Callable[["torch.device", int | None], Iterable["Comparison"]]
"""Measures one row of the table, which may be several comparisons: `measure(device, rounds)`.
`rounds` is the number of repetitions of each side, None for as many as the row needs."""

ROWS = Registry(
    "benchmark",
    {
        "decode": Row("lwdctl.bench.batched:decode", "Decode 32 latents."),
        "step": Row("lwdctl.bench.batched:step", "Run 32 generated policies for 20 steps."),
        "vae-update": Row("lwdctl.bench.training:vae_update", "Training steps of the VAE, PushT."),
        "denoiser-update": Row(
            "lwdctl.bench.training:denoiser_update", "Training steps of the latent denoiser."
        ),
        "dp-update": Row(
            "lwdctl.bench.training:dp_update", "Training steps of Diffusion Policy's U-Net m."
        ),
        "vae-hypnettorch": Row(
            "lwdctl.bench.training:vae_hypnettorch",
            "Training steps of the VAE, Metaworld, beside hypnettorch's documented path.",
        ),
        "vae-hypnettorch-to-loss": Row(
            "lwdctl.bench.training:vae_to_loss",
            "Time to held-out losses of the Metaworld VAE, beside the same; 3 to 9 minutes.",
        ),
        "matmul-share": Row(
            "lwdctl.bench.training:matmul_share",
            "Matrix products of a VAE update, beside the products alone.",
        ),
        "rollouts": Row(
            "lwdctl.bench.rollouts:rollouts", "Rollouts in Metaworld, beside the bare simulators."
        ),
        "draw": Row("lwdctl.bench.batched:draw", "Draw batches of snippets."),
        "windows": Row("lwdctl.bench.data:windows", "Window batches beside the loaders of others."),
        "ingest": Row("lwdctl.bench.data:ingest", "Ingest beside h5py reading the same arrays."),
        "ingest-1gib": Row(
            "lwdctl.bench.data:ingest_of_large_files", "The same with files of 1 GiB; minutes."
        ),
        "memory": Row("lwdctl.bench.data:memory", "Peak memory of training from a store on disk."),
        "memory-4gib": Row(
            "lwdctl.bench.data:memory_of_a_large_store", "The same with a store of 4 GiB; minutes."
        ),
        "sampling": Row("lwdctl.bench.sampling:sampling", "Sampling of latents, DDIM 10."),
        "control": Row(
            "lwdctl.bench.control:control",
            "One control step of an exported policy beside the eager network.",
        ),
        "startup": Row(
            "lwdctl.bench.startup:one_update",
            "CPU seconds of stages with one training step, beside `import torch`.",
        ),
        "scaling-length": Row(
            "lwdctl.bench.scaling:snippet_length", "VAE updates by snippet length."
        ),
        "scaling-decoder": Row("lwdctl.bench.scaling:decoder_size", "VAE updates by decoder size."),
        "scaling-data": Row("lwdctl.bench.scaling:data_size", "VAE updates by size of the data."),
        "scaling-envs": Row(
            "lwdctl.bench.scaling:num_envs", "Re-plans and policy steps by number of environments."
        ),
        "quickstart-busy": Row(
            "lwdctl.bench.busy:beside_a_busy_process",
            "The quick start beside a busy process and alone; 10 to 20 minutes.",
        ),
        "busy-threads": Row(
            "lwdctl.bench.busy:beside_busy_processes",
            "Training steps by number of threads beside 0, 1 and 2 busy processes; 5 minutes.",
        ),
    },
)
ONLY_NAMED = frozenset(
    {
        "ingest-1gib",
        "memory-4gib",
        "vae-hypnettorch-to-loss",
        "quickstart-busy",
        "busy-threads",
        "scaling-length",
        "scaling-decoder",
        "scaling-data",
        "scaling-envs",
    }
)
"""Rows that run only when they are named: they take minutes, or compare nothing with a goal."""

FAILED = "failed: "
"""What `Comparison.missing` begins with where an exception ended the measurement."""


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one number."""
        low, middle, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
        return cls(float(middle), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """One work, done by lwdctl and by a reference.

    Attributes:
        name: What is done, with its sizes and its device.
        ours: How lwdctl does it.
        reference: What it is compared with.
        unit: Unit of both values.
        value: What lwdctl measured; None where `missing` says why.
        reference_value: What the reference measured.
        ratio: lwdctl against the reference by their medians; larger is better whatever the unit.
        at_least: The ratio that is the goal, or None.
        rounds: Repetitions of each.
        missing: Why nothing was measured ("needs a CUDA device"), or an empty string.
        note: What else was seen, for people.
    """

    name: str
    ours: str
    reference: str
    unit: str
    value: Spread | None = None
    reference_value: Spread | None = None
    ratio: float | None = None
    at_least: float | None = None
    rounds: int = 0
    missing: str = ""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a measurement."""
        known = self.ratio is not None and self.at_least is not None
        return bool(self.ratio >= self.at_least) if known else None  # type: ignore[operator]

    @property
    def failed(self) -> bool:
        """Whether an exception ended the measurement."""
        return self.missing.startswith(FAILED)

    def measured(
        self,
        values: Sequence[float],
        reference_values: Sequence[float],
        *,
        larger_is_better: bool | None = None,
    ) -> Comparison:
        """Return this comparison with what was measured.

        Args:
            values: lwdctl's measurements in `unit`.
            reference_values: Those of the reference.
            larger_is_better: None decides by the unit: what is counted per second should be large.
        """
        ours, reference = Spread.of(values), Spread.of(reference_values)
        if larger_is_better is None:
            larger_is_better = self.unit.endswith("/s")
        better, worse = (ours, reference) if larger_is_better else (reference, ours)
        return replace(
            self,
            value=ours,
            reference_value=reference,
            ratio=better.median / worse.median,
            rounds=len(values),
        )


def alternate(
    ours: Work, reference: Work, rounds: int, device: torch.device | None = None
) -> tuple[list[float], list[float]]:
    """Time two works in alternation after one warm-up of each.

    Args:
        ours: lwdctl's side.
        reference: The other side.
        rounds: Repetitions of each.
        device: Where they compute; a CUDA device is waited for inside the time.

    Returns:
        Seconds of every repetition of both.
    """
    times = [(seconds_of(ours, device), seconds_of(reference, device)) for _ in range(rounds + 1)][
        1:
    ]
    return [pair[0] for pair in times], [pair[1] for pair in times]


def compare(
    comparison: Comparison,
    ours: Work,
    reference: Work,
    rounds: int,
    device: torch.device | None = None,
    *,
    count: float = 1.0,
) -> Comparison:
    """Time both sides in alternation and return the comparison with what was measured.

    Args:
        comparison: What is compared; its unit is `ms`, `s`, or a rate like `updates/s`.
        ours: lwdctl's side.
        reference: The other side.
        rounds: Repetitions of each.
        device: Where they compute.
        count: How many units one call of either side does (updates, batches, bytes).
    """
    sides = alternate(ours, reference, rounds, device)
    unit = comparison.unit

    def convert(seconds: float) -> float:
        if unit.endswith("/s"):
            return count / seconds
        return seconds / count * (1000.0 if unit == "ms" else 1.0)

    return comparison.measured(*([convert(second) for second in side] for side in sides))


def needs_cuda(comparison: Comparison) -> Comparison:
    """Return the empty row of a machine without a CUDA device."""
    return replace(comparison, missing="needs a CUDA device")


def names_by_default() -> list[str]:
    """Return the rows that run when none is named."""
    return [name for name in ROWS if name not in ONLY_NAMED]


def measure(
    name: str, device: torch.device, rounds: int | None, *, reraise: bool = False
) -> Iterator[Comparison]:
    """Measure one row, comparison by comparison; nothing that goes wrong in it ends the table.

    Args:
        name: Name of the row.
        device: Where to compute.
        rounds: Repetitions of each side; None for as many as the row needs.
        reraise: Let exceptions pass instead of naming them in the row.

    Raises:
        ConfigError: No row has that name.
    """
    ROWS.check(name)
    try:
        yield from ROWS.load(name)(device, rounds)
    except Exception as error:  # one row must not lose the others
        missing = (isinstance(error, ModuleNotFoundError) and error.name) or "lwdctl"
        if isinstance(error, MissingExtraError):
            yield _empty(name, error.message)
        elif not missing.startswith("lwdctl"):
            yield _empty(name, f"needs the package {missing}")
        elif reraise:
            raise
        else:
            yield _empty(name, f"{FAILED}{type(error).__name__}: {error}")


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on beside the code: hardware, versions, threads, load."""
    import torch

    cuda = device.type == "cuda"
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "device": str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def read_results(path: Path) -> tuple[dict[str, Any], list[tuple[str, Comparison]]]:
    """Read the file that `lwdctl bench --out` wrote.

    Returns:
        The machine, and each comparison with the name of its row.

    Raises:
        ConfigError: It is no such file.
    """
    where, hint = f"{path} holds no results of lwdctl bench", "lwdctl bench --out FILE"
    content = read_json(path, ConfigError, hint, where=where, allow_nan=True)
    found = typed(_Results, content, where, ConfigError, hint)
    names = [typed(str, row.pop("row", None), f"{where}: row", ConfigError) for row in found.rows]
    for row in found.rows:
        row.pop("reached", None)  # follows from the others
    rows = (typed(Comparison, row, where, ConfigError, hint) for row in found.rows)
    return found.machine, list(zip(names, rows, strict=True))


@dataclass(frozen=True)
class _Results:
    machine: dict[str, Any]
    rows: tuple[dict[str, Any], ...]


def _empty(name: str, missing: str) -> Comparison:
    return Comparison(ROWS.rows[name].summary.rstrip("."), "", "", "", missing=missing)


def _cpu_model() -> str:
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def seconds_of(work: Work, device: torch.device | None = None) -> float:
    """Return how long a work takes, until a CUDA device has finished it."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device | None) -> None:
    """Wait for a CUDA device; do nothing on a CPU."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
