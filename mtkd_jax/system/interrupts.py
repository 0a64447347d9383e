"""SIGTERM and Ctrl-C as a request: finish this piece of work, save it, and end.

A signal is only noted; the work asks between its pieces (`stop_requested`, `check`) and stops there itself,
so that nothing has to survive being stopped anywhere. Orbax would notice SIGTERM under jax.distributed alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_TO_UNWIND = 2.0  # after a second Ctrl-C, until the process is ended from outside of what it computes

_noted = 0
# What handled SIGINT before `handle_signals`.
_before: Callable[[int, FrameType | None], Any] | int | None = signal.default_int_handler


class Interrupted(Exception):
    """The run was asked to stop and has; its text says up to where it is saved, or that nothing is `kept`."""

    def __init__(self, signal: int, where: str, kept: bool = True):
        super().__init__(where)
        self.signal, self._kept = signal, kept

    def then(self, again: str) -> str:
        """Its text and, where there is something to go on from, what goes on from there."""
        return f"{self}; {again} from there" if self._kept else str(self)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of a traceback."""
        return [f"mtkd_jax: stopped; {self.then('run the cell again to go on')}"]


def stop_requested() -> int:
    """The number of the signal that asked this process to stop; 0 if none has."""
    return _noted


def request_stop(number: int = signal.SIGTERM) -> None:
    """As if that signal had come, and without its word to the user; for whoever knows when time is over."""
    global _noted
    _noted = _noted or number


def check(where: str) -> None:
    """Raise Interrupted if this process was asked to stop; `where` says up to where the run is saved."""
    if _noted:
        raise Interrupted(_noted, where)


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGINT are noted; a second SIGINT does at once what it would have done before.

    That is to raise KeyboardInterrupt unless somebody chose otherwise. SIGHUP, by which a terminal says that
    it goes away, is ignored: the run goes on.

    Python calls its handlers between two of its own instructions, never during a compilation. A thread
    hears every signal when it comes: it tells the user, and ends the process where a second SIGINT finds
    the main thread unable to. All that is written is written atomically, so nothing is harmed. Does nothing
    outside the main thread, such as in a notebook's worker, where no signal arrives, and within itself.
    """
    global _noted, _before
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is _note:
        yield
        return
    _noted = 0
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    left = threading.Event()
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _before = before[signal.SIGINT]
    wakeup_before = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    listener = threading.Thread(target=_hear, args=(hears, left), daemon=True)
    listener.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(tells)  # the listener reads the end of the pipe and is done
        listener.join()
        os.close(hears)
        _noted = 0


def _note(number: int, frame: FrameType | None) -> None:
    global _noted
    if _noted and number == signal.SIGINT:
        if callable(_before):
            _before(number, frame)
        raise KeyboardInterrupt
    _noted = _noted or number


def _hear(hears: int, left: threading.Event) -> None:
    """Read the signals' numbers, a byte each, until the pipe is closed."""
    heard = False
    while byte := os.read(hears, 1):
        if byte[0] not in SIGNALS:  # another one that somebody handles in Python
            continue
        if not heard:
            _tell("stopping after this piece of work; a second Ctrl-C stops at once")
        elif byte[0] == signal.SIGINT and not left.wait(SECONDS_TO_UNWIND):
            _tell("stopped; the same command goes on from the last checkpoint")
            os._exit(128 + signal.SIGINT)
        heard = True


def _tell(line: str) -> None:
    """One line on stderr, below a progress line that may stand there."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        print(f"\nmtkd_jax: {line}", file=sys.stderr, flush=True)
