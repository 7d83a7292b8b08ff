"""The training loop: bit-exact resume, time limits, divergence, logs."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lwdctl.configs import BaselineConfig, DiffusionConfig, VaeConfig
from lwdctl.core.errors import ArtifactError, ConfigError, LwdctlError
from lwdctl.core.progress import SilentProgress
from lwdctl.models import products
from lwdctl.training import checkpoint
from lwdctl.training import loop as loop_module
from lwdctl.training.loop import TrainingLoop
from lwdctl.training.threads import Calibration
from lwdctl.training.update import ema_weight, learning_rate_factor

sys.path.insert(0, str(Path(__file__).parent))
from regression import SETTINGS, Regression, network, same, train

sys.path.pop(0)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    _, whole = train(tmp_path / "whole", Regression())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", Regression(stop_at=13))
    # The update that the signal came in was finished before the checkpoint.
    assert newest(tmp_path / "parts").name == "update-000000014.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", Regression(stop_at=29))
    _, resumed = train(tmp_path / "parts", Regression())
    assert same(whole.model, resumed.model)
    assert same(whole.ema_model, resumed.ema_model)
    assert not same(whole.model, whole.ema_model)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_a_signal_that_nobody_heeds_never_finishes_a_model_early(tmp_path: Path, handler) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        if handler is signal.SIG_IGN:  # a background job of a script: trains to its end
            numbers, _ = train(tmp_path / "run", Regression(stop_at=13))
            assert numbers["updates"] == SETTINGS.updates
        else:
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path / "run", Regression(stop_at=13))
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_log_of_a_resumed_run_has_every_update_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Regression(stop_at=20))
    # Rows beyond the checkpoint, as a killed process leaves them.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"update": 30, "error": 9.0}) + "\n")
    train(tmp_path / "run", Regression())
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["update"] for row in rows] == list(range(1, 41))
    assert "held_out" in rows[9]
    assert rows[0]["seconds"] > 0.0


@pytest.mark.parametrize(("last", "said"), [(1.5, True), (1.1, False), (-1.0, False)])
def test_a_held_out_loss_that_rose_is_said(tmp_path: Path, last: float, said: bool) -> None:
    losses = iter([2.0, 1.0, 1.2, last, last])  # every ten training steps, then at the end
    lines: list[str] = []

    class Overfitting(Regression):
        def validate(self, model: Any) -> dict[str, float]:
            return {"held_out_error": next(losses), "held_out_kl": float(last * 100)}

    class Messages(SilentProgress):
        def message(self, text: str) -> None:
            lines.append(text)

    (tmp_path / "run").mkdir()
    TrainingLoop(network(), Overfitting(), SETTINGS, tmp_path / "run", Messages()).run("train")
    found = [line for line in lines if "overfits" in line]
    assert bool(found) == said
    if said:
        assert "held_out_error was 1 after 20 training steps and is 1.5 now" in found[0]


@pytest.mark.parametrize(("warmup", "said"), [(40, False), (80, True)])
def test_a_warmup_that_training_does_not_finish_is_said(
    tmp_path: Path, warmup: int, said: bool
) -> None:
    lines: list[str] = []

    class Messages(SilentProgress):
        def message(self, text: str) -> None:
            lines.append(text)

    settings = replace(SETTINGS, warmup=warmup)
    TrainingLoop(network(), Regression(), settings, tmp_path, Messages()).run("train")
    found = [line for line in lines if "warm-up" in line]
    assert len(found) == said
    if said:
        assert "40 training steps are fewer than the 80 of the warm-up" in found[0]
        assert "reaches 50% of 0.01" in found[0]


def test_a_time_limit_plans_a_full_schedule_and_finishes(tmp_path: Path) -> None:
    settings = replace(SETTINGS, updates=10_000_000, time_limit=1.0 / 60)
    numbers, loop = train(tmp_path / "run", Regression(), settings)
    assert loop.state.limited
    assert 1 < numbers["updates"] <= loop.state.planned < 10_000_000
    assert numbers["training_seconds"] < 3.0


@pytest.mark.parametrize("config", [VaeConfig, DiffusionConfig, BaselineConfig])
def test_no_time_for_a_training_step_is_an_error(config: type[Any]) -> None:
    with pytest.raises(ConfigError, match="'time_limit' must be at least"):
        config(time_limit=0.0)


def test_divergence_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(LwdctlError, match="diverged at or before update 6") as error:
        train(tmp_path / "run", Regression(diverge_at=5))
    assert "learning-rate" in error.value.hint


def test_a_time_limit_does_not_publish_a_diverged_model(tmp_path: Path) -> None:
    """It ends between two checks of the loss."""

    class Slow(Regression):
        def loss(self, *words: Any) -> Any:
            time.sleep(0.02)
            return super().loss(*words)

    settings = replace(SETTINGS, updates=10_000, time_limit=0.4 / 60, log_every=10_000)
    with pytest.raises(LwdctlError, match="diverged"):
        train(tmp_path / "run", Slow(diverge_at=2), settings)


def test_a_time_limit_adds_no_update() -> None:
    assert replace(SETTINGS, updates=3, time_limit=1.0).planned(3, 3.1) == 3
    assert replace(SETTINGS, updates=100, time_limit=1.0).planned(10, 55.0) == 11
    assert replace(SETTINGS, updates=100, time_limit=1.0).planned(10, 19.0) == 30


def newest(run: Path) -> Path | None:
    return max((run / "checkpoints").glob("update-*.safetensors"), default=None)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[-40:]
    else:  # one bit, in a weight
        content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "one bit"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, how: str) -> None:
    _, whole = train(tmp_path / "whole", Regression())
    for stop in (13, 29):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", Regression(stop_at=stop))
    damage(newest(tmp_path / "run"), how)
    _, resumed = train(tmp_path / "run", Regression())
    assert same(whole.ema_model, resumed.ema_model)
    assert list((tmp_path / "run" / "checkpoints").glob(".update-000000030.*damaged"))


@pytest.mark.parametrize("how", ["truncated", "one bit"])
def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Regression(stop_at=13))
    damage(newest(tmp_path / "run"), how)
    with pytest.raises(ArtifactError, match="there is no other"):
        TrainingLoop(network(), Regression(), SETTINGS, tmp_path / "run", SilentProgress())


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 3, {"a": torch.zeros(2)}, {})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_weights_that_are_not_finite_reach_no_checkpoint_and_are_named(tmp_path: Path) -> None:
    """A huge learning rate breaks the weights of the last training step, whose loss is fine."""
    settings = replace(SETTINGS, updates=1, warmup=0, learning_rate=1e39)
    with pytest.raises(LwdctlError, match=r"diverged at or before update 1: the weight 0\.weight"):
        train(tmp_path / "run", Regression(), settings)
    assert newest(tmp_path / "run") is None


def test_the_term_that_diverged_is_named(tmp_path: Path) -> None:
    class Term(Regression):
        def loss(self, *words: Any) -> Any:
            loss, terms = super().loss(*words)
            return loss, {**terms, "error": loss.detach(), "other": torch.ones(())}

    with pytest.raises(LwdctlError, match=r"the loss is nan \(error nan\)"):
        train(tmp_path / "run", Term(diverge_at=5))


def test_old_checkpoints_are_dropped(tmp_path: Path) -> None:
    train(tmp_path / "run", Regression(), replace(SETTINGS, checkpoint_seconds=0.0))
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["update-000000039.safetensors", "update-000000040.safetensors"]


def test_the_rate_warms_up_then_falls_to_a_hundredth() -> None:
    factors = [learning_rate_factor(update, 100, 10) for update in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert learning_rate_factor(100, 100, 10) == pytest.approx(0.01)


def test_weight_decay_spares_biases_and_resumes(tmp_path: Path) -> None:
    settings = replace(SETTINGS, weight_decay=0.1)
    _, loop = train(tmp_path / "run", Regression(), settings)
    decayed, spared = loop.update.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [p.dim() for p in decayed["params"]] == [2, 2]
    assert [p.dim() for p in spared["params"]] == [1, 1]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", Regression(stop_at=13), settings)
    _, resumed = train(tmp_path / "parts", Regression(), settings)
    assert same(loop.model, resumed.model)


@pytest.mark.parametrize("decay", [0.9999, 0.6])
def test_the_power_schedule_is_diffusion_policys(decay: float) -> None:
    """Their EMAModel (update_after_step 0, inv_gamma 1, power 0.75), update by update."""
    for update in range(50):
        step = max(0, update - 1)
        kept = 0.0 if step <= 0 else min(decay, 1.0 - (1.0 + step) ** -0.75)
        assert ema_weight(update, decay, power=0.75) == pytest.approx(1.0 - kept)


TWO = Calibration(2, {1: 10.0, 2: 20.0})


def said_of_threads(directory: Path) -> list[str]:
    """Return what the log of a training, which reports nothing otherwise, says of threads."""
    lines = (directory / "log.txt").read_text().splitlines()
    return [line.partition(" UTC  ")[2] for line in lines if "threads" in line]


def test_the_number_of_threads_is_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watching(Regression):
        def loss(self, *words: Any) -> Any:
            seen.append(torch.get_num_threads())
            return super().loss(*words)

    monkeypatch.setattr(loop_module, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(loop_module, "calibrate", lambda work: work() or TWO)
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Watching(stop_at=13))
    assert set(seen[-14:]) == {2}
    assert torch.get_num_threads() == before
    chosen = "CPU threads: 2 (measured training steps per second: 10 with 1, 20 with 2)"
    assert said_of_threads(tmp_path / "run") == [chosen]
    monkeypatch.setattr(loop_module, "calibrate", None)
    seen.clear()
    numbers, _ = train(tmp_path / "run", Watching())
    assert set(seen) == {2}
    assert numbers["threads"] == 2
    assert said_of_threads(tmp_path / "run") == [chosen]  # once, by the process that measured
    numbers, _ = train(tmp_path / "set", Watching(), replace(SETTINGS, threads=3))
    assert numbers["threads"] == 3
    assert said_of_threads(tmp_path / "set") == ["CPU threads: 3 (as set)"]


def test_threads_are_chosen_with_the_products_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_registered", lambda: True)
    monkeypatch.setattr(loop_module, "WORTH_MEASURING", 0.0)
    users: list[int] = []

    def choose(work: Any) -> Calibration:
        users.append(products._users)
        work()
        return TWO

    monkeypatch.setattr(loop_module, "calibrate", choose)
    train(tmp_path / "run", Regression())
    assert users == [1]
    assert not products._users


def test_measuring_threads_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = train(tmp_path / "plain", Regression(), replace(SETTINGS, threads=1))
    monkeypatch.setattr(loop_module, "WORTH_MEASURING", 0.0)
    one = Calibration(1, {1: 20.0, 2: 10.0})
    monkeypatch.setattr(loop_module, "calibrate", lambda work: [work() for _ in range(5)] and one)
    _, measured = train(tmp_path / "measured", Regression())
    assert same(plain.model, measured.model)
    assert same(plain.ema_model, measured.ema_model)


def test_a_short_training_takes_one_thread(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(loop_module, "calibrate", None)
    for name, updates in (("short", SETTINGS.updates), ("few", loop_module.FEW_STEPS - 1)):
        settings = replace(SETTINGS, updates=updates)
        numbers, _ = train(tmp_path / name, Regression(), settings)
        assert numbers["threads"] == 1
        (said,) = said_of_threads(tmp_path / name)
        assert "CPU threads: 1 (the training is too short to measure" in said
