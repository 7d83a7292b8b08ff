"""The settings of every stage: one frozen dataclass each, with its defaults and help texts.

The command line, recipes, manifests and the Python API all use these classes. The module imports
nothing heavy, so that `lwdctl --help` stays fast. None means "not set": the help text says what
then applies. On the command line and in recipes, `none` sets an option back to None.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lwdctl.configs.bounds import StageSettings as StageSettings
from lwdctl.configs.data import CollectConfig as CollectConfig
from lwdctl.configs.data import IngestConfig as IngestConfig
from lwdctl.core.config import option
from lwdctl.core.seeding import EVALUATION_SEED_START

LINEAGE = ("snippets", "vae", "latents", "diffusion")
"""The artifact types that lead to an LWD policy, in the order in which they are made."""

NO_CONDITION = "none"

Split = Literal["all", "train", "validation"]
Cache = Literal["auto", "device", "ram", "none"]
ActionTarget = Literal["auto", "absolute", "relative"]
DenoiserSize = Literal["xs", "s", "m", "l", "xl"]
Prediction = Literal["sample", "v_prediction", "epsilon", "flow"]
Sampler = Literal["ddpm", "ddim", "dpm-solver"]
LatentName = Literal["sampled", "oracle", "nearest", "random", "shuffled", "mean"]
Horizon = int | Literal["episode"]
Precision = Literal["auto", "fp32", "bf16"]
Padding = Literal["masked", "counted"]
CudaGraphs = Literal["auto", "off"]

_DEVICE = "Device to run on: auto, cpu, cuda or cuda:N"
_THREADS = "Threads of the CPU (default: as many as a short measurement finds fastest)"
_PRECISION = (
    "fp32: single precision; auto: the same, on CUDA with TF32 in matrix products; bf16: networks"
    " in bfloat16, generated weights and losses in single precision"
)
_SNAPSHOTS = (
    "Number of times to save the EMA weights, evenly spaced over training, to see whether a model"
    " still improves; each takes the disk space of the model's ema.safetensors"
)
_CUDA_GRAPHS = "CUDA only: repeat the training step as a captured graph (auto), or not (off)"
_CACHE = (
    "Where to keep the recorded steps: GPU memory (device), main memory (ram), or on disk (none)"
)
_LATENT_CACHE = (
    "Where to keep the encoded snippets: GPU memory (device), main memory (ram; with a GPU the same"
    " as none), or in a temporary file (none)"
)
_KEYS = "Observation keys that the networks see (default: those the data marks)"


@dataclass(frozen=True)
class TrainingConfig(StageSettings):
    """Optimization settings that every training stage has."""

    learning_rate: float = option(1e-3, "Peak learning rate of Adam", minimum=0)
    warmup: int = option(100, "Training steps of linear learning-rate warm-up", minimum=0)
    clip_norm: float = option(
        1.0, "Largest gradient norm; 0 turns gradient clipping off", minimum=0
    )
    ema_decay: float = option(0.999, "Largest decay of the EMA weights", minimum=0, maximum=1)
    updates: int = option(8000, "Number of training steps", minimum=1)
    time_limit: float | None = option(
        None, "Minutes after which training ends early (default: no limit)", minimum=0.001
    )
    seed: int = option(0, "Training seed", minimum=0)
    device: str = option("auto", _DEVICE)
    threads: int | None = option(None, _THREADS, minimum=1)
    precision: Precision = option("auto", _PRECISION)
    cuda_graphs: CudaGraphs = option("auto", _CUDA_GRAPHS)
    snapshots: int = option(0, _SNAPSHOTS, minimum=0)


@dataclass(frozen=True)
class VaeConfig(TrainingConfig):
    """Settings of `lwdctl train-vae`."""

    snippet_length: int | Literal["episode"] = option(
        64,
        "Steps per snippet; 'episode' takes the longest episode. Also the action horizon that"
        " eval uses by default",
        minimum=1,
    )
    stride: int = option(1, "Steps between the starts of neighboring snippets", minimum=1)
    starts: Literal["anywhere", "first"] = option(
        "anywhere", "Where snippets start: anywhere in the episode, or only at its first step"
    )
    min_valid_fraction: float = option(
        0.25,
        "Smallest fraction of recorded steps in a snippet; the rest is padding",
        minimum=0,
        maximum=1,
    )
    decoder: Literal["xs", "s", "m", "l"] = option("s", "Hypernetwork size")
    latent_size: int = option(256, "Dimension of the latent", minimum=1)
    policy_width: int = option(256, "Width of the generated policy's hidden layers", minimum=1)
    policy_layers: int = option(2, "Hidden layers of the generated policy", minimum=1)
    time_input: bool = option(
        True, "Give the generated policy the elapsed fraction of its snippet as an input"
    )
    action_target: ActionTarget = option(
        "auto",
        "What the policy outputs: targets as they are, or relative to the robot's position; auto"
        " is relative where the data allows it",
    )
    observation_keys: tuple[str, ...] = option((), _KEYS)
    padding: Padding = option(
        "masked",
        "Leave the steps of a snippet beyond its demonstration out of the loss (masked), or count"
        " them as standing still, so that policies stay where demonstrations end (counted)",
    )
    beta_kl: float = option(1e-8, "Weight of the KL term", minimum=0)
    loss_steps: int | None = option(
        32, "Time steps reconstructed per snippet and training step; 'none' takes all", minimum=1
    )
    focus: Literal["none", "first", "last"] = option(
        "none",
        "Steps of demonstrations whose error counts more in the loss: the first or the last ones",
    )
    focus_steps: int = option(32, "Number of steps of --focus", minimum=1)
    focus_weight: float = option(
        8.0, "Weight of the error of a step of --focus, where the others have 1", minimum=1
    )
    observation_noise: float = option(
        0.0,
        "Size of the noise on the policy's normalized observations (with relative targets: on the"
        " robot's own position), so that it learns to return to its path; its standard deviation"
        " is drawn per snippet, between 0 and the square root of 2 times this",
        minimum=0,
    )
    dynamics_steps: int = option(
        0,
        "Steps for which decoded policies are rolled out through a learned dynamics model, which is"
        " trained beside the VAE and not kept: the squared error of the observations they lead to"
        " is added to the loss. Rollouts grow to this length in the first half of the training"
        " steps (--updates, or those that fit into --time-limit); the observations that they begin"
        " from have the noise of --observation-noise. 0 disables them",
        minimum=0,
    )
    dynamics_weight: float = option(
        1.0, "Weight of the error of rollouts (--dynamics-steps) in the loss", minimum=0
    )
    batch_size: int = option(64, "Snippets per training step", minimum=1)
    cache: Cache = option("auto", _CACHE)


@dataclass(frozen=True)
class EncodeConfig(StageSettings):
    """Settings of `lwdctl encode`."""

    stride: int | None = option(
        None, "Steps between neighboring snippets (default: the VAE's own stride)", minimum=1
    )
    history: int = option(
        2, "Observations in the state condition: the current one and those before it", minimum=1
    )
    batch_size: int = option(1024, "Snippets per batch", minimum=1)
    device: str = option("auto", _DEVICE)
    cache: Cache = option("auto", _CACHE)


@dataclass(frozen=True)
class DiffusionConfig(TrainingConfig):
    """Settings of `lwdctl train-diffusion`."""

    condition: tuple[Literal["state", "task", "label", "none"], ...] = option(
        (),
        "What the model is conditioned on: any of state, task and label, or none (default: state,"
        " and task when there are several)",
    )
    denoiser: str = option("mlp", "Denoiser architecture", registry="lwdctl.models:DENOISERS")
    latent_layout: str = option(
        "16x16",
        "Shape that a U-Net or transformer sees the latent in, as LENGTHxCHANNELS; the product is"
        " the latent's dimension",
    )
    unet_size: DenoiserSize = option("m", "U-Net size")
    transformer_size: DenoiserSize = option("m", "Transformer size")
    width: int = option(512, "Width of the residual MLP", minimum=8)
    blocks: int = option(3, "Residual blocks of the MLP", minimum=1)
    dropout: float = option(
        0.0, "Dropout inside the blocks of the MLP or transformer", minimum=0, maximum=0.9
    )
    prediction: Prediction = option(
        "sample",
        "What the network predicts: the clean latent (sample), the added noise (epsilon), the v of"
        " v-prediction, or the velocity along the straight path from the clean latent to the noise"
        " (flow, which trains by flow matching instead of diffusion)",
    )
    num_train_timesteps: int = option(100, "Timesteps of the forward (noising) process", minimum=2)
    state_noise: float = option(
        0.0, "Standard deviation of noise on the normalized state condition", minimum=0
    )
    condition_dropout: float = option(
        0.0,
        "Probability with which the whole condition of a snippet (state, task and label) is hidden"
        " in a training step, for classifier-free guidance (eval --guidance)",
        minimum=0,
        maximum=0.9,
    )
    batch_size: int = option(256, "Snippets per training step", minimum=1)
    weight_decay: float = option(0.0, "Decoupled weight decay", minimum=0)
    cache: Cache = option("auto", _LATENT_CACHE)


@dataclass(frozen=True)
class BaselineConfig(StageSettings):
    """Settings of `lwdctl train-baseline`; None takes the method's own default."""

    method: str = option(
        "dp",
        "Baseline to train: dp (Diffusion Policy), ldp (latent diffusion of action chunks), mlp"
        " (behavior cloning), or one of another package",
        registry="lwdctl.methods:BASELINES",
        argument=True,
    )
    snippet_length: int | Literal["episode"] = option(
        64,
        "dp, ldp: prediction horizon, the steps of a chunk from the current one on and the longest"
        " action horizon that eval can use; 'episode' takes the longest episode",
        minimum=1,
    )
    executed: int | None = option(
        None,
        "dp: action horizon that eval will use, fewer than the chunk's steps for receding-horizon"
        " control: decides how far chunks reach past the end of a demonstration (default: the"
        " snippet length)",
        minimum=1,
    )
    history: int | None = option(
        None,
        "Observations that the policy sees, the current one and those before it (default: dp, ldp"
        " 2, mlp 1)",
        minimum=1,
    )
    padding: Padding = option(
        "masked",
        "dp and ldp: leave the steps of a chunk beyond its demonstration out of the loss (masked),"
        " or count them as standing still, as Diffusion Policy's authors do (counted)",
    )
    observation_noise: float = option(
        0.0,
        "Size of the noise on the observations in training, in normalized units (mlp and ldp:"
        " standard deviations; dp: half ranges); its standard deviation is this for ldp, and for"
        " mlp and dp drawn per snippet, between 0 and the square root of 2 times this",
        minimum=0,
    )
    time_input: bool = option(False, "mlp: give it the elapsed fraction of the episode as an input")
    condition: tuple[Literal["task", "label", "none"], ...] = option(
        (),
        "What the policy is conditioned on beside the observations (default: the task when there"
        " are several)",
    )
    observation_keys: tuple[str, ...] = option((), _KEYS)
    action_target: ActionTarget | None = option(
        None,
        "What is predicted: targets as they are, or relative to the robot's current position;"
        " auto is relative where the data allows it (default: dp absolute, as in its paper; ldp"
        " and mlp auto)",
    )
    denoiser: str | None = option(
        None,
        "dp, ldp: denoiser architecture (default: dp unet, ldp mlp)",
        registry="lwdctl.models:DENOISERS",
    )
    unet_size: DenoiserSize = option("s", "U-Net size")
    transformer_size: DenoiserSize = option("s", "Transformer size")
    latent_layout: str = option(
        DiffusionConfig.latent_layout,
        "ldp: shape that a U-Net or transformer sees the latent in, as LENGTHxCHANNELS",
    )
    width: int = option(DiffusionConfig.width, "Width of the residual MLP", minimum=8)
    blocks: int = option(DiffusionConfig.blocks, "Residual blocks of the MLP", minimum=1)
    dropout: float | None = option(
        None,
        "Dropout in the denoiser's blocks (default: 0; dp with a transformer 0.01)",
        minimum=0,
        maximum=0.9,
    )
    prediction: Prediction | None = option(
        None,
        "What the denoiser predicts: sample, epsilon, v_prediction, or flow (flow matching)"
        " (default: dp epsilon, ldp sample)",
    )
    num_train_timesteps: int = option(100, "Timesteps of the forward (noising) process", minimum=2)
    condition_dropout: float = option(
        DiffusionConfig.condition_dropout,
        "dp, ldp: probability with which the whole condition of a chunk (observations, task and"
        " label) is hidden in a training step, for classifier-free guidance (eval --guidance)",
        minimum=0,
        maximum=0.9,
    )
    latent_size: int = option(VaeConfig.latent_size, "ldp: dimension of the latent", minimum=1)
    beta_kl: float = option(VaeConfig.beta_kl, "ldp: weight of the KL term", minimum=0)
    vae_updates: int | None = option(
        None, "ldp: number of training steps of its VAE (default: as --updates)", minimum=1
    )
    policy_width: int = option(256, "mlp: width of the hidden layers", minimum=1)
    layers: int = option(2, "mlp: hidden layers", minimum=1)
    learning_rate: float | None = option(
        None, "Peak learning rate of Adam (default: dp 1e-4, ldp and mlp 1e-3)", minimum=0
    )
    warmup: int | None = option(
        None,
        "Training steps of linear learning-rate warm-up (default: dp 500, with a transformer 1000;"
        " others 100)",
        minimum=0,
    )
    clip_norm: float | None = option(
        None,
        "Largest gradient norm; 0 turns gradient clipping off (default: dp 0, ldp and mlp 1)",
        minimum=0,
    )
    weight_decay: float | None = option(
        None,
        "Decoupled weight decay (default: dp 1e-6, with a transformer 0.1; others 0)",
        minimum=0,
    )
    ema_decay: float | None = option(
        None,
        "Largest decay of the EMA weights (default: dp 0.9999, ldp and mlp 0.999)",
        minimum=0,
        maximum=1,
    )
    batch_size: int | None = option(
        None, "Snippets per training step (default: 256; ldp's VAE 64)", minimum=1
    )
    updates: int | None = option(
        None,
        "Number of training steps (default: dp and mlp 20000; ldp 8000 for each of its two models)",
        minimum=1,
    )
    time_limit: float | None = option(
        None, "Minutes after which training ends early; ldp: half per model (default: no limit)",
        minimum=0.001,
    )  # fmt: skip
    seed: int = option(0, "Training seed", minimum=0)
    device: str = option("auto", _DEVICE)
    threads: int | None = option(None, _THREADS, minimum=1)
    precision: Precision = option("auto", _PRECISION)
    cuda_graphs: CudaGraphs = option("auto", _CUDA_GRAPHS)
    snapshots: int = option(0, _SNAPSHOTS, minimum=0)
    cache: Cache = option("auto", _CACHE)


