"""The page of examples: every block of Python runs, in order, in one session."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lwdctl.core import registry
from lwdctl.methods import ENTRY_POINTS, METHODS

PAGE = Path(__file__).parents[2] / "examples" / "README.md"


@pytest.mark.slow
def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PAGE.parent)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 7
    session: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), session)
    assert list(tmp_path.iterdir()) == []  # what is in memory leaves no file
    printed = capsys.readouterr().out
    assert "<Dataset in memory: 50 episodes" in printed
    rows = {row.policy: row for row in session["table"].rows if row.task == "all"}
    assert rows["lwd"].success.value >= 0.7
    assert rows["mine"].success.value == 1.0
    assert session["network"](session["torch"].zeros(7, 4)).shape == (7, 2)
    assert session["actions"].shape == (3, 2)
    assert session["own"].summary["updates"] == 50


def test_the_package_of_the_page_is_a_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files as they stand; only the metadata that pip would write are written here."""
    text = PAGE.read_text()
    (module,) = re.findall(r"`my_policy.py`:\n\n```python\n(.*?)```", text, re.DOTALL)
    (project,) = re.findall(r"`pyproject.toml`:\n\n```toml\n(.*?)```", text, re.DOTALL)
    described = tomllib.loads(project)
    assert described["build-system"]["build-backend"] == "setuptools.build_meta"
    (name,) = described["tool"]["setuptools"]["py-modules"]
    (tmp_path / f"{name}.py").write_text(module)
    about, points = described["project"], described["project"]["entry-points"][ENTRY_POINTS]
    metadata = tmp_path / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {about['name']}\nVersion: {about['version']}\n")
    lines = [f"{point} = {target}\n" for point, target in points.items()]
    (metadata / "entry_points.txt").write_text("".join([f"[{ENTRY_POINTS}]\n", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    registry._entry_points.cache_clear()
    try:
        policy = METHODS.load("my_policy")(None)
    finally:
        registry._entry_points.cache_clear()
    policy.reset(seed=0)
    assert policy.act({"observation": np.zeros(39)}).shape == (4,)
