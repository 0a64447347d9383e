"""`python -m mtkd_jax.predict --student runs/digits/student photos/`: the class of every image, or row.

Only the student's folder is read; networks and training are not imported. A line for every image, in a table
or with --json as JSON: {"image", "class", "probability"}, and {"probabilities"} of the most likely classes
when --top asks for several; {"image", "error"} for one that cannot be read, when the others are still told.
A student of a table is asked about tables with columns of the same names, in any order, and one of series or
their frames about .tsv, .ts and .arff files of series as long, in which what stands for the class is not read
(a .ts file without @classLabel true has none): {"file", "line"} stand in the place of {"image"}, {"file"}
alone for a file that cannot be read. A student of pixels, boxes or frames tells what its task does, such as
the area of each class: {"told"} in the place of {"class"}. One of sequences reads text files, a source a
line: {"source", "told"}.
With --form onnx, int8 or onnx_int8 another form of the student is asked, which `mtkd_jax.export --forms`
has written.
With --cascade the ensemble answers where the student is not sure enough, and {"answered_by"} says who did.
With --logits OUT.npz nothing is printed but where it went: the logits of all images, under their names, as
another run learns from them (config.teachers.logits; see data/logit_files.py).
Exit code 0: every image was read; 2: some were not, or another error that the user can mend, in one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mtkd_jax.data import images, series_files, tables
from mtkd_jax.deploy import cascade
from mtkd_jax.deploy.deployed import PIXELS, PROGRAMS, load_program
from mtkd_jax.system import terminal
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError, printable


class Prediction(NamedTuple):
    """What the student says of one file or line, the most likely class first; or why it was not asked."""

    path: Path
    line: int = 0  # of the file; 0 of an image
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    by: str = ""  # "student" | "ensemble", of a cascade
    logits: tuple[float, ...] = ()  # of all classes, in their order
    lines: tuple[str, ...] = ()  # of a student of places, what its task tells of them, in place of classes
    source: str = ""  # of a student of sequences, what it was asked about

    @property
    def name(self) -> str:
        """What it is called in a table of answers and in a file of logits."""
        if self.source:
            return self.source
        return f"{self.path.as_posix()}: line {self.line}" if self.line else self.path.as_posix()


class Input(NamedTuple):
    """What a student is asked about."""

    path: Path
    line: int  # of the file; 0 of an image
    read: Callable[[], np.ndarray]  # [h,w,c] uint8 pixels, or float32; UserError where it has none
    source: str = ""  # of sequences, the line itself


def main(argv: Sequence[str] | None = None) -> int:
    """Predict the class of images by an exported student; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    net = cascade.load(asked.student) if asked.cascade else None
    program, card = load_program(asked.student, asked.form) if net is None else (net.student, net.card)
    of_lines = reads_lines(card)
    if of_lines and asked.fit:
        raise UserError(f"--fit {asked.fit}: is for images, and this student reads lines of files")
    paths = asked.images if of_lines else files(asked.images)
    fit = asked.fit or card["input"].get("fit", "crop")
    images.resizer_of(fit)
    found = predictions(program, card, paths, top=asked.top, fit=fit, batch=asked.batch, net=net)
    for note in () if of_lines else unlike_training(card["input"], asked.fit, paths):
        terminal.tell(f"note: {note}")
    if asked.logits is not None:
        check_says_one_class(card, f"--logits {asked.logits}")
        told = _write_logits(asked.logits, found, card["class_names"])
    else:
        told = list(_tell_as_json(found, of_lines) if asked.json else _tell(found, of_lines))
    if net is not None:
        terminal.tell(f"note: {_handed_over(told, net.terms)}")
    if unread := sum(bool(one.error) for one in told):
        what = "lines" if of_lines else "images"
        raise UserError(f"{unread} of {len(told)} {what} could not be read")


def files(given: Iterable[Path]) -> list[Path]:
    """The files as they are given, and in the place of a folder the images in it and below, sorted by name.

    Raises UserError for a folder without any.
    """
    found: list[Path] = []
    for path in given:
        inside = images.find_images(path) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: holds no image; must hold {', '.join(images.SUFFIXES)} files")
        found += inside
    return found


