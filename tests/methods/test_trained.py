"""Trained policies that act for one robot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.methods.method import Acting
from lwdctl.methods.trained import LoadedPolicy


@pytest.mark.parametrize("latent", ["sampled", "mean", "nearest", "random", "shuffled"])
def test_latents_that_are_chosen_by_task_need_one(latent: str) -> None:
    begun: list[Any] = []
    source = SimpleNamespace(env=SimpleNamespace(tasks=("push", "reach")), labels=())
    trained: Any = SimpleNamespace(
        check=lambda acting: None,
        condition=(),
        source=source,
        batch_policy=lambda acting, count: SimpleNamespace(reset=begun.extend),
    )
    policy = LoadedPolicy(trained, Acting(latent=latent), "lwd")
    policy.reset(seed=0, task="reach")
    assert [plan.task for plan in begun] == ["reach"]
    if latent in ("sampled", "mean"):
        policy.reset(seed=0)
        return
    with pytest.raises(ConfigError, match="must know the task") as caught:
        policy.reset(seed=0)
    assert caught.value.hint == "name one: push, reach"
