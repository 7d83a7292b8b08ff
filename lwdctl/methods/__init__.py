"""The methods that are compared: one module and one row each, or an entry point elsewhere.

Another package adds a method by an entry point of the group `lwdctl.policies` that names a
`lwdctl.methods.method.Method`, or a function from a `SourceSpec` to an object with `reset` and
`act`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lwdctl.core.registry import Registry, Row

ENTRY_POINTS = "lwdctl.policies"


class MethodFacts(Protocol):
    """What a plan needs to know of a method; see `Method` for the attributes."""

    @property
    def artifact_type(self) -> str | None:
        """Type of the artifact that holds a trained policy; None where there is none."""

    @property
    def replans(self) -> bool:
        """Whether its policies re-plan."""


@dataclass(frozen=True)
class MethodRow(Row):
    """A row with the facts of its method, which are read without importing torch.

    Attributes:
        artifact_type: Type of the artifact that holds a trained policy; None for a policy that is
            not trained.
        replans: Whether its policies re-plan.
    """

    artifact_type: str | None = None
    replans: bool = False


BASELINES = Registry(
    "baseline",
    {
        "dp": MethodRow(
            "lwdctl.methods.dp:METHOD",
            "Diffusion Policy",
            artifact_type="baseline",
            replans=True,
        ),
        "ldp": MethodRow(
            "lwdctl.methods.ldp:METHOD",
            "latent diffusion of action chunks",
            artifact_type="baseline",
            replans=True,
        ),
        "mlp": MethodRow(
            "lwdctl.methods.mlp:METHOD", "behavior cloning with an MLP", artifact_type="baseline"
        ),
    },
    entry_points=ENTRY_POINTS,
)
"""What `train-baseline` trains, by name."""

METHODS = Registry(
    "policy",
    {
        "lwd": MethodRow(
            "lwdctl.methods.lwd:METHOD",
            "Latent Weight Diffusion",
            artifact_type="diffusion",
            replans=True,
        ),
        **BASELINES.rows,
        "random": MethodRow("lwdctl.methods.untrained:RANDOM", "random actions"),
        "still": MethodRow("lwdctl.methods.untrained:STILL", "standing still"),
    },
    entry_points=ENTRY_POINTS,
)
"""What `eval` runs, by name."""


def method_facts(name: str) -> MethodFacts:
    """Return the facts of the method called `name`; a plug-in is imported for them.

    Raises:
        ConfigError: No method has that name, or the plug-in cannot be imported.
    """
    METHODS.check(name)
    row = METHODS.rows.get(name)
    if isinstance(row, MethodRow):
        return row
    from lwdctl.methods.trained import load_method

    return load_method(name)