def unlike_training(taken: dict[str, Any], fit: str, paths: Iterable[Path]) -> list[str]:
    """What is done to these files otherwise than to the images of training, or is not known to be the same.

    `taken` is the card's "input", `fit` what was asked for, "" for what the card says.
    """
    trained, files, size = taken.get("fit", ""), taken.get("files", images.READING), tuple(taken["shape"][:2])
    found = []
    if fit and trained and fit != trained:
        found.append(f"--fit {fit}, but the network was trained with {trained}")
    if not fit and not trained and any(_has_another_size(path, size) for path in paths):
        found.append(
            f"the card does not say how images were brought to {size[0]} x {size[1]} in training: they are "
            "cropped here; --fit pad or stretch does otherwise"
        )
    for name in sorted({*files, *images.READING}):
        before, now = files.get(name, "unknown"), images.READING.get(name, "unknown")
        if before != now:
            found.append(
                f"{name}: {now}, but in training {before}; another version of mtkd_jax wrote the card"
            )
    return found


def _has_another_size(path: Path, size: tuple[int, int]) -> bool:
    try:
        return images.shape_of(path)[:2] != size
    except UserError:  # is told in its turn
        return False


def predictions(
    program: Callable,
    card: Mapping[str, Any],
    paths: Sequence[Path],
    *,
    top: int,
    fit: str,
    batch: int,
    net: cascade.Cascade | None = None,
) -> Iterator[Prediction]:
    """What the student says of every file, or line of one, in order, with the `top` most likely classes.

    `program` and `card` are those of `load_program`; `fit` brings images to size, as in `images.read`. With
    `net`, whose student the program is, the ensemble answers where the student is not sure. Raises UserError
    when the student reads no files.
    """
    images.resizer_of(fit)
    asked = inputs(card, paths, fit)
    size = min(batch, len(asked))
    for start in range(0, len(asked), size):
        yield from _of_batch(program, card, asked[start : start + size], top, size, net)


def inputs(card: Mapping[str, Any], paths: Iterable[Path], fit: str) -> list[Input]:
    """What the student of a card is asked about: image files, or all lines of tables, series or sources.

    Of lines, a file that cannot be read is one input, which raises that. Raises UserError when the student
    reads none of these.
    """
    if (lines_of := _lines_of(card)) is None:
        shape = check_reads_files(card)
        return [Input(path, 0, partial(images.read, path, shape=shape, fit=fit)) for path in paths]
    found = []
    for path in paths:
        try:
            found += _some(path, lines_of(path))
        except UserError as error:
            found.append(Input(path, 0, partial(_raise, error)))
    return found


def _some(path: Path, lines: list[Input]) -> list[Input]:
    """The lines of a file; UserError where there is none."""
    if not lines:
        raise UserError(f"{path}: holds no line; must hold one at least")
    return lines


def reads_lines(card: Mapping[str, Any]) -> bool:
    """Whether a student reads the lines of tables, of files of series or of sources."""
    return _lines_of(card) is not None


def _lines_of(card: Mapping[str, Any]) -> Callable[[Path], list[Input]] | None:
    """What makes an input of every line of a file, for a student of lines."""
    taken, shape, kind = card["input"], tuple(card["input"]["shape"]), _kind(card)
    if kind is not None and kind.read is not None:
        return lambda path: [
            Input(path, 0, partial(_given, image), line) for line, image in kind.read(path, taken)
        ]
    if "columns" in taken:
        return lambda path: [Input(path, *one) for one in tables.readers(path, names=taken["columns"])]
    if taken["range"] != PIXELS and shape[1] == 1:
        return lambda path: [Input(path, *one) for one in series_files.readers(path, shape=shape)]
    return None


def _given(image: np.ndarray | str) -> np.ndarray:
    """The image; UserError for a text, which says why there is none."""
    if isinstance(image, str):
        raise UserError(image)
    return image


def _raise(error: UserError) -> np.ndarray:
    raise error


