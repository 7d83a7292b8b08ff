"""One worker process: answers, deaths, and pipes that nobody reads."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lwdctl.evaluation import worker as module
from lwdctl.evaluation.worker import Worker


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    made = []

    def make(name, *arguments, timeout=60.0):
        import fake_workers

        made.append(Worker(getattr(fake_workers, name), arguments, "0", timeout))
        return made[-1]

    yield make
    for worker in made:
        worker.stop()
    assert multiprocessing.active_children() == []


def soon():
    return time.monotonic() + 60


def test_a_worker_answers_until_it_dies(make):
    worker = make("answer", 1, "two")
    worker.send("question")
    assert worker.receive(soon()) == (("question", (1, "two")), "")
    worker.send("next")
    os.kill(worker._process.pid, signal.SIGKILL)
    while not worker.lost:
        worker.receive(soon())
    assert worker.lost == "the simulator process died (exit code -9)"
    worker.send("to nobody")
    assert worker.receive(soon()) == (None, worker.lost)


@pytest.mark.slow
def test_a_request_that_a_stopped_worker_does_not_read(make, monkeypatch):
    monkeypatch.setattr(module, "START_TIMEOUT", 0.5)
    worker = make("stop_before_reading", timeout=0.5)
    assert worker.receive(soon()) == ("here", "")
    worker.send(bytes(10_000_000))
    assert worker.lost == "the simulator process did not answer in time"


def test_an_answer_that_stops_half_way(make):
    worker = make("stop_half_way", timeout=0.5)
    assert worker.receive(soon()) == (None, "the simulator process did not answer in time")


def test_a_script_that_every_worker_would_run_again_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time; from lwdctl.evaluation.worker import Worker\n"
        "def serve(connection): connection.send('served')\n"
        "print(Worker(serve, (), '0', 60.0).receive(time.monotonic() + 60))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert 'below `if __name__ == "__main__":`' in done.stderr


def test_interrupts_are_for_the_parent_alone(make):
    worker = make("signals")
    os.kill(worker._process.pid, signal.SIGINT)  # while it starts
    assert worker.receive(soon()) == ((True, False), "")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}
