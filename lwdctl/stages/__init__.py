"""The table of stages: configuration and inputs in, one artifact out.

Adding a stage is one module with a `run` function, a configuration class in `lwdctl.configs` and
one row here. The command line and recipes read this table; a stage's module is imported when it
runs.
"""

from __future__ import annotations

from lwdctl import configs
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
    ),
    Stage(
        "train-baseline",
        "baseline",
        configs.BaselineConfig,
        ("snippets",),
        "lwdctl.stages.train_baseline:run",
        "Train a baseline on the same snippets: Diffusion Policy, LDP, or an MLP.",
        resumable=True,
    ),
    Stage(
        "eval",
        "evaluation",
        configs.EvalConfig,
        (*configs.LINEAGE, "baseline"),
        "lwdctl.stages.evaluate:run",
        "Run policies in the simulator and report their success rates.",
        resumable=True,
        chosen="lwdctl.stages.evaluate:chosen",
    ),
    Stage(
        "analyze latents",
        "analysis",
        configs.AnalyzeLatentsConfig,
        ("snippets", "vae", "latents"),
        "lwdctl.stages.analyze_latents:run",
        "Look for behaviors in the latent space: PCA, t-SNE, separability.",
    ),
    Stage(
        "analyze behavior",
        "analysis",
        configs.AnalyzeBehaviorConfig,
        ("snippets", "evaluation"),
        "lwdctl.stages.analyze_behavior:run",
        "Compare the policies' trajectories with those they were trained on.",
    ),
    Stage(
        "analyze diversity",
        "analysis",
        configs.AnalyzeDiversityConfig,
        configs.LINEAGE,
        "lwdctl.stages.analyze_diversity:run",
        "Compare the diversity and modes of generated behavior with the demonstrations'.",
    ),
    Stage(
        "analyze reconstruction",
        "analysis",
        configs.AnalyzeReconstructionConfig,
        configs.LINEAGE,
        "lwdctl.stages.analyze_reconstruction:run",
        "Run decoded snippets from their own initial states; compare with the recording.",
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