@dataclass(frozen=True)
class RolloutConfig(StageSettings):
    """Settings that every stage with rollouts has."""

    sampler: Sampler = option(
        "ddim",
        "Denoising sampler. Models trained with --prediction flow accept ddim only, which is then"
        " Euler's method",
    )
    num_inference_steps: int = option(10, "Denoising steps per re-plan", minimum=1)
    guidance: float = option(
        1.0,
        "Classifier-free guidance of lwd, dp and ldp: the prediction without the condition plus"
        " this factor times the difference that the condition makes. 1: as trained; 0: the"
        " condition is ignored. Any value but 1 needs a model trained with"
        " --condition-dropout and evaluates the denoiser twice per denoising step",
        minimum=0,
    )
    num_envs: int = option(32, "Environments stepped as one batch", minimum=1)
    workers: int | None = option(
        None, "Environment processes; 0 runs in this process (default: one per core)", minimum=0
    )
    timeout: float = option(120.0, "Seconds after which a simulator counts as hung", minimum=0)
    device: str = option("auto", _DEVICE)

    @property
    def processes(self) -> int:
        """Number of environment processes; 0 holds the environments in this process."""
        from joblib import cpu_count

        return cpu_count() if self.workers is None else self.workers


@dataclass(frozen=True)
class EvalConfig(RolloutConfig):
    """Settings of `lwdctl eval`."""

    horizon: tuple[Horizon, ...] = option(
        (),
        "Action horizon: steps executed per re-plan; 'episode' plans once per episode (default:"
        " the snippet length the model was trained with). Several horizons run a grid: each with"
        " the model that was trained with snippets of that length",
        minimum=1,
    )
    policy: tuple[str, ...] = option(
        ("lwd",), "Policies to evaluate", registry="lwdctl.methods:METHODS"
    )
    seeds: int | None = option(
        None,
        "Number of training seeds whose models to evaluate, from seed 0 on (default: the newest"
        " model)",
        minimum=1,
    )
    one_model: bool = option(False, "Evaluate one model at every horizon")
    latent: tuple[LatentName, ...] = option(
        ("sampled", "oracle", "shuffled", "mean"),
        "Where LWD's latents come from. sampled: the diffusion model; oracle: encoded from the"
        " demonstration whose initial state is restored (the autoencoder alone); nearest: that"
        " of the recorded snippet whose first observation is most similar to the current one;"
        " random: any recorded one of the same task and behavior; shuffled: one of another task or"
        " behavior; mean: the mean of all, one policy for every episode",
    )
    oracle_split: Split = option("all", "Split of the demonstrations that 'oracle' restores")
    episodes: int = option(
        50, "Episodes per task, and per label where labels are evaluated", minimum=1
    )
    task: tuple[str, ...] = option(
        (), r"Tasks to evaluate; write \, for a comma within one (default: all tasks of the data)"
    )
    label: tuple[str, ...] = option(
        (),
        r"Behavior labels to evaluate one after the other; write \, for a comma within one"
        " (default: every label when one of the"
        " models is conditioned on it, else none)",
    )
    seed: int = option(
        EVALUATION_SEED_START,
        "First evaluation seed; seeds below 100000 belong to data collection",
        minimum=EVALUATION_SEED_START,
    )
    warm_start: float = option(
        0.0,
        "Warm start: fraction of the denoising steps to run when re-planning, starting from the"
        " re-noised previous latent (or chunk). 0 always starts from pure noise",
        minimum=0,
        maximum=1,
    )
    temporal_ensemble: float | None = option(
        None,
        "Chunks of actions only: average what all chunks so far predict for a step, with weights"
        " that fall by this rate from the oldest chunk to the newest; goes with a --horizon below"
        " the chunk's steps (default: execute the newest chunk)",
        minimum=0,
    )
    inpainting: float = option(
        0.0,
        "dp only: factor of the weights with which a new chunk keeps to what the previous one holds"
        " for the same steps; they fall to 0 where the previous chunk ends. It is the guidance of"
        " real-time chunking, by gradients: a re-plan costs twice as much. Needs a --horizon below"
        " the chunk's steps; 0 samples every chunk anew",
        minimum=0,
        maximum=1,
    )
    replan_beyond: float | None = option(
        None,
        "LWD only: re-plan before the horizon when the observation differs by more than this from"
        " the recorded snippet with the most similar latent (root mean square over components, in"
        " standard deviations; default: never)",
        minimum=0,
    )
    replan_after: int = option(
        8, "Minimum number of steps between two re-plans, with --replan-beyond", minimum=1
    )
    latency: bool = option(
        False, "Time every policy alone on one episode: milliseconds per step and per re-plan"
    )
    perturbation: tuple[float, ...] = option(
        (0.0,),
        "Magnitudes of random perturbations, in the environment's unit; every policy gets the same"
        " draws",
        minimum=0,
    )
    perturbation_probability: float = option(
        0.1, "Probability of a perturbation at each step", minimum=0, maximum=1
    )
    max_steps: int | None = option(
        None, "Largest number of steps per episode (default: the environment's)", minimum=1
    )
    video: int = option(
        0,
        "Episodes of every condition to record, alternating between tasks: an MP4 file and a grid"
        " of stills each",
        minimum=0,
    )
    video_every: int | None = option(
        None, "Steps between video frames (default: real time, at most 25 frames a second)",
        minimum=1,
    )  # fmt: skip

    @property
    def is_grid(self) -> bool:
        """Whether models are looked up by training seed and, without `one_model`, by horizon."""
        return (len(self.horizon) > 1 and not self.one_model) or self.seeds is not None


def lineage_read(latents: Collection[str], named: Collection[str] = ()) -> tuple[str, ...]:
    """Return the part of an LWD policy's lineage that its latents come from.

    Args:
        latents: Latent sources (`EvalConfig.latent`).
        named: Artifact types of which one artifact was named; the lineage goes at least so far.
    """
    last = 3 if "sampled" in latents else 1 if set(latents) <= {"oracle"} else 2
    return LINEAGE[: 1 + max([last, *(LINEAGE.index(item) for item in named if item in LINEAGE)])]
