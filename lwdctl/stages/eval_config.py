"""What `eval` lets the user choose."""

from __future__ import annotations

from dataclasses import dataclass

from lwdctl.core.config import option
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.stages.baseline_config import METHODS
from lwdctl.stages.lwd_policy import LATENTS, MEAN, ORACLE, SAMPLED
from lwdctl.stages.run_settings import RunConfig

METHOD = "lwd"
RANDOM = "random"
POLICIES = (METHOD, *METHODS, RANDOM)


@dataclass(frozen=True)
class EvalConfig(RunConfig):
    """What to run and how often."""

    horizon: tuple[int, ...] = option(
        (),
        "Executed steps between two queries; 'episode' for one policy all episode"
        " (default: the snippet length the model was trained with). Several run a grid: each"
        " horizon with the model that was trained with snippets of that length",
        minimum=0,
        words={"episode": 0},
    )
    policy: tuple[str, ...] = option(("lwd",), "Policies to run", choices=POLICIES)
    seeds: int = option(
        0,
        "Run the models of this many training seeds, from 0 on; 0 takes the newest model",
        minimum=0,
    )
    one_model: bool = option(False, "Run one model at every horizon")
    latent: tuple[str, ...] = option(
        (SAMPLED, ORACLE, "shuffled", MEAN),
        "Where LWD's latents come from: sampled by the model; encoded from a demonstration that"
        " is replayed from its start; snippet, a random recorded one of the same task and"
        " behavior; other, one of another task or behavior; the mean of all",
        choices=LATENTS,
    )
    oracle_split: str = option(
        "all",
        "Which demonstrations 'encoded' restores and replays",
        choices=("all", "train", "validation"),
    )
    episodes: int = option(50, "Episodes per task, and per label where labels are run", minimum=1)
    task: tuple[str, ...] = option((), "Tasks to run (default: all the data has)")
    label: tuple[str, ...] = option(
        (),
        "Behavior labels to run one after the other (default: every one when a model that is read"
        " is conditioned on it, else none)",
    )
    seed: int = option(
        EVALUATION_SEED_START,
        "First evaluation seed; seeds below 100000 belong to data collection",
        minimum=EVALUATION_SEED_START,
    )
    warm_start: float = option(
        0.0,
        "Share of the denoising steps that a query does from the previous latent or chunk, noised"
        " so far; an episode's first query, and 0, begin from noise",
        minimum=0,
        maximum=1,
    )
    latency: bool = option(
        False, "Time every policy alone on one episode: milliseconds per control step and re-plan"
    )
    perturbation: tuple[float, ...] = option(
        (0.0,),
        "Magnitudes of random disturbances, in the environment's unit; the same draws for every"
        " policy",
        minimum=0,
    )
    perturbation_probability: float = option(
        0.1, "Probability of a disturbance at each step", minimum=0, maximum=1
    )
    max_steps: int = option(0, "Episode limit in steps; 0 takes the environment's", minimum=0)
    again: bool = option(
        False, "Measure again what an evaluation in this workspace has measured with this software"
    )
    video: int = option(
        0,
        "Episodes of every policy and latent to record, in turn over the tasks:"
        " an MP4 file and a grid of stills each",
        minimum=0,
    )
    video_every: int = option(
        0, "Steps from frame to frame; 0 plays in real time at most 25 a second", minimum=0
    )
