"""Signals at any moment of a command's life end it with 130 or 143: none is lost."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lwdctl.cli.main import main

ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143}
TRAINING = (
    "train-vae --updates 100000000 --snippet-length 8 --policy-width 8 --decoder xs --device cpu"
    " --threads 1 --snippets toy"
)


def catches_signals(pid):
    """Tell whether a process has installed a handler of SIGTERM, or has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return True


def begin(arguments, environment, cwd):
    process = subprocess.Popen(
        [sys.executable, "-m", "lwdctl", *arguments],
        env=environment, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not catches_signals(process.pid):
        time.sleep(0.001)
    return process


def end(process, number):
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return process.returncode, out, err


def check_moments(environment, recording, folder, moments):
    """Send signals to real commands at the given moments after their handlers are installed."""
    commands = [TRAINING, f"ingest {recording} --name again", "list", "--help"]
    for index, moment in enumerate(moments):
        line = commands[index % len(commands)]
        number = list(ENDS)[index // len(commands) % 2]
        process = begin(line.split(), environment, folder)
        time.sleep(moment)
        code, _, err = end(process, number)
        finished = code == 0 and line != TRAINING
        assert finished or code == ENDS[number], (line, number, moment, err)
        if code:
            assert "error: " + ("interrupted" if number == signal.SIGINT else "terminated") in err
    left = [path for path in folder.rglob(".*-*") if not (path / "checkpoints").exists()]
    assert left == []


@pytest.mark.slow
def test_signals_while_a_command_starts(ingested, recording, tmp_path):
    rng = random.Random(0)
    moments = [rng.random() * (0.8 if index % 4 < 2 else 0.2) for index in range(8)]
    check_moments(ingested, recording, tmp_path, [0, 0, 0, *moments[3:]])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_signals_at_many_moments(ingested, recording, tmp_path):
    rng = random.Random(1)
    moments = [rng.random() * (2.5 if index % 4 < 2 else 0.5) for index in range(160)]
    check_moments(ingested, recording, tmp_path, moments)


PROGRAM = """
import signal, sys, time, types
from lwdctl.cli import commands
from lwdctl.cli.main import main
module = sys.modules["toy"] = types.ModuleType("toy")
def command():
    BODY
commands.COMMANDS.rows["toy"] = commands.Row("toy:command", "")
command.__module__ = "toy"
module.command = command
sys.exit(main(["toy", *sys.argv[1:]]))
"""


@contextlib.contextmanager
def running(body, tmp_path, **options):
    """Run a command made of `body`, which prints a line when it may be signalled."""
    program = PROGRAM.replace("BODY", textwrap.indent(textwrap.dedent(body), "    ").strip())
    (tmp_path / "program.py").write_text(program)
    with subprocess.Popen(
        [sys.executable, "-m", "program"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS)
def test_an_import_that_catches_everything_loses_no_signal(tmp_path, number):
    (tmp_path / "catches.py").write_text(
        textwrap.dedent("""
            import time
            print("ready", flush=True)
            for _ in range(100):
                try:
                    time.sleep(0.01)
                except BaseException:
                    pass
            print("imported", flush=True)
        """)
    )
    body = "import catches; time.sleep(60)"
    with running(body, tmp_path, env={**os.environ, "PYTHONPATH": path_of(tmp_path)}) as process:
        code, out, _ = end(process, number)
    assert code == ENDS[number]
    assert "imported" in out


def test_an_interrupt_in_evaluated_text_ends_with_the_exit_code(tmp_path):
    body = """eval("(print('ready', flush=True), time.sleep(60))")"""
    with running(body, tmp_path) as process:
        code, _, _ = end(process, signal.SIGINT)
    assert code == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS)
def test_a_finalizer_loses_no_signal(tmp_path, number):
    body = """
        class Slow:
            def __del__(self):
                print("ready", flush=True)
                time.sleep(60)
                print("not interrupted", flush=True)
        thing = Slow()
        del thing
        time.sleep(60)
    """
    with running(body, tmp_path) as process:
        code, out, _ = end(process, number)
    assert code == ENDS[number]
    assert out == ""  # what the signal interrupted was the finalizer


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_before_the_work_begins_is_reported(monkeypatch, capfd, number):
    @contextlib.contextmanager
    def signalled():
        signal.raise_signal(number)
        yield

    monkeypatch.setattr("lwdctl.cli.streams.safe_streams", signalled)
    assert main(["list"]) == ENDS[number]
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert capfd.readouterr().err == f"error: {word}\n"


SLOW = """
    from pathlib import Path
    from lwdctl.artifacts import run_in_progress
    from lwdctl.artifacts.workspace import Workspace

    plain = run_in_progress.WHERE
    def slow(*words, **options):
        names = {sys._getframe(depth).f_code.co_name for depth in (1, 2)}
        made = plain(*words, **options) if "WHEN" == "after" else None
        if "FUNCTION" in names:
            print("ready", flush=True)
            last = time.monotonic() + 30
            while not signal.getitimer(signal.ITIMER_REAL)[0]:  # the signal has not arrived
                assert time.monotonic() < last
                time.sleep(0.01)
            time.sleep(0.2)  # it waits, and is looked at again and again
        return plain(*words, **options) if made is None else made
    run_in_progress.WHERE = slow
    with Workspace(Path(ROOT)).begin("vae", "lift", config={}) as run:
        if "FUNCTION" == "_finish":  # without which nothing would be kept anyway
            (run.checkpoints / "1").write_text("half way")
        time.sleep(0.2)  # the work, which a signal of before ends
        run.publish({})
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize(
    ("function", "where", "when", "versions"),
    [
        ("_begin", "sync", "before", 0), ("begin_run", "_begin", "after", 0),
        ("_finish", "_claim_version", "after", 1), ("remove_run", "shutil.rmtree", "before", 1),
    ],
)  # fmt: skip
def test_a_run_is_begun_published_and_removed_as_a_whole(
    tmp_path, number, function, where, when, versions
):
    body = SLOW.replace("FUNCTION", function).replace("WHERE", where).replace("WHEN", when)
    body = body.replace("ROOT", repr(str(tmp_path / "runs")))
    with running(body, tmp_path) as process:
        code, _, _ = end(process, number)
    assert code == ENDS[number]
    assert len(list(tmp_path.glob("runs/vae/lift/v*/manifest.json"))) == versions
    assert list(tmp_path.glob("runs/*/*/.*")) == []


def path_of(folder):
    return os.pathsep.join([str(folder), *sys.path])


def test_a_second_signal_ends_at_once_and_says_what_may_be_left(tmp_path):
    body = """
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaning", flush=True)
            time.sleep(60)
    """
    with running(body, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "cleaning\n"
        code, _, err = end(process, signal.SIGINT)
    assert code == 130
    assert err == (
        "error: interrupted again, before everything was cleaned up\n"
        "hint: files of the unfinished run may be left; see what can be removed: lwdctl gc\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(tmp_path, number):
    body = """
        print("ready", flush=True)
        time.sleep(1)
        print("went on", flush=True)
    """
    ignore = lambda: signal.signal(number, signal.SIG_IGN)  # noqa: E731 - like `command &`, `nohup`
    with running(body, tmp_path, preexec_fn=ignore) as process:
        code, out, _ = end(process, number)
    assert (code, out) == (0, "went on\n")


def test_a_hangup_ends_a_command_too(tmp_path):
    with running('print("ready", flush=True); time.sleep(60)', tmp_path) as process:
        code, _, err = end(process, signal.SIGHUP)
    assert code == 129
    assert err.startswith("error: hung up\n")


def test_handlers_are_installed_before_anything_is_imported(tmp_path):
    program = textwrap.dedent("""
        import sys
        before = set(sys.modules)
        from lwdctl.cli.signals import Signals
        Signals.catch = lambda signals: print(sorted({*sys.modules} - before))
        from lwdctl.cli.main import main
        main(["--version"])
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    modules = set(eval(done.stdout.splitlines()[0]))
    light = {"lwdctl", "lwdctl.cli", "lwdctl.cli.main", "lwdctl.cli.signals"}
    assert {name for name in modules if name.startswith("lwdctl")} == light
    assert modules.isdisjoint({"typing", "typer", "dataclasses", "inspect"})