def check_reads_files(card: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape [h,w,c] of the images that a student sees; UserError when it reads no image files."""
    shape = tuple(card["input"]["shape"])
    if card["input"]["range"] != PIXELS or shape[-1] not in (1, 3):
        raise UserError(
            f"{card['name']}: reads arrays {list(shape)} ({card['input']['range']}), not image files; "
            "must be asked from Python, as its README.md shows"
        )
    return shape


def check_says_one_class(card: Mapping[str, Any], asked: str) -> None:
    """UserError, which begins with what was `asked` for, where a student says several classes an image."""
    if "places" in card:
        raise UserError(
            f"{asked}: {card['name']} says a class of every {card['places']['place']}; must be a student "
            "that says one of every image"
        )


def _of_batch(
    program: Callable,
    card: Mapping[str, Any],
    asked: Sequence[Input],
    top: int,
    size: int,
    net: cascade.Cascade | None,
) -> Iterator[Prediction]:
    """At most `size` inputs; the program always sees as many, so that it is compiled once."""
    seen, errors = np.zeros((size, *card["input"]["shape"]), np.float32), [""] * len(asked)
    kind, tell = _kind(card), _telling(card)
    for place, one in enumerate(asked):
        try:
            read = one.read()
            seen[place] = read.astype(np.float32) / 255 if read.dtype == np.uint8 else read
        except UserError as error:
            errors[place] = str(error)
    if net is None:
        logits, by = np.asarray(program(seen), np.float64), [""] * size
    else:
        there = np.array([not error for error in errors] + [False] * (size - len(asked)))
        logits, handed_over = cascade.answer(net, seen, there)
        by = np.where(handed_over, "ensemble", "student").tolist()
    further = _asked_further(program, kind, len(card["class_names"]), seen)
    for place, (one, wrong, own, who) in enumerate(zip(asked, errors, logits, by)):
        if wrong:
            yield Prediction(one.path, one.line, error=wrong, source=one.source)
        elif tell is not None:
            lines = tell(own, {name: said[place] for name, said in further.items()})
            yield Prediction(one.path, one.line, lines=tuple(lines), source=one.source)
        else:
            row = softmax(own)
            best = np.argsort(-row, kind="stable")[:top]
            classes = tuple(card["class_names"][i] for i in best)
            probabilities = tuple(row[best].tolist())
            yield Prediction(one.path, one.line, classes, probabilities, by=who, logits=tuple(own.tolist()))


def _asked_further(program: Callable, kind: Any, num_classes: int, seen: np.ndarray) -> dict[str, np.ndarray]:
    """What the student says of inputs when its task asks in other ways, such as a token after the other."""

    def logits_of(images: np.ndarray) -> np.ndarray:
        return np.asarray(program(images))[..., :num_classes]

    return {} if kind is None else {name: ask(logits_of, seen) for name, ask in kind.asks.items()}


def _kind(card: Mapping[str, Any]) -> Any:
    """The task of a student of places; None of a student of images."""
    if "places" not in card:
        return None
    from mtkd_jax.tasks import kinds  # which a student of images does without

    return kinds.named(card["places"]["task"])


def _telling(card: Mapping[str, Any]) -> Callable[..., list[str]] | None:
    """What tells of one image what a student says of its places [L,C + ...], and when it is asked further.

    None of a student of images.
    """
    kind = _kind(card)
    if kind is None:
        return None
    names, beside = card["class_names"], card["places"]["beside"]
    ends = np.cumsum([len(names), *(beside[name] for name in sorted(beside))])[:-1]

    def tell(said: np.ndarray, asked: Mapping[str, np.ndarray]) -> list[str]:
        logits, *others = np.split(said, ends, axis=-1)
        return kind.tell(logits, names, {**dict(zip(sorted(beside), others)), **asked})

    return tell


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [...,C] of logits [...,C]."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _write_logits(into: Path, found: Iterable[Prediction], class_names: Sequence[str]) -> list[Prediction]:
    """The logits of all that can be read as a file of one teacher, see data/logit_files.py."""
    from mtkd_jax.data import logit_files  # and all that reads data; nobody else here needs it

    told = list(found)
    read = {one.name: one.logits for one in told if not one.error}
    for one in told:
        if one.error:
            terminal.tell(one.error)
    arrays = {
        "logits": np.array(list(read.values()), np.float32).reshape(len(read), len(class_names)),
        "names": np.array(list(read), str),
    }
    logit_files.write(into, arrays, class_names)
    print(f"{into}: the logits of {len(read)} images, for config.teachers.logits")
    return told


# --- telling ------------------------------------------------------------------------------------------


def _tell_as_json(found: Iterable[Prediction], of_lines: bool) -> Iterator[Prediction]:
    """Each as a line as soon as it is known."""
    for one in found:
        said = _as_json(one, of_lines)
        line = json.dumps(said, ensure_ascii=not terminal.is_utf8())
        print(line if line == printable(line) else json.dumps(said), flush=True)
        yield one


def _as_json(one: Prediction, of_lines: bool) -> dict[str, Any]:
    of: dict[str, Any] = {"file" if of_lines else "image": str(one.path)}
    of |= {"line": one.line} if one.line else {}
    of = {"source": one.source} if one.source else of
    if one.error:
        return {**of, "error": one.error}
    if not one.classes:
        return {**of, "told": list(one.lines)}
    said = {**of, "class": one.classes[0], "probability": one.probabilities[0]}
    said |= {"answered_by": one.by} if one.by else {}
    several = {"probabilities": dict(zip(one.classes, one.probabilities))} if len(one.classes) > 1 else {}
    return said | several


def _what(told: Sequence[Prediction], of_lines: bool) -> str:
    """The heading of what was asked about."""
    if any(one.source for one in told):
        return "source"
    return "line" if of_lines else "image"


def _tell(found: Iterable[Prediction], of_lines: bool) -> list[Prediction]:
    """All as a table of the terminal's width; into a pipe or a file 100 columns."""
    told = list(found)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(_what(told, of_lines), overflow="fold")
    if any(one.lines for one in told):
        table.add_column("what is there", overflow="fold")
    else:
        table.add_column("class", overflow="fold")
        table.add_column("probability", justify="right", no_wrap=True)
    if any(one.by for one in told):
        table.add_column("answered by", no_wrap=True)
    for one in told:
        if one.error:
            error = one.error.removeprefix(f"{printable(one.name)}: ")
            table.add_row(Text(printable(one.name)), Text(error, style="red"))
        elif not one.classes:
            table.add_row(Text(printable(one.name)), Text(printable(", ".join(one.lines) or "nothing")))
        for place, (name, probability) in enumerate(zip(one.classes, one.probabilities)):
            who = "" if place else printable(one.name)
            by = [one.by] if one.by and not place else []
            table.add_row(Text(who), Text(printable(name)), f"{probability:.4f}", *by)
    terminal.console().print(table)
    return told


def _handed_over(told: Sequence[Prediction], terms: Mapping[str, Any]) -> str:
    """How many of the images that were read the ensemble had to answer."""
    answered = [one.by for one in told if not one.error]
    handed_over = answered.count("ensemble")
    shares = (
        f" ({_percent(handed_over / max(1, len(answered)))}; on validation {_percent(terms['val_share'])})"
    )
    return (
        f"{handed_over} of {len(answered)} images handed over to the ensemble by {terms['rule']}"
        f"{shares if answered else ''}{'' if terms['certified'] else '; nothing less is certified'}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- the command line ---------------------------------------------------------------------------------


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = terminal.Parser("python -m mtkd_jax.predict", __doc__)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        type=terminal.path_of_any_name,
        help="files, or folders of them; of tables or series where the student is of these",
    )
    parser.add_argument(
        "--student", required=True, type=terminal.path, metavar="DIR", help="student/ of a run"
    )
    parser.add_argument(
        "--form", default="stablehlo", help=f"of the student: {', '.join(PROGRAMS)}; the first unless given"
    )
    parser.add_argument(
        "--logits", type=terminal.path, metavar="OUT.npz", help="write logits of all images instead"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line instead of a table")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="tell the K most likely classes")
    parser.add_argument(
        "--fit", default="", help="crop, pad or stretch; without it as in training, where the card says so"
    )
    parser.add_argument(
        "--cascade", action="store_true", help="the exported ensemble answers where the student is not sure"
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images computed at once")
    asked = parser.parse_args(argv)
    for name in ("top", "batch"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name} {getattr(asked, name)}: must be at least 1")
    if asked.form not in PROGRAMS:
        raise UserError(f"--form {asked.form}: must be of {', '.join(PROGRAMS)}{hint(asked.form, PROGRAMS)}")
    if asked.cascade and asked.form != "stablehlo":
        raise UserError(
            f"--form {asked.form}: the threshold of --cascade was set for the student as stablehlo; must be "
            "without one of the two"
        )
    return asked


if __name__ == "__main__":
    sys.exit(main())
