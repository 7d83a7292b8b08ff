import contextlib
import io
import os
import re
import time

import pytest

from lwdctl.cli.bars import MOST_ENDED, BarProgress, PlainProgress, clock_text, make_progress
from lwdctl.core.progress import SilentProgress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_at_most_every_few_seconds():
    clock, stream = Clock(), io.StringIO()
    with PlainProgress(stream, clock).task("train", 100, "update") as task:
        for _ in range(100):
            clock.now += 0.11
            task.advance(loss=0.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "train: 46/100 (46 %), 9.1 update/s, 0:06 left, loss=0.5"
    assert lines[-1] == "train: 100/100 (100 %), 9.1 update/s, took 0:11, loss=0.5"


def test_the_last_step_is_logged_once():
    clock, stream = Clock(), io.StringIO()
    with PlainProgress(stream, clock).task("rollout", 1, "episode") as task:
        clock.now = 9.0
        task.advance()
    assert len(stream.getvalue().splitlines()) == 1


def test_resumed_work_counts_its_rate_from_where_it_began():
    clock, stream = Clock(), io.StringIO()
    with PlainProgress(stream, clock).task("train", 100, "update", start=90) as task:
        clock.now = 10
        task.advance(5)
    assert stream.getvalue().splitlines()[0] == "train: 95/100 (95 %), 0.5 update/s, 0:10 left"


def test_work_of_unknown_length():
    stream = io.StringIO()
    with PlainProgress(stream).task("reading", None, "episode") as task:
        task.advance(3)
    assert stream.getvalue().startswith("reading: 3, ")


def test_the_stream_decides(monkeypatch):
    assert isinstance(make_progress(quiet=True, stream=Terminal()), SilentProgress)
    assert isinstance(make_progress(quiet=False, stream=io.StringIO()), PlainProgress)
    assert isinstance(make_progress(quiet=False, stream=Terminal()), BarProgress)


@pytest.mark.parametrize("no_color", [True, False])
def test_bars_and_no_color(monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    progress = make_progress(quiet=False, stream=stream)
    with progress.task("outer [x]", 2, "it") as outer, progress.task("inner", 3, "it") as inner:
        inner.advance(3, loss=0.125)
        progress.message("a line [with brackets]")
        outer.advance(2)
    text = stream.getvalue()
    assert "a line [with brackets]" in text
    assert "outer [x]" in text
    assert "3/3" in text
    assert "loss=0.125" in text
    colored = any(f"\x1b[{code}" in text for code in ("31", "32", "36", "38;"))
    assert colored is not no_color


def test_eighty_columns_hold_what_a_long_training_shows(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as stream:
        progress = make_progress(quiet=False, stream=stream)
        with progress.task("train-diffusion", 120_000, "update", start=99_990) as task:
            for _ in range(4):
                time.sleep(0.05)
                task.advance(reconstruction="0.006301", kl=1364.0, **{"samples/s": "5981"})
    written = b""
    with contextlib.suppress(OSError):  # a terminal nobody writes to any more ends with an error
        while part := os.read(reader, 1 << 16):  # one read brings 4 KiB at most
            written += part
    os.close(reader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    bar = re.compile(r"train-diffusion .* \d+/120000 \d+\.\d update/s \d:\d\d:\d\d")
    assert any(bar.fullmatch(line) for line in lines), lines
    assert "reconstruction=0.006301 kl=1364 samples/s=5981" in lines


def test_an_error_inside_a_task_stops_the_bars():
    progress = BarProgress(Terminal())
    with pytest.raises(ValueError, match="inside"), progress.task("t", 2):
        raise ValueError("inside")
    with progress.task("again", 1) as task:
        task.advance()


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (754, "12:34"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert clock_text(seconds) == text


def test_bars_that_have_ended_make_room_for_those_that_go_on(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    progress = make_progress(quiet=False, stream=stream)
    with progress.task("outer", 1):
        for number in range(MOST_ENDED + 2):
            with progress.task(f"inner{number}", 1) as inner:
                inner.advance()
        stream.truncate(0)
    last = stream.getvalue()
    assert "outer" in last
    assert "inner0" not in last
    assert f"inner{MOST_ENDED + 1}" in last
