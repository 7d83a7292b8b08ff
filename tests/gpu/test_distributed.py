"""Training with NCCL: the all-reduce of one process is part of the captured training step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.training import loop as loop_module
from lwdctl.training.update import Update

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from every_objective import group_of_one
from made import random_walks
from test_training import largest_difference, train

sys.path.pop(0)
sys.path.pop(0)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not dist.is_nccl_available(), reason="torch is built without NCCL"),
]


@pytest.fixture(scope="module")
def data() -> SnippetStore:
    return random_walks(episodes=12, steps=60, state=5)


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("kind", ["vae", "dp-unet", "mlp"])
def test_one_process_with_nccl_trains_the_same_model(
    kind: str, graphs: str, data: SnippetStore, tmp_path: Path, monkeypatch: Any
) -> None:
    for name in ("plain", "nccl"):
        (tmp_path / name).mkdir()
    plain = train(kind, data, tmp_path / "plain", cuda_graphs=graphs)
    said: list[str] = []
    begin = Update.__init__

    def listening(self: Any, model: Any, objective: Any, settings: Any, _: Any, *rest: Any) -> None:
        begin(self, model, objective, settings, said.append, *rest)

    with group_of_one("cpu:gloo,cuda:nccl") as processes:
        monkeypatch.setattr(loop_module, "join", lambda: processes)
        monkeypatch.setattr(Update, "__init__", listening)
        grouped = train(kind, data, tmp_path / "nccl", cuda_graphs=graphs)
    assert not said  # of a step that is not captured
    assert grouped.summary["processes"] == 1
    assert largest_difference(plain.last, grouped.last) < 1e-6
