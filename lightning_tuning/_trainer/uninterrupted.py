"""Work that Ctrl-C must not cut in two."""

from __future__ import annotations

import signal
import threading


class Uninterrupted:
    """Holds Ctrl-C back until everything is in its place again."""

    def __enter__(self) -> None:
        self._pressed = False
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            # None: a handler that is not Python's own, and can't be put back
            self._handler = signal.getsignal(signal.SIGINT)
            if self._handler is not None:
                signal.signal(signal.SIGINT, self._remember)

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._pressed:
                signal.raise_signal(signal.SIGINT)

    def _remember(self, *_: object) -> None:
        self._pressed = True
