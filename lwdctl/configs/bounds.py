"""The base of the settings of stages: sizes that no machine could serve are refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lwdctl.core.config import Bound, Settings

_WIDTH = Bound(100_000, "one layer of that width takes 40 GB of memory")
_LAYERS = Bound(1000, "a network of so many layers cannot be trained")
_STEPS = Bound(1_000_000, "a batch of 64 snippets of that length takes more than 1 GB of memory")
_UPDATES = Bound(1_000_000_000, "at a millisecond each, these take twelve days")
_CALLS = Bound(10_000, "a re-plan calls the denoiser up to that often")
_EPISODES = Bound(100_000, "at a second each, these take more than a day")


class StageSettings(Settings):
    """Base of the settings of stages: sizes that no machine could serve are refused at once."""

    bounds: ClassVar[Mapping[str, Bound]] = {
        "seed": Bound(2**31 - 1, "simulators take seeds of 31 bits"),
        "width": _WIDTH,
        "policy_width": _WIDTH,
        "latent_size": _WIDTH,
        "blocks": _LAYERS,
        "layers": _LAYERS,
        "policy_layers": _LAYERS,
        "snippet_length": _STEPS,
        "executed": _STEPS,
        "horizon": _STEPS,
        "stride": _STEPS,
        "loss_steps": _STEPS,
        "focus_steps": _STEPS,
        "video_every": _STEPS,
        "history": Bound(10_000, "every environment keeps that many observations"),
        "batch_size": Bound(1_000_000, "the actions of that many snippets take more than 1 GB"),
        "updates": _UPDATES,
        "vae_updates": _UPDATES,
        "warmup": _UPDATES,
        "max_steps": _UPDATES,
        "snapshots": Bound(10_000, "each takes the disk space of the model's ema.safetensors"),
        "num_train_timesteps": _CALLS,
        "num_inference_steps": _CALLS,
        "episodes": _EPISODES,
        "draws": _EPISODES,
        "count": _EPISODES,
        "seeds": _EPISODES,
        "video": _EPISODES,
        "num_envs": Bound(4096, "each environment is a simulator of about 50 MB"),
        "workers": Bound(1024, "each process takes about 200 MB of memory"),
        "threads": Bound(1024, "each thread needs a core of its own"),
    }
