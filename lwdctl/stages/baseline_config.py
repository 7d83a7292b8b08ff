"""What the user chooses about a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from lwdctl.core.config import option
from lwdctl.stages.train_diffusion import DENOISERS, SIZES, TrainDiffusionConfig
from lwdctl.stages.train_vae import TrainVaeConfig

METHODS = ("dp", "ldp", "mlp")


@dataclass(frozen=True)
class TrainBaselineConfig:
    """Which baseline to train, and how; what is None takes the method's own default."""

    method: str = option(
        "dp",
        "dp: Diffusion Policy; ldp: latent diffusion of action chunks; mlp: behavior cloning",
        choices=METHODS,
        argument=True,
    )
    snippet_length: int = option(
        64,
        "dp, ldp: steps that a chunk holds from the current one on, the longest horizon that eval"
        " can use; 'episode' takes the longest episode",
        minimum=0,
        words={"episode": 0},
    )
    executed: int = option(
        0,
        "dp: steps that eval will execute per query, fewer for receding execution: decides how far"
        " chunks reach past the end of a demonstration; 0 takes the snippet length",
        minimum=0,
    )
    history: int = option(
        2, "dp, ldp: observations in the condition, the current one and those before it", minimum=1
    )
    condition: tuple[str, ...] = option(
        (),
        "What is seen beside the observations (default: the task when there are several)",
        choices=("task", "label", "none"),
    )
    observation_keys: tuple[str, ...] = option(
        (), "Observation keys the network sees (default: those the data marks)"
    )
    action_target: str | None = option(
        None,
        "What is predicted: targets as they are, or relative to the robot's current position;"
        " auto is what train-vae does (default: dp absolute, as its authors; ldp and mlp auto)",
        choices=("auto", "absolute", "relative"),
    )
    denoiser: str | None = option(
        None, "dp, ldp: denoiser architecture (default: dp unet, ldp mlp)", choices=DENOISERS
    )
    unet_size: str = option("s", "U-Net size", choices=SIZES)
    transformer_size: str = option("s", "Transformer size", choices=SIZES)
    latent_layout: str = option(
        TrainDiffusionConfig.latent_layout,
        "ldp: how the latent enters a U-Net or transformer, as LENGTHxCHANNELS",
    )
    width: int = option(TrainDiffusionConfig.width, "Width of the residual MLP", minimum=8)
    blocks: int = option(TrainDiffusionConfig.blocks, "Residual blocks of the MLP", minimum=1)
    dropout: float | None = option(
        None,
        "Dropout in the denoiser's blocks (default: 0; dp with a transformer 0.01)",
        minimum=0,
        maximum=0.9,
    )
    prediction: str | None = option(
        None,
        "What the denoiser predicts (default: dp epsilon, ldp sample)",
        choices=("sample", "v_prediction", "epsilon"),
    )
    num_train_timesteps: int = option(100, "Denoising steps of the forward process", minimum=2)
    latent_size: int = option(
        TrainVaeConfig.latent_size, "ldp: components of the latent", minimum=1
    )
    beta_kl: float = option(TrainVaeConfig.beta_kl, "ldp: weight of the KL term", minimum=0)
    policy_width: int = option(256, "mlp: width of the hidden layers", minimum=1)
    layers: int = option(2, "mlp: hidden layers", minimum=1)
    learning_rate: float | None = option(
        None, "Peak learning rate of Adam (default: dp 1e-4, ldp and mlp 1e-3)", minimum=0
    )
    warmup: int | None = option(
        None,
        "Updates of linear warm-up (default: dp 500, with a transformer 1000; others 100)",
        minimum=0,
    )
    clip_norm: float | None = option(
        None, "Largest gradient norm, 0 for no clipping (default: dp 0, ldp and mlp 1)", minimum=0
    )
    weight_decay: float | None = option(
        None,
        "Decoupled weight decay (default: dp 1e-6, with a transformer 0.1; others 0)",
        minimum=0,
    )
    ema_decay: float | None = option(
        None,
        "Largest decay of the averaged weights (default: dp 0.9999, ldp and mlp 0.999)",
        minimum=0,
        maximum=1,
    )
    batch_size: int | None = option(
        None, "Snippets per update (default: 256; ldp's VAE 64)", minimum=1
    )
    updates: int | None = option(
        None,
        "Optimizer updates (default: dp and mlp 20000; ldp 8000 for each of its two models)",
        minimum=1,
    )
    time_limit: float = option(
        0.0, "Minutes of training after which to finish (ldp: half for each model); 0 for none",
        minimum=0,
    )  # fmt: skip
    seed: int = option(0, "Training seed", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    cache: str = option(
        "auto", "Where steps are kept while training", choices=("auto", "device", "ram", "none")
    )
