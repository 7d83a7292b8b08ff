"""No text from outside acts on a terminal, wherever it leaves the program."""

import io
import json
import re
import shlex
import subprocess
import sys
import unicodedata

import pytest

from lwdctl.cli.bars import BarProgress, PlainProgress
from lwdctl.cli.failures import command_line
from lwdctl.cli.main import main
from lwdctl.cli.output import print_json, print_result_rows, print_summary, print_table, print_text
from lwdctl.core.plain_text import encodable, visible
from lwdctl.core.progress import TqdmProgress
from lwdctl.training.loop import MetricLog

HOSTILE = (
    "a\nerror: forged\r\x1b[2J\x1b]0;title\x07\t\x00\x7f\x9b31m\x85\u2028\u202e\u2066\u200f"
    "\udc9b\ud800"
)  # fmt: skip
SHOWN = (
    r"a\nerror: forged\r\x1b[2J\x1b]0;title\x07\t\x00\x7f\x9b31m\x85\u2028\u202e\u2066\u200f"
    r"\udc9b\ud800"
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def acting(text):
    """Return the characters of `text` that act on a terminal, line ends aside."""
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    bidirectional = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return {
        character
        for character in text.replace("\n", "")
        if unicodedata.category(character) in kinds
        or unicodedata.bidirectional(character) in bidirectional
    }


@pytest.mark.slow
def test_every_acting_character_is_escaped():
    everything = "".join(map(chr, range(0x110000)))
    assert acting(everything) > set("\x1b\r\x7f\x9b\u202e\ud800")
    shown = visible(everything)
    assert acting(shown) == set()
    assert "\n" not in shown
    assert visible(HOSTILE) == SHOWN
    ordinary = "Grüße, 中文, 🤖, العربية – 0.5 \\n"
    assert visible(ordinary) == ordinary


def test_text_and_tables(capsys):
    print_text(f"one {HOSTILE}")
    print_table([f"head {HOSTILE}", "b"], [[f"cell {HOSTILE}", "1"], ["x", "2"]])
    print_summary({f"key {HOSTILE}": HOSTILE, "more": {HOSTILE: [HOSTILE]}})
    row = {"policy": HOSTILE, "task": HOSTILE, "metrics": {HOSTILE: 0.5}, "success": 0.5}
    print_result_rows([row, {**row, "env": HOSTILE}])
    out = capsys.readouterr().out
    assert acting(out) == set()
    lines = out.splitlines()
    assert len(lines) == 1 + 3 + 2 + 3
    assert lines[0] == f"one {SHOWN}"
    assert lines[1].index("  b") == lines[2].index("  1")


def test_a_drawn_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table([HOSTILE], [[HOSTILE]])
    text = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue())  # the colors are rich's
    assert "━" in text
    assert text.count(SHOWN) == 2
    assert acting(text) == set()


def test_json_has_only_ascii_and_the_same_values(capsys):
    print_json(HOSTILE, HOSTILE, {HOSTILE: [HOSTILE, "中"]})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isascii()
    assert line.isprintable()
    answer = json.loads(line)
    assert answer["artifact"] == HOSTILE
    stored = encodable(HOSTILE)  # as a manifest holds it
    assert answer["summary"] == {stored: [stored, "中"]}


@pytest.mark.parametrize("make", [PlainProgress, BarProgress])
def test_progress(make, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "400")
    stream = io.StringIO()
    progress = make(stream)
    progress.message(HOSTILE)
    with progress.task(HOSTILE, 2, "it") as task:
        task.advance(2, **{HOSTILE: HOSTILE})
    text = stream.getvalue()
    assert acting(text) == set()
    assert text.count(r"\nerror: forged") == 4
    assert "\nerror: forged" not in text


def test_progress_of_the_library(capsys):
    progress = TqdmProgress()
    progress.message(HOSTILE)
    with progress.task(HOSTILE, 2) as task:
        task.advance(2, name=HOSTILE)
    err = capsys.readouterr().err
    assert acting(err) == {"\r"}  # tqdm's own
    assert "\nerror: forged" not in err
    assert r"\nerror: forged" in err


def test_errors_hints_and_usage(capfd, workspace_path):
    for arguments in (
        ["show", HOSTILE.replace("\0", "")],
        ["list", HOSTILE],
        [HOSTILE],
        ["list", f"--{HOSTILE}"],
        ["list", "x", HOSTILE],
        ["run", f"{HOSTILE}.toml".replace("\0", "")],
        ["ingest", HOSTILE.replace("\0", "")],
        ["verify", "--workspace", HOSTILE.replace("\0", "")],
        ["download", HOSTILE],
    ):
        assert main(arguments) in (1, 2), arguments
        out, err = capfd.readouterr()
        assert acting(out + err) == set(), arguments
        assert [line.partition(":")[0] for line in err.splitlines()] in (
            ["error", "hint"],
            ["error"],
        ), err


def test_a_bug_with_a_hostile_message(toy_stages, capfd, monkeypatch, tmp_path):
    def broken(**settings):
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("lwdctl.cli.generate.make_progress", broken)
    assert main(["sow", "x", "--debug"]) == 3
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert acting(err) == set()


def test_warnings_of_libraries_take_one_line():
    program = (
        "import warnings; from lwdctl.cli.streams import safe_streams\n"
        f"with safe_streams(): warnings.warn({HOSTILE!a})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == f"warning: {SHOWN}\n"


@pytest.mark.parametrize("argument", ["a\nb", "\x1b[31m", "it's \\ \t", "\u202ex", "\udcff", "é\n"])
def test_a_command_line_in_a_hint_can_be_pasted(argument):
    line = command_line(["show", argument])
    assert acting(line) == set()
    program = "lwdctl() { printf '%s\\0' \"$@\"; }; "
    done = subprocess.run(["bash", "-c", program + line], capture_output=True, check=True)
    assert done.stdout == b"show\0" + argument.encode(errors="surrogateescape") + b"\0"


def test_an_ordinary_command_line_stays_as_it_was():
    arguments = ["show", "it's", "a b", "plain"]
    assert command_line(arguments) == shlex.join(["lwdctl", *arguments])


def test_the_log_of_a_training(tmp_path):
    with pytest.raises(RuntimeError), MetricLog(tmp_path):
        raise RuntimeError(HOSTILE)
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert line.endswith(f"UTC  ended by RuntimeError: {SHOWN}")
