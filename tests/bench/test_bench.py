"""Both sides of a benchmark do the same work, and the command reports ratios."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from lwdctl.bench import comparisons
from lwdctl.bench.batched import METAWORLD, hypnettorch_weights
from lwdctl.bench.comparisons import Comparison, Spread, compare
from lwdctl.cli.main import main
from lwdctl.core.registry import Registry, Row
from lwdctl.models import generated
from lwdctl.models.generated import PolicyDecoder

WORK = Comparison("x", "ours", "theirs", "ms")


def a_row(device, rounds):
    yield WORK.measured([1.0], [2.0])


def a_row_that_fails_after_one(device, rounds):
    yield WORK.measured([1.0], [3.0])
    raise ValueError("broken")


def a_row_without_its_package(device, rounds):
    import no_such_package  # noqa: F401

    yield WORK


def a_row_of_cuda(device, rounds):
    yield comparisons.needs_cuda(Comparison("y", "ours", "theirs", "updates/s", at_least=8.0))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of this file in the place of lwdctl's."""
    functions = (a_row, a_row_that_fails_after_one, a_row_without_its_package, a_row_of_cuda)
    module = types.ModuleType("rows_of_a_test")
    vars(module).update({function.__name__: function for function in functions})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    table = {f.__name__: Row(f"{module.__name__}:{f.__name__}", "A row.") for f in functions}
    monkeypatch.setattr(comparisons, "ROWS", Registry("benchmark", table))


def test_the_reference_path_gives_the_same_actions() -> None:
    from hypnettorch.mnets import MLP

    weights = PolicyDecoder(METAWORLD, 8, (5,))(torch.randn(2, 8)).detach()
    observations = torch.randn(2, 1, 39)
    ours = generated.run(generated.unpack(weights, METAWORLD), observations)
    network = MLP(n_in=39, n_out=4, hidden_layers=[256, 256], no_weights=True, verbose=False)
    for env in range(2):
        theirs = network(observations[env], weights=hypnettorch_weights(weights[env]))
        torch.testing.assert_close(ours[env], theirs, rtol=1e-4, atol=1e-5)


def test_ratios_compare_medians_of_alternating_rounds() -> None:
    order: list[str] = []
    answer = compare(WORK, lambda: order.append("a"), lambda: order.append("b"), rounds=3)
    assert order == ["a", "b"] * 4
    assert answer.rounds == 3
    assert answer.ratio == pytest.approx(answer.reference_value.median / answer.value.median)


def test_a_larger_ratio_is_better_for_times_and_for_rates() -> None:
    assert WORK.measured([1.0, 9.0, 2.0], [4.0, 4.0, 4.0]).ratio == 2.0
    rate = Comparison("x", "ours", "theirs", "updates/s", at_least=3.0)
    answer = rate.measured([8.0], [4.0])
    assert (answer.ratio, answer.reached) == (2.0, False)
    assert rate.measured([12.0], [4.0]).reached is True
    assert rate.reached is None


def test_a_spread_holds_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_every_row_names_a_function() -> None:
    for name in comparisons.ROWS:
        assert callable(comparisons.ROWS.load(name))
    assert set(comparisons.ROWS) >= comparisons.ONLY_NAMED


@pytest.mark.slow
def test_the_command_prints_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--rounds", "1", "--json", "-q", "--device", "cpu"]
    assert main(["bench", "decode", "step", "draw", *options]) == 0
    summary = json.loads(capfd.readouterr().out)["summary"]
    assert [row["row"] for row in summary["rows"]] == ["decode", "step", "draw", "draw"]
    assert all(row["ratio"] > 0 for row in summary["rows"])
    assert summary["machine"]["threads"] == torch.get_num_threads()


def test_a_failed_row_loses_no_other(
    rows: None, capfd: pytest.CaptureFixture[str], tmp_path
) -> None:
    path = tmp_path / "bench.json"
    assert main(["bench", "--out", str(path), "-q", "--device", "cpu"]) == 1
    found = json.loads(path.read_text())["rows"]
    assert [(row["row"], row["ratio"], row["missing"]) for row in found] == [
        ("a_row", 2.0, ""),
        ("a_row_that_fails_after_one", 3.0, ""),
        ("a_row_that_fails_after_one", None, "failed: ValueError: broken"),
        ("a_row_without_its_package", None, "needs the package no_such_package"),
        ("a_row_of_cuda", None, "needs a CUDA device"),
    ]
    printed = capfd.readouterr()
    assert main(["bench", "--show", str(path)]) == 0
    assert capfd.readouterr().out == printed.out
    assert "needs a CUDA device" in printed.out
    assert "a_row_that_fails_after_one --debug" in printed.err


def test_an_unknown_row_is_refused_before_any_is_measured(
    rows: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "a_row", "a_rwo"]) == 1
    assert "no benchmark is called 'a_rwo'" in capfd.readouterr().err


def test_the_rows_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)["summary"]["rows"]) == set(comparisons.ROWS)


def test_a_file_that_holds_no_results_is_refused(
    tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"rows": []}')
    assert main(["bench", "--show", str(path)]) == 1
    assert "holds no results of lwdctl bench" in capfd.readouterr().err
