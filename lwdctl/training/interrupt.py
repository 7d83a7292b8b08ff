"""Stop requests that wait for the end of the current update."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Hold back SIGINT and SIGTERM so that a checkpoint can be written first.

    Inside the context a signal only sets `asked`; on leaving, it is raised again for the
    handler that was there before. A second signal goes through at once. A signal that the
    process ignores (SIGINT in a background job of a script) stays ignored.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Take over the handlers (in the main thread only)."""
        if threading.current_thread() is threading.main_thread():
            heeded = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the handlers back and deliver what was held."""
        self._restore()
        if self.asked is not None and kind is None:
            signal.raise_signal(self.asked)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked = number
        self._restore()
