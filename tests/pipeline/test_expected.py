import pytest

from lwdctl.pipeline.expected import compare, read_expectation

SUMMARY = {
    "seconds": 12.5,
    "results": [
        {"task": "reach", "success": 1.0, "success_low": 0.9, "success_high": 1.0},
        {"task": "all", "success": 0.7, "success_low": 0.5, "success_high": 0.8,
         "metrics": {"max_overlap": 0.66}},
    ],
}  # fmt: skip


def expect(**table):
    return read_expectation({"stage": "eval", "metric": "success", **table}, ["eval"], "recipe")


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        ({"at_least": 0.7}, True),
        ({"at_least": 0.71}, False),
        ({"at_most": 0.7}, True),
        ({"at_most": 0.69}, False),
        ({"at_least": 0.6, "at_most": 0.75}, True),
        ({"value": 0.75, "tolerance": 0.06}, True),
        ({"value": 0.75, "tolerance": 0.04}, False),
        ({"value": 0.7}, True),
        ({"value": 0.6, "tolerance": 0.1}, True),  # 0.6 + 0.1 < 0.7
        ({"value": 0.9, "tolerance": 0.2}, True),
    ],
)
def test_bounds(bounds, met):
    comparison = compare(expect(where={"task": "all"}, **bounds), SUMMARY)
    assert comparison.measured == 0.7
    assert comparison.interval == (0.5, 0.8)
    assert comparison.met is met


def test_nested_metric():
    comparison = compare(
        expect(metric="metrics.max_overlap", where={"task": "all"}, at_least=0.5), SUMMARY
    )
    assert comparison.measured == 0.66
    assert comparison.interval is None


def test_number_of_the_summary_itself():
    assert compare(expect(metric="seconds", at_most=20.0), SUMMARY).met


@pytest.mark.parametrize("where", [{"task": "none"}, {"task": "reach", "policy": "lwd"}])
def test_nothing_measured_is_not_met(where):
    comparison = compare(expect(where=where, at_least=0.0), SUMMARY)
    assert comparison.measured is None
    assert not comparison.met


def test_an_ambiguous_result_row_is_not_met():
    doubled = {"results": SUMMARY["results"] * 2}
    comparison = compare(expect(where={"task": "all"}, at_least=0.0), doubled)
    assert (comparison.measured, comparison.rows, comparison.met) == (None, 2, False)


@pytest.mark.parametrize(("found", "measured"), [(True, 1.0), (False, 0.0), ("yes", None)])
def test_a_truth_value_counts_as_one_or_nothing(found, measured):
    comparison = compare(expect(metric="inside.sos", value=1), {"inside": {"sos": found}})
    assert comparison.measured == measured
    assert comparison.met is (measured == 1.0)
