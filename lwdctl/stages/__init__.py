"""The table of stages: configuration and inputs in, one artifact out.

Adding a stage is one module with a `run` function, a configuration class in `lwdctl.configs` and
one row here; the rows of analyses come from `lwdctl.analysis.analyses`. The command line and
recipes read this table; a stage's module is imported when it runs.
"""

from __future__ import annotations

from lwdctl import configs
from lwdctl.analysis.analyses import ANALYSES
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages.stage import Stage

_ROWS = (
    Stage(
        "collect",
        "demonstrations",
        configs.CollectConfig,
        (),
        "lwdctl.stages.collect:run",
        "Record demonstrations of scripted experts in a simulator.",
        resumable=True,
    ),
    Stage(
        "ingest",
        "snippets",
        configs.IngestConfig,
        ("demonstrations",),
        "lwdctl.stages.ingest:run",
        "Read demonstrations into a snippet store.",
    ),
    Stage(
        "train-vae",
        "vae",
        configs.VaeConfig,
        ("snippets",),
        "lwdctl.stages.train_vae:run",
        "Train the VAE whose decoder generates policy weights.",
        resumable=True,
        tracked=True,
        distributed=True,
    ),
    Stage(
        "encode",
        "latents",
        configs.EncodeConfig,
        ("snippets", "vae"),
        "lwdctl.stages.encode:run",
        "Encode every snippet with a trained VAE.",
    ),
    Stage(
        "train-diffusion",
        "diffusion",
        configs.DiffusionConfig,
        ("snippets", "vae", "latents"),
        "lwdctl.stages.train_diffusion:run",
        "Train the diffusion model over latents.",
        resumable=True,
        tracked=True,
        distributed=True,
    ),
    Stage(
        "train-baseline",
        "baseline",
        configs.BaselineConfig,
        ("snippets",),
        "lwdctl.stages.train_baseline:run",
        "Train a baseline on the same snippets: Diffusion Policy, LDP, or an MLP.",
        resumable=True,
        tracked=True,
        distributed=True,
    ),
    Stage(
        "eval",
        "evaluation",
        configs.EvalConfig,
        (*configs.LINEAGE, "baseline"),
        "lwdctl.stages.evaluate:run",
        "Run policies in the simulator and report their success rates.",
        resumable=True,
        simulates=True,
        tracked=True,
        choices="lwdctl.stages.eval_models",
        parts="lwdctl.stages.evaluate:run_part",
    ),
    *(
        Stage(
            f"analyze {row.name}",
            "analysis",
            row.config,
            row.inputs,
            "lwdctl.stages.analyze:run",
            row.summary,
            simulates=row.simulates,
        )
        for row in ANALYSES
    ),
)

STAGES: dict[str, Stage] = {row.command: row for row in _ROWS}


def find_stage(command: str) -> Stage:
    """Return the stage of a command (`"train-vae"`).

    Raises:
        ConfigError: No stage has that name.
    """
    if command not in STAGES:
        raise ConfigError(f"no stage is called '{command}'", did_you_mean(command, STAGES))
    return STAGES[command]
