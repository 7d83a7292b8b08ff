"""Latent Weight Diffusion: sample the weights of small closed-loop policies.

`lwdctl` trains a generative model on demonstrations (LWD, later published as WARPD): a VAE whose
decoder is a hypernetwork, and a diffusion model over its latents. Each sample is the weights of a
small neural network that acts as the policy. Everything is loaded when it is first used.

.. include:: ../examples/README.md
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` takes longer to import than everything here: commands begin here
if TYPE_CHECKING:
    from lwdctl.analysis.comparison import Comparison
    from lwdctl.api.dataset import Dataset
    from lwdctl.api.evaluation import ResultTable, compare, evaluate
    from lwdctl.api.opening import (
        collect,
        ingest,
        inspect,
        load_dataset,
        load_policy,
        run,
        status,
        track,
    )
    from lwdctl.api.sharing import pull, push
    from lwdctl.api.training import (
        Baseline,
        Diffusion,
        Latents,
        Vae,
        encode,
        train_baseline,
        train_diffusion,
        train_vae,
    )
    from lwdctl.configs import (
        BaselineConfig,
        CollectConfig,
        DiffusionConfig,
        EncodeConfig,
        EvalConfig,
        IngestConfig,
        VaeConfig,
    )
    from lwdctl.core.errors import (
        ArtifactError,
        ConfigError,
        DataError,
        LwdctlError,
        MissingExtraError,
        SimulatorError,
    )
    from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
    from lwdctl.data.inspection import Inspection, Inspections
    from lwdctl.envs.gymnasium_adapter import GymnasiumSimulator
    from lwdctl.envs.simulator import Metric
    from lwdctl.methods.method import Acting
    from lwdctl.methods.trained import LoadedPolicy
    from lwdctl.pipeline.run_stage import run_stage
    from lwdctl.pipeline.status import StageStatus
    from lwdctl.policies.policy import Policy

__version__ = "0.2.0"

# torch's threads sleep while they wait for work: spinning, they take the cores from whatever else
# runs, the thread that they wait for included. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "lwdctl.analysis.comparison": ("Comparison",),
    "lwdctl.api.evaluation": ("ResultTable", "compare", "evaluate"),
    "lwdctl.api.opening": (
        "collect", "ingest", "inspect", "load_dataset", "load_policy", "run", "status", "track",
    ),
    "lwdctl.api.sharing": ("pull", "push"),
    "lwdctl.api.training": (
        "Baseline", "Diffusion", "Latents", "Vae", "encode", "train_baseline", "train_diffusion",
        "train_vae",
    ),
    "lwdctl.configs": (
        "BaselineConfig", "CollectConfig", "DiffusionConfig", "EncodeConfig", "EvalConfig",
        "IngestConfig", "VaeConfig",
    ),
    "lwdctl.api.dataset": ("Dataset",),
    "lwdctl.data.inspection": ("Inspection", "Inspections"),
    "lwdctl.core.errors": (
        "ArtifactError", "ConfigError", "DataError", "LwdctlError", "MissingExtraError",
        "SimulatorError",
    ),
    "lwdctl.core.records": ("ActionSpec", "EnvSpec", "Episode", "ObservationSpec", "SourceSpec"),
    "lwdctl.envs.gymnasium_adapter": ("GymnasiumSimulator",),
    "lwdctl.envs.simulator": ("Metric",),
    "lwdctl.methods.method": ("Acting",),
    "lwdctl.methods.trained": ("LoadedPolicy",),
    "lwdctl.pipeline.run_stage": ("run_stage",),
    "lwdctl.pipeline.status": ("StageStatus",),
    "lwdctl.policies.policy": ("Policy",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Acting",
    "ActionSpec",
    "ArtifactError",
    "Baseline",
    "BaselineConfig",
    "CollectConfig",
    "Comparison",
    "ConfigError",
    "DataError",
    "Dataset",
    "Diffusion",
    "DiffusionConfig",
    "EncodeConfig",
    "EnvSpec",
    "Episode",
    "EvalConfig",
    "GymnasiumSimulator",
    "IngestConfig",
    "Inspection",
    "Inspections",
    "Latents",
    "LoadedPolicy",
    "LwdctlError",
    "Metric",
    "MissingExtraError",
    "ObservationSpec",
    "Policy",
    "ResultTable",
    "SimulatorError",
    "SourceSpec",
    "StageStatus",
    "Vae",
    "VaeConfig",
    "collect",
    "compare",
    "encode",
    "evaluate",
    "ingest",
    "inspect",
    "load_dataset",
    "load_policy",
    "pull",
    "push",
    "run",
    "run_stage",
    "status",
    "track",
    "train_baseline",
    "train_diffusion",
    "train_vae",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import what is asked for when it is first used."""
    import importlib

    if name not in _HOME_OF:
        raise AttributeError(f"module 'lwdctl' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
