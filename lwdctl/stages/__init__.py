"""The table of stages: configuration and inputs in, one artifact out.

Adding a stage is one module that exposes `STAGE` and one row here. The command line, recipes
and their tests read this table, and import a stage's module only when it is asked for.
"""

from __future__ import annotations

from lwdctl.core.registry import Registry, Row

STAGES = Registry(
    "stage",
    {
        "collect": Row(
            "lwdctl.stages.collect:STAGE",
            "Record demonstrations of scripted experts in a simulator.",
        ),
        "ingest": Row("lwdctl.stages.ingest:STAGE", "Read demonstrations into a snippet store."),
        "train-vae": Row(
            "lwdctl.stages.train_vae:STAGE",
            "Train the VAE whose decoder generates policy weights.",
        ),
        "encode": Row("lwdctl.stages.encode:STAGE", "Encode every snippet with a trained VAE."),
        "train-diffusion": Row(
            "lwdctl.stages.train_diffusion:STAGE", "Train the diffusion model over latents."
        ),
        "train-baseline": Row(
            "lwdctl.stages.train_baseline:STAGE",
            "Train a baseline on the same snippets: Diffusion Policy, LDP, or an MLP.",
        ),
        "eval": Row(
            "lwdctl.stages.evaluate:STAGE", "Run sampled policies in the simulator and score them."
        ),
        "analyze latents": Row(
            "lwdctl.stages.analyze_latents:STAGE",
            "Look for behaviors in the latent space: PCA, t-SNE, separability.",
        ),
        "analyze behavior": Row(
            "lwdctl.stages.analyze_behavior:STAGE",
            "Compare what policies do with the trajectories they learned from.",
        ),
        "analyze diversity": Row(
            "lwdctl.stages.analyze_diversity:STAGE",
            "Compare spread and modes of generated behavior with the demonstrations'.",
        ),
        "analyze reconstruction": Row(
            "lwdctl.stages.analyze_reconstruction:STAGE",
            "Run decoded snippets from their own starts: how far from the recorded states?",
        ),
    },
)
