"""A class for every token of a sequence that another one asks for: how words are spoken, translation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtkd_jax.data import tokens
from mtkd_jax.tasks.kinds import Kind, Measure, PlaceOutputs
from mtkd_jax.types import UserError

SPOKEN = "spoken"  # what a network says by itself: labels [L] of the example, at each of its places


def say(logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """What a network says by itself of images [n,2,L,1], greedily: labels [n,L,L], the same at all places.

    `logits_of` is the network, images -> [n,L,C]. It reads what it has said before, and ends at the last
    place at the latest.
    """
    num, _, length, _ = images.shape
    labels = np.full((num, length), tokens.NONE, np.int16)
    ended = np.zeros(num, bool)
    for place in range(length):
        if ended.all():
            break
        read = tokens.with_targets(images, labels)
        best = tokens.END if place == length - 1 else logits_of(read)[:, place].argmax(axis=-1)
        labels[:, place] = np.where(ended, tokens.NONE, best)
        ended |= labels[:, place] == tokens.END
    return np.repeat(labels[:, None], length, axis=1)


def exactly_right(said: PlaceOutputs) -> np.ndarray:
    """[E] 100 where a sequence is right as a whole, else 0.

    Each token is the most probable one behind the right ones before it: then the same comes out greedily
    without these, and only then, but for a target that reaches the last place. There `say` puts the end
    unasked, while here it must be the most probable.
    """
    wrong = np.bincount(said.example, said.logits.argmax(axis=1) != said.labels, said.num_examples)
    return 100.0 * (wrong == 0)


def edits(said: PlaceOutputs) -> np.ndarray:
    """[E,2] the fewest tokens to put in, leave out or change in what a network says by itself, and the tokens
    of the reference."""
    first = np.searchsorted(said.example, np.arange(said.num_examples))
    spoken = said.beside[SPOKEN][first].astype(np.int32)
    references = np.full(spoken.shape, tokens.NONE, np.int32)
    references[said.example, said.place] = said.labels
    return np.stack([tokens.edit_distances(spoken, references), tokens.lengths(references)], axis=1)


def rate(sums: np.ndarray) -> float:
    """Edits a token of the references, in percent."""
    return float(100.0 * sums[0] / sums[1])


def tell(logits: np.ndarray, class_names: Sequence[str], beside: Mapping[str, np.ndarray]) -> list[str]:
    """The sequence that a network says, as a line: by itself where that is known."""
    labels = beside[SPOKEN][0].astype(np.int32) if SPOKEN in beside else logits.argmax(axis=1)
    return [tokens.spell([class_names[label] for label in tokens.sequence_of(labels)])]


def read(file: Path, taken: Mapping[str, Any]) -> list[tuple[str, np.ndarray | str]]:
    """The lines of a text file as sources, but empty ones: a line and its image [2,L,1], or what is wrong.

    `taken` is the card's "input", whose "unit" says what a token is; of an older card, which does not, they
    are characters where all that the network knows are. Others are the unknown token. Raises UserError for a
    file that is no text in UTF-8.
    """
    numbers = {name: number for number, name in enumerate(taken["tokens"], start=tokens.RESERVED)}
    length, looks = taken["shape"][1], "words" if any(len(name) > 1 for name in numbers) else "characters"
    split = tokens.UNITS[taken.get("unit", looks)]
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); must be text in UTF-8, a source a line") from None
    found: list[tuple[str, np.ndarray | str]] = []
    for line in filter(str.strip, lines):
        source = split(line.strip())
        row = np.zeros(length, np.int32)
        if len(source) > length:
            found.append((line, f"{line}: {len(source)} tokens; must be at most {length}"))
            continue
        row[: len(source)] = [numbers.get(token, tokens.UNKNOWN) for token in source]
        found.append((line, tokens.as_images(row[None])[0]))
    return found


KIND = Kind(
    place="token",
    measures=(
        Measure("exact match", exactly_right, unit="%", digits=1, ends=(0.0, 100.0)),
        Measure(
            "token error rate",
            edits,
            value=rate,
            higher_is_better=False,
            unit="%",
            digits=1,
            ends=(0.0, np.inf),
            beside=(SPOKEN,),
        ),
    ),
    tell=tell,
    asks={SPOKEN: say},
    read=read,
    shows_labels=True,
)
