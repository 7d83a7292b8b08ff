import csv
import dataclasses
import io
import math

import pytest

from lwdctl.analysis.tables import Table, show, show_difference, show_estimate
from lwdctl.evaluation.results import Estimate


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    seeds: tuple[int | None, ...]
    success: Estimate
    ratio: float | None = None


def test_records_as_csv_with_three_columns_per_estimate():
    rows = [Row("a", (0, None, 2), Estimate(0.5, 0.25, 0.75, 8)),
            Row("b", (), Estimate(math.nan, 0.0, 1.0, 0), 2.0)]  # fmt: skip
    assert Table.from_records(Row, rows).to_csv().splitlines() == [
        "name,seeds,success,success_low,success_high,ratio", "a,0 2,0.5,0.25,0.75,",
        "b,,,0.0,1.0,2.0",
    ]  # fmt: skip


def test_no_records_still_name_the_columns():
    annotated = dataclasses.make_dataclass("Row", [("x", "Estimate"), ("y", "int")])
    assert Table.from_records(annotated, []).to_csv() == "x,x_low,x_high,y\n"


def test_text_for_people():
    table = Table(("group", "value"), (("shuffled", 0.123456), ("a", None)))
    assert str(table) == "group     value\nshuffled  0.1235\na         –"
    assert table.to_markdown().splitlines()[1:3] == ["| --- | --- |", "| shuffled | 0.1235 |"]
    assert show([12_345, True, ""]) == "12,345, yes, –"
    assert show("a\nb\x1b") == r"a\nb\x1b"
    assert show_estimate(Estimate(0.5, 0.25, 0.75, 8), 0.1) == "0.500 [0.250, 0.750] sd 0.100"
    assert show_estimate(Estimate(0.5, math.nan, math.nan, 1)) == "0.500"
    assert show_difference(Estimate(-0.5, -0.75, math.nan, 1)) == "-0.5 [-0.75, –]"


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd", "-x", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n@x", "\uff1d1", "-0.5 x"]
)
def test_csv_has_no_formulas(text):
    table = Table((text, "b"), ((text, 1), ([text, "y"], 2)))
    for row in csv.reader(io.StringIO(table.to_csv())):
        assert row[0].startswith("\\")
        assert not row[0].lstrip("\\").startswith(("\t", "\r", "\n"))


def test_csv_leaves_numbers_and_ordinary_text():
    row = (-0.5, 3, "-0.5", "+1e5", "a=b", "–", [-1.0, 2.5], float("nan"), None)
    (line,) = csv.reader(io.StringIO(Table((), (row,)).to_csv().removeprefix("\n")))
    assert line == ["-0.5", "3", "-0.5", "+1e5", "a=b", "–", "-1.0 2.5", "", ""]
