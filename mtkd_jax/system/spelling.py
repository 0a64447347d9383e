"""Suggestions for a name that does not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

ENOUGH = 0.5  # likeness from which a name is suggested


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like `name`; None where none is like it at all."""
    best = max(names, key=lambda known: likeness(name, known), default=None)
    return best if best is not None and likeness(name, best) >= ENOUGH else None


def hint(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that does not exist: the nearest that does, or all of them."""
    names = list(names)
    close = nearest(name, names)
    return f"; did you mean {close!r}?" if close else f"; known are {', '.join(sorted(names))}"


def likeness(typed: str, known: str) -> float:
    """How much a typed name is like a known one, 0 .. 1: slips of the finger, and what people leave out.

    >>> likeness("lr", "learning_rate") > likeness("lr", "eval_every")
    True
    >>> likeness("trian", "train"), likeness("x", "weight_decay")
    (0.8, 0.0)
    """
    a, b = typed.lower(), known.lower()
    if a and _words(a) == _words(b):
        return 1.0
    return max(difflib.SequenceMatcher(None, a, b).ratio(), _shortened(_words(a), _words(b)))


def _shortened(typed: list[str], known: list[str]) -> float:
    """How well one is the other with letters or words left out, such as all but the first letters."""
    short, long = "".join(typed), "".join(known)
    share = min(len(short), len(long)) / max(len(short), len(long), 1)
    if short == long:
        return 1.0 if short else 0.0
    if len(known) > 1 and short == "".join(word[0] for word in known):  # lr: learning_rate
        return 0.95
    if len(short) > 1 and _begin(typed, known):  # learn_rate, temp(eratures)
        return 0.8 + 0.1 * share
    if any(word in known for word in typed if len(word) > 2):  # batch_norm: batch_size
        return 0.6 + 0.2 * share
    if len(short) > 1 and long[:1] == short[0] and _in_order(short, long):  # lrate: learning_rate
        return 0.5 + 0.2 * share
    return 0.0


def _words(name: str) -> list[str]:
    """Without "num", which is as often there as not: num_epochs."""
    return [word for word in re.findall(r"[a-z0-9]+", name) if word != "num"]


def _begin(typed: list[str], known: list[str]) -> bool:
    """Whether every typed word begins a known one, in their order."""
    rest = iter(known)
    return all(any(word.startswith(part) for word in rest) for part in typed)


def _in_order(letters: str, word: str) -> bool:
    rest = iter(word)
    return all(letter in rest for letter in letters)
