"""A process that has the modules loaded and forks a child for every command.

`python forking.py` reads one JSON job per line: the arguments, the environment, the largest file
in bytes that the command may write, and a signal with the seconds after which the command gets it.
It answers with the exit status, both streams' texts and the largest resident memory in bytes. The
child ends as any Python program does, so that what runs at exit is tested too.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import warnings
from pathlib import Path

HEAVY = ("metaworld", "scipy.stats", "sklearn.manifold", "matplotlib.pyplot", "minari", "PIL.Image")


def load() -> None:
    """Import the package, and what its commands import while they run."""
    import lwdctl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.walk_packages(lwdctl.__path__, "lwdctl."):
            if "bench" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        for name in HEAVY:
            importlib.import_module(name)


def serve() -> list[str]:
    """Fork a child for every job; return, in the child, the arguments of its command."""
    with open(0, "rb", buffering=0, closefd=False) as jobs:
        for line in iter(jobs.readline, b""):
            job = json.loads(line)
            pipes = [os.pipe(), os.pipe()]
            child = os.fork()
            if not child:
                return become(job, [writing for _, writing in pipes])
            for _, writing in pipes:
                os.close(writing)
            texts = texts_of([reading for reading, _ in pipes], child, job["signal"], job["after"])
            _, status, used = os.wait4(child, 0)
            peak = used.ru_maxrss * 1024
            answer = json.dumps([os.waitstatus_to_exitcode(status), *texts, peak])
            sys.stdout.write(f"{answer}\n")
            sys.stdout.flush()
    raise SystemExit(0)


def texts_of(descriptors: list[int], child: int, number: int, after: float) -> list[str]:
    """Return all that comes through pipes until their other ends are closed.

    Args:
        descriptors: Ends to read from.
        child: The process that writes.
        number: Signal to send it, or 0.
        after: Seconds until then.
    """
    parts: dict[int, list[bytes]] = {descriptor: [] for descriptor in descriptors}
    while number in (signal.SIGINT, signal.SIGTERM) and not catches_signals(child):
        time.sleep(0.001)  # what arrives during the fork itself, Python forgets
    left, moment = set(descriptors), time.monotonic() + after
    while left:
        wait = max(0.0, moment - time.monotonic()) if number else None
        ready = select.select([*left], [], [], wait)[0]
        if number and time.monotonic() >= moment:
            os.kill(child, number)  # it is waited for later, so that the number is its own
            number = 0
        for descriptor in ready:
            part = os.read(descriptor, 2**16)
            parts[descriptor].append(part)
            if not part:
                left.remove(descriptor)
                os.close(descriptor)
    return [b"".join(parts[descriptor]).decode(errors="replace") for descriptor in descriptors]


def catches_signals(child: int) -> bool:
    """Tell whether a child has installed a handler of SIGTERM, or has ended."""
    lines = Path(f"/proc/{child}/status").read_text().splitlines()
    caught = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    ended = any(line.startswith("State:\tZ") for line in lines)
    return ended or any(int(text, 16) >> (signal.SIGTERM - 1) & 1 for text in caught)


def become(job: dict, streams: list[int]) -> list[str]:
    """Make this process the one that a job describes."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *streams)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # The streams of the server may have been files, which these are not.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ.update(job["environment"])
    if job["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"],) * 2)
    return list(job["words"])


if __name__ == "__main__":
    load()
    words = serve()
    from lwdctl.cli.main import main

    sys.argv[1:] = words  # as the program has them: it ignores signals that come when it is done
    sys.exit(main())
