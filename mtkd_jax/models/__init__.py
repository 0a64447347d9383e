"""Networks: a file an architecture family, a function a network; and helpers for networks of your own."""

from typing import TYPE_CHECKING, Any

OWN = ("equinox", "functions", "linen", "nnx")

if TYPE_CHECKING:
    from mtkd_jax.models.own import equinox, functions, linen, nnx  # noqa: F401


def __getattr__(name: str) -> Any:
    """What models/own.py offers, imported when it is first asked for."""
    if name not in OWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mtkd_jax.models import own

    return getattr(own, name)
