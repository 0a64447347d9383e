"""What all command lines share: usable streams, and errors as one line and an exit code.

Imports nothing heavy at the top: `begin` repairs the streams before JAX is imported, and an error of that
import (such as a value in the environment that JAX does not know) ends in one line as well.
"""

from __future__ import annotations

import argparse
import codecs
import os
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from mtkd_jax.system import interrupts

if TYPE_CHECKING:
    from rich.console import Console

MENDABLE = 2  # the exit code of what the user can mend
NOBODY_READS = 128 + signal.SIGPIPE  # what a program that SIGPIPE ends is said to have returned
READABLE = "mtkd_jax.readable"  # what streams do with characters that their encoding does not have
WIDTH = 100  # columns into a pipe or a file, where rich would take 80
PACKAGE = str(Path(__file__).parent.parent)
STARTERS = (f"{PACKAGE}/commands.py",)  # import a command line and go on in it


def begin() -> None:
    """Make a process that is to be a command line sound, before anything heavy is imported in it.

    Closed streams become the null device: the next file that is opened would otherwise get their number, and
    what is meant for the terminal would be written into it. Ctrl-C ends the process on the spot: a
    KeyboardInterrupt may come out anywhere in what others wrote, which prints it and goes on, or aborts.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_on_interrupt)
    os.environ["MPLBACKEND"] = "agg"  # figures are files here; a backend of the user's might not even exist
    sys.excepthook = _report_failed_start


def answer(work: Callable[[], int | None]) -> int:
    """Run a command line's `work`; returns its exit code, 0 for None.

    Whatever the user can mend is one line on stderr that begins with "mtkd_jax: ", and 2; 130 and 143:
    interrupted; 141: nobody reads the output any more, and nobody is told. What is left is a fault of ours,
    and is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors=READABLE)
    try:
        try:
            code = work() or 0
        except SystemExit as ended:  # --help of argparse
            if isinstance(ended.code, str):
                raise
            code = ended.code or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        redirect_to_null(sys.stdout)
        return NOBODY_READS
    except interrupts.Interrupted as stopped:
        by = signal.Signals(stopped.signal).name
        tell(f"mtkd_jax: stopped by {by}; {stopped.then('the same command goes on')}")
        return 128 + stopped.signal
    except KeyboardInterrupt:
        tell("mtkd_jax: interrupted; the same command goes on from what is saved")
        return 128 + signal.SIGINT
    except Exception as error:
        line = what_to_mend(error)
        if line is None:
            raise
        tell(f"mtkd_jax: {line}")
        if not _flushed(sys.stdout):
            redirect_to_null(sys.stdout)
        return MENDABLE


def tell(line: str) -> None:
    """One line on stderr, whether or not anybody can read it."""
    Stderr().write(f"{line}\n")


class Stderr:
    """sys.stderr, whatever that is at the time, but what cannot be written is lost.

    A terminal that has gone away, a full disk behind a log or a pipe nobody reads must not end what was only
    speaking of its progress.
    """

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, AttributeError):  # ValueError: closed; AttributeError: there is none
            pass
        return len(text)

    def flush(self) -> None:
        self.write("")

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (ValueError, AttributeError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> TextIO:
        # While rich draws a bar, sys.stderr is a door to the console that the bar is drawn by: ourselves.
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


def console() -> Console:
    """Of stdout, as wide as the terminal; into a pipe or a file 100 columns."""
    from rich.console import Console

    class Own(Console):
        def on_broken_pipe(self) -> NoReturn:
            raise  # the BrokenPipeError that is being handled; rich would end the process with 1

    found = Own()
    return found if found.is_terminal else Own(width=WIDTH)


def in_notebook() -> bool:
    """Whether the output goes below a cell of a notebook."""
    return "ipykernel" in sys.modules and type(sys.stderr).__module__.startswith("ipykernel")


def is_utf8() -> bool:
    """Whether stdout takes every character as it is."""
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")


class Parser(argparse.ArgumentParser):
    """Raises UserError for what is wrong with a command line, where argparse prints its usage and exits."""

    def __init__(self, prog: str, description: str | None, add_help: bool = True):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )

    def error(self, message: str) -> NoReturn:
        from mtkd_jax.types import UserError

        raise UserError(f"{one_line(message)}; --help shows how")


def path(text: str, any_name: bool = False) -> Path:
    """The type of an argument that is a path: see `paths.parse`."""
    from mtkd_jax.system import paths
    from mtkd_jax.types import UserError

    try:
        return paths.parse(text, "the path", any_name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_of_any_name(text: str) -> Path:
    """The same of a file that is only read, whose name need not be UTF-8."""
    return path(text, any_name=True)


def one_line(text: object) -> str:
    """A message without line breaks."""
    return " ".join(str(text).split())


def what_to_mend(error: Exception) -> str | None:
    """What the user has to know of an error that is not ours; None for all others."""
    from mtkd_jax.types import UserError

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):  # a full disk, a folder that has become read-only
        return f"{error.filename or 'writing'}: {error.strerror or error}"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    ):
        return f"out of memory: {one_line(error) or 'no more to be had'}; make batches or networks smaller"
    if not _has_devices():
        return f"JAX finds no device to compute on: {one_line(error) or 'none'}{_describe_jax_environment()}"
    return None


def _has_devices() -> bool:
    """Whether JAX, where it was asked to compute, can; what it raises else differs by platform."""
    jax = sys.modules.get("jax")
    try:
        return jax is None or bool(jax.devices())
    except Exception:
        return False


def _describe_jax_environment() -> str:
    """What the environment says to JAX, as the end of a message."""
    said = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("JAX_")]
    return f"; the environment has {', '.join(said)}" if said else ""


def _exit_on_interrupt(number: int, _: FrameType | None) -> NoReturn:
    """The handler of SIGINT: all that is written is written atomically, so nothing is harmed."""
    tell("\nmtkd_jax: interrupted; the same command goes on from what is saved")
    os._exit(128 + number)


def _report_failed_start(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The hook for what is raised while a command line is still being imported: one line, exit code 2.

    All else, and faults of this package, keep their traceback.
    """
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    importing = all(frame.name == "<module>" or frame.filename in STARTERS for frame in ours)
    from_outside = issubclass(kind, ImportError) or not frames[-1].filename.startswith(PACKAGE)
    if not (importing and from_outside and issubclass(kind, Exception)):
        sys.__excepthook__(kind, error, trace)
        return
    tell(f"mtkd_jax: cannot start: {kind.__name__}: {one_line(error)}{_describe_jax_environment()}")
    raise SystemExit(MENDABLE)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Stands for characters that a stream's encoding does not have; dashes keep their width in tables."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all(unicodedata.category(character) == "Pd" for character in text):
        return "-" * len(text), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error(READABLE, _readable)


def _flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


def redirect_to_null(stream: TextIO) -> None:
    """Point what takes no more at the null device: Python flushes it once more as it ends."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
