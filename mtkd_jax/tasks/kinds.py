"""What a task is: a record. Each file beside this one has one, called KIND; its name is that of the file."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Array, Context, UserError


@dataclasses.dataclass(frozen=True)
class PlaceOutputs:
    """What one network says of P places of E examples, example after example, and what is right."""

    logits: np.ndarray  # [P,C]
    labels: np.ndarray  # [P] int32, none of them -1
    example: np.ndarray  # [P] int, which of the E examples it is of: 0, 1, ..., never falling
    place: np.ndarray  # [P] int, which of the example's L places
    beside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # {name: [P,d]}, predictions
    goals: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # {name: [P,d]}, their labels
    class_names: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        return int(self.example[-1]) + 1 if len(self.example) else 0

    def take(self, examples: np.ndarray) -> PlaceOutputs:
        """The places of some examples [e], in that order; one that is named twice is two of them."""
        starts = np.searchsorted(self.example, np.arange(self.num_examples + 1))
        sizes = np.diff(starts)[examples]
        rows = np.concatenate([np.arange(starts[e], starts[e + 1]) for e in examples])
        of_rows = lambda arrays: {name: array[rows] for name, array in arrays.items()}  # noqa: E731
        return PlaceOutputs(
            self.logits[rows],
            self.labels[rows],
            np.repeat(np.arange(len(examples)), sizes),
            self.place[rows],
            of_rows(self.beside),
            of_rows(self.goals),
            self.class_names,
        )


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number that the report tells of every network of a task, with an interval by resampling examples.

    `compute` is a pure function of `PlaceOutputs`. It returns a value an example [E], whose mean is told; or
    statistics of each example [E,S], of whose sum [S] over examples `value` makes the number (a resample is
    then a sum, and cheap); or a function of how often each example counts [E] -> number, whose interval is
    that of a jackknife (`intervals.jackknife_interval`) and which must change smoothly; or one number [] for
    all of them, which every resample computes anew. Of an ensemble, `beside` is the teachers' mean.
    """

    name: str  # the heading of its column
    compute: Callable[[PlaceOutputs], Any]
    value: Callable[[np.ndarray], float] | None = None
    higher_is_better: bool = True
    unit: str = ""  # behind the name, such as "%"
    digits: int = 3  # behind the point
    ends: tuple[float, float] = (-np.inf, np.inf)  # of all values; an interval is cut there
    beside: tuple[str, ...] = ()  # what it reads of `PlaceOutputs.beside`; rows without it lack the number


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task: all that is not the same for images, masks, boxes, tokens and frames."""

    place: str = ""  # what one of the L places is called, such as "pixel"; "": an example has one label
    measures: tuple[Measure, ...] = ()
    # A picture [H,W,3] uint8 of an image [h,w,3] uint8 with classes [L] (-1: no place), of class names, and
    # beside {name: [L,d]}: what is right (of goals), or what a network says.
    draw: Callable[[np.ndarray, np.ndarray, Sequence[str], Mapping[str, np.ndarray]], np.ndarray] | None = (
        None
    )
    # What `predict` prints of one example: logits [L,C], class names, beside -> lines:
    tell: Callable[[np.ndarray, Sequence[str], Mapping[str, np.ndarray]], list[str]] | None = None
    beside_loss: Callable[[Context], Array] | None = None  # [B*L], of `Outputs.beside` and `Batch.goals`
    # Of places that stand row by row in a grid over the image (`DataSet.grid`): goals {name: [B,L,d]} as a
    # mirrored image has them, left for right. None: flips are refused where places are no pixels.
    mirror: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None
    # What a trained network says when it is asked in another way, by name: stands among what it predicts
    # beside. Of a function images [n,h,w,c] -> logits [n,L,C], and images -> [n,L,d]:
    asks: Mapping[str, Callable[[Callable[[np.ndarray], np.ndarray], np.ndarray], np.ndarray]] = (
        dataclasses.field(default_factory=dict)
    )
    # What `predict` reads where that is no image files: a file and the card's "input" -> the name of each
    # example, and its image [h,w,c] or what is wrong with it:
    read: Callable[[Path, Mapping[str, Any]], list[tuple[str, np.ndarray | str]]] | None = None
    shows_labels: bool = False  # an image holds its labels, so that none of them can be hidden


@lru_cache
def named(name: str) -> Kind:
    """The task of a name; UserError, with the nearest one, where there is none."""
    known = names()
    if name not in known:
        raise UserError(f"task {name!r}: must be of {', '.join(known)}{hint(name, known)}")
    return importlib.import_module(f"mtkd_jax.tasks.{name}").KIND


def names() -> tuple[str, ...]:
    """All tasks."""
    own = Path(__file__).stem
    return tuple(
        sorted(
            module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name != own
        )
    )
