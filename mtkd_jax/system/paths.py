"""Paths as a user types them."""

from __future__ import annotations

import os
from pathlib import Path

from mtkd_jax.types import UserError


def parse(path: str | os.PathLike, what: str, any_name: bool = False) -> Path:
    """A path with its `~` expanded; UserError, which begins with `what`, where it cannot be meant.

    Empty, with a NUL, of an unknown home, or, unless it may have `any_name`, not UTF-8: names of folders
    stand in reports and cards.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{what} is {path!r}; must be a path")
    text = os.fspath(path)
    if not text:
        raise UserError(f"{what} is empty; name one, or . for the current folder")
    if "\0" in text or not (any_name or is_text(text)):
        raise UserError(f"{what} is {text!r}; a name must be UTF-8 without NUL")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{what} is {text!r}; whose home that is is not known, write the whole path")
    return Path(expanded)


def is_text(text: str) -> bool:
    """Whether UTF-8 can write it: names of files that are not UTF-8 come as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
