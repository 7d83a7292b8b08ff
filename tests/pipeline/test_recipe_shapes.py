"""Recipes of the wrong shape: one error that names the file and the table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.recipe import make_plan, read_recipe

SHAPES = {
    "stage = 1": r"\[stage\] is not a table",
    "stage = []": r"\[stage\] is not a table",
    "[[stage]]\nx = 1": r"\[stage\] is not a table",
    "[stage]\ngrow = 1": r"\[stage.grow\] is not a table",
    "[stage]\ngrow = [{}]": r"\[stage.grow\] is not a table",
    "recipe = 1\n[stage.sow]": r"\[recipe\] is not a table",
    "smoke = 1\n[stage.sow]": r"\[smoke\] is not a table",
    "[stage.sow]\n[smoke]\nsow = 3": r"\[smoke.sow\] is not a table",
    "expected = 1\n[stage.sow]": "'expected' is no list of tables",
    "expected = [1]\n[stage.sow]": r"\[\[expected\]\] is not a table",
    "[expected]\nx = 1\n[stage.sow]": "'expected' is no list of tables",
    "[stage.sow]\nneeds = 3": "'needs' takes ids of stages, not 3",
    "[stage.sow]\nneeds = [[]]": "'needs' takes ids of stages",
    "[stage.sow]\nuses = 2020-01-01": "'uses' takes a text, not datetime",
    "[recipe]\ntitle = 2020-01-01T00:00:00Z\n[stage.sow]": "'title' takes str, not datetime",
    "[recipe]\nname.first = 'x'\n[stage.sow]": "'name' takes str",
    "[stage.sow]\n'' = 1": "unknown setting ''",
    "[stage.sow]\nrows.more = 1": "'rows' takes int, not {'more': 1}",
    "[stage.sow]\nrows = nan": "'rows' takes int, not nan",
    "[stage.sow]\nrows = 9223372036854775808": "'rows' must be at most 9",
    "[stage.sow]\ndepth = inf": "'depth' must be a finite number, not inf",
    "[stage.sow]\nfield_kind = '\\u0000'\ndepth = nan": "'depth' must be a finite number",
    '[stage.sow]\nplots = ["a\\u0000b"]': "'plots' may not hold a NUL character",
    "[stage.sow]\nsizes = [[1]]": r"'sizes' takes int, not \[1\]",
    "[stage.sow]\nsizes = [18446744073709551615]": "'sizes' must be at most 9,223,372",
    "[stage.sow]\ntool = ['hand']": r"'tool' cannot be \['hand'\]",
    "[stage.sow]\n[[expected]]\nstage = 'sow'\nmetric = 'rows'\nvalue = nan": "finite number",
    "[stage.sow]\n[[expected]]\nstage = 'sow'\nmetric = 'rows'\nwhere = [1]\nvalue = 1": "a table",
}


@pytest.mark.usefixtures("toy_stages")
@pytest.mark.parametrize(("text", "message"), SHAPES.items(), ids=range(len(SHAPES)))
def test_a_wrong_shape_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(read_recipe(path))
    assert "odd.toml" in caught.value.message


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    for path, message in (
        (pipe, "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a directory"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{path}: it is {message}"):
            read_recipe(path)
