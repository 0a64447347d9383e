"""Teachers that are programs: compiled elsewhere, with their weights inside, asked like any network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from mtkd_jax.types import Absent, Array, Model, Outputs, PyTree, UserError


@dataclasses.dataclass(frozen=True)
class Programmed(Model):
    """A frozen teacher that is one function, images [B,h,w,c] float32 -> logits [B,C], and no network.

    There is nothing in its variables but {"place": []}, so that it can stand in a population. It is asked
    inside the training step, on whatever images the student sees, and has no gradient.
    """

    call: Callable[[Array], Array] = dataclasses.field(kw_only=True)

    def answer(self, variables: PyTree, image: Array, said: Array | None) -> Outputs:
        """Its logits; UserError where somebody asks for their gradient."""
        logits = _constant(self.call, self.name)(image)
        return Outputs(logits, logits[None], Absent, {})


def in_blocks(call: Callable[[Any], Any], size: int, xp: Any) -> Callable[[Any], Any]:
    """A function of exactly `size` images as one of any number; the last block is filled up.

    `xp` is the NumPy that it computes with, jax's or the host's.
    """

    def of_any(images: Any) -> Any:
        num_images = len(images)
        filled = images[np.arange(num_images + -num_images % size) % num_images]
        blocks = [call(filled[start : start + size]) for start in range(0, len(filled), size)]
        return xp.concatenate(blocks)[:num_images]

    return of_any


def _constant(call: Callable[[Array], Array], name: str) -> Callable[[Array], Array]:
    @jax.custom_vjp
    def constant(image: Array) -> Array:
        return call(image)

    def no_gradient(image: Array) -> NoReturn:
        raise UserError(f"asks how logits change with the image, and {name} is a program without gradients")

    constant.defvjp(no_gradient, lambda residuals, gradient: (gradient,))
    return constant
