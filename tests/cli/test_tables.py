import io
import sys

import pytest

from lwdctl.cli.output import print_result_rows, print_table


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("columns", "drawn"), [("80", False), ("200", True)])
def test_a_table_is_drawn_only_where_no_number_is_cut_off(monkeypatch, columns, drawn):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Terminal())
    heads = ["policy", "success [95 %]", *[f"metric_{n}" for n in range(8)]]
    print_table(heads, [["lwd", "0.75 [0.301, 0.954]", *["0.123456"] * 8]])
    text = sys.stdout.getvalue()
    assert "0.75 [0.301, 0.954]" in text
    assert text.count("0.123456") == 8
    assert "…" not in text
    assert ("━" in text) is drawn


def test_result_rows_of_several_stages_are_distinguished(capsys):
    cell = {"policy": "lwd", "latent": "oracle", "task": "all", "episodes": 4, "success": 0.5}
    print_result_rows([{"stage": "eval-small", **cell}, {"stage": "eval-large", **cell}])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("stage")
    assert first.startswith("eval-small")
    assert second.startswith("eval-large")
    print_result_rows([{"stage": "eval-small", **cell}] * 2)
    assert "stage" not in capsys.readouterr().out


def test_the_only_task_has_one_row(capsys):
    row = {"policy": "mlp", "task": "reach", "success": 0.5}
    print_result_rows([row, {**row, "task": "all"}])
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["task", "reach"]
    print_result_rows([row, {**row, "task": "all", "success": 0.4}])
    assert len(capsys.readouterr().out.splitlines()) == 3
    print_result_rows([row, {**row, "task": "push"}, {**row, "task": "all"}])
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(("horizon", "shown"), [(8, False), (16, True)])
def test_a_horizon_other_than_that_of_training_is_shown(capsys, horizon, shown):
    print_result_rows([{"policy": "lwd", "snippet_length": 8, "horizon": horizon, "task": "all"}])
    head = capsys.readouterr().out.splitlines()[0].split()
    assert ({"snippet_length", "horizon"} <= {*head}) == shown


def test_result_rows_show_the_metrics_of_all_of_them(capsys):
    """The first task lost every episode; another stage runs in another environment."""
    cell = {"policy": "lwd", "latent": "sampled", "episodes": 4, "success": 0.5}
    metrics = ({}, {"max_overlap": 0.25}, {"normalized_score": 87.5})
    print_result_rows([{**cell, "task": str(n), "metrics": one} for n, one in enumerate(metrics)])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["max_overlap", "normalized_score", "re-plans"]
    assert [row.split()[-3:-1] for row in rows] == [["-", "-"], ["0.25", "-"], ["-", "87.5"]]
