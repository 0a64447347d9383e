"""Files that are written whole or not at all, and JSON that says when it is not what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mtkd_jax.types import UserError

SEAL = "sha256"  # of the rest of the object; it tells damage, not a forger


def write_atomically(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Replace the file at `path`, so that a reader sees the old bytes or the new ones, never a part.

    Raises UserError, with the old bytes unharmed, when the disk refuses.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what it holds may be what filled the disk
            part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


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
