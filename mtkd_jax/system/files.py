"""Files that are written whole or not at all, and JSON that says when it is not what was written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtkd_jax.types import UserError

SEAL = "sha256"  # of the rest of the object; it tells damage, not a forger
SECONDS_TO_WRITE = 3600.0  # a part that nobody has written to for so long was left by who was killed


def write_atomically(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Replace the file at `path`, so that a reader sees the old bytes or the new ones, never a part.

    Processes that write it at once each write a part of their own, and the last one's bytes are kept.
    Raises UserError, with the old bytes unharmed, when the disk refuses.
    """
    path = Path(path)
    # Hidden: what a killed process leaves is no part of a folder that is listed.
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _remove_leftovers(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what it holds may be what filled the disk
            part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _remove_leftovers(path: Path) -> None:
    """Remove the parts of a file that processes left which were killed as they wrote it."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]{{8}}\.part")
    with contextlib.suppress(OSError):  # a folder that cannot be listed, or another one was quicker
        for name in os.listdir(path.parent):
            part = path.with_name(name)
            if ours.fullmatch(name) and part.stat().st_mtime < time.time() - SECONDS_TO_WRITE:
                part.unlink()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within it no other process is within the same of this folder; waits for one that is.

    What is locked is the folder itself, so that nothing is left lying in it. Where the file system does not
    lock folders, as some of networks, nobody waits.
    """
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it is not there, and whoever writes into it makes it, or says why it cannot
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with the SHA-256 of what it holds; UserError when the disk refuses."""
    write_atomically(path, (json.dumps({**content, SEAL: _seal(content)}, indent=1) + "\n").encode())


def read_sealed(path: Path, mend: str) -> dict[str, Any] | None:
    """What `write_sealed` wrote, without the seal; None where there is no file.

    Raises UserError, which ends with `mend`, where the file cannot be read or is not what was written. What
    has no seal is of an earlier version.
    """
    content = read_object(path, mend)
    if content is not None and SEAL in content and content.pop(SEAL) != _seal(content):
        raise UserError(f"{path}: damaged, its SHA-256 is another one; {mend}")
    return content


def parse(text: str | bytes) -> Any:
    """What JSON says; ValueError for what is none, also where it is nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_object(path: Path, mend: str) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file; UserError as in `read_sealed`."""
    if not path.exists():
        return None
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); {mend}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not what a run writes; {mend}")
    return content


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
