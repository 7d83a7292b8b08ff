"""What trainings say about their snippets before they begin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lwdctl.configs import BaselineConfig, VaeConfig
from lwdctl.core.progress import SilentProgress
from lwdctl.methods.trained import train_method
from lwdctl.training.vae import train_vae

sys.path.insert(0, str(Path(__file__).parent))
from made import random_walks

sys.path.pop(0)

TINY = {"updates": 4, "batch_size": 4, "device": "cpu", "threads": 1, "warmup": 1}
EVERY = pytest.mark.parametrize("method", ["vae", "dp", "ldp"])


class Messages(SilentProgress):
    """Keeps the lines that it is to show."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def lines_of(directory: Path, method: str, **settings: Any) -> list[str]:
    """Train on 5 episodes of 20 steps, a sixth one held out, and return what was said."""
    data, shown = random_walks(episodes=6, steps=20, state=3), Messages()
    if method == "vae":
        config = VaeConfig(**TINY, decoder="xs", policy_width=8, latent_size=8, **settings)
        train_vae(data, config, directory=directory, progress=shown)
    else:
        baseline = BaselineConfig(method, **TINY, unet_size="xs", width=8, **settings)
        train_method(data, baseline, directory, shown)
    return shown.lines


@pytest.mark.slow
@EVERY
def test_a_training_says_how_often_it_visits_the_snippets(tmp_path: Path, method: str) -> None:
    (line,) = [line for line in lines_of(tmp_path, method, snippet_length=8) if "passes" in line]
    # Chunks of Diffusion Policy begin with the observation before; the U-Net wants 12 steps.
    count, steps, padding = (100, 12, 23) if method == "dp" else (95, 8, 14)
    assert line.startswith(
        f"5 training episodes, {count} snippets of {steps} steps, {padding}% padding;"
        f" 4 training steps = {16 / count:.2f} passes over all snippets"
    )
    # These visit one snippet of every episode per epoch, as the paper does.
    assert ("or 3.2 epochs of one snippet per episode" in line) == (method != "dp")


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize(("length", "warns"), [(16, False), (60, True), ("episode", False)])
def test_snippets_that_are_mostly_padding_are_a_warning(
    tmp_path: Path, method: str, length: int | str, warns: bool
) -> None:
    lines = lines_of(tmp_path, method, snippet_length=length)
    found = [line for line in lines if "warn" in line and "padding" in line]
    assert len(found) == warns
    if warns:
        assert "% of the steps of all snippets are padding" in found[0]
        assert "--snippet-length episode" in found[0]
