"""The methods that are compared: one module and one row each, or an entry point elsewhere.

Another package adds a method by an entry point of the group `lwdctl.policies` that names a
`lwdctl.methods.method.Method`, or a function from a `SourceSpec` to an object with `reset` and
`act`.
"""

from __future__ import annotations

from lwdctl.core.registry import Registry, Row

ENTRY_POINTS = "lwdctl.policies"

BASELINES = Registry(
    "baseline",
    {
        "dp": Row("lwdctl.methods.dp:METHOD", "Diffusion Policy"),
        "ldp": Row("lwdctl.methods.ldp:METHOD", "latent diffusion of action chunks"),
        "mlp": Row("lwdctl.methods.mlp:METHOD", "behavior cloning with an MLP"),
    },
    entry_points=ENTRY_POINTS,
)
"""What `train-baseline` trains, by name."""

METHODS = Registry(
    "policy",
    {
        "lwd": Row("lwdctl.methods.lwd:METHOD", "Latent Weight Diffusion"),
        **BASELINES.rows,
        "random": Row("lwdctl.methods.untrained:RANDOM", "random actions"),
        "still": Row("lwdctl.methods.untrained:STILL", "standing still"),
    },
    entry_points=ENTRY_POINTS,
)
"""What `eval` runs, by name."""
