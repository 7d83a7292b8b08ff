"""The page of examples: every block of Python runs, in order, in one session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "examples" / "README.md"


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
