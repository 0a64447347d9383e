"""`python -m mtkd_jax.predict --student runs/digits/student photos/`: the class of every image.

Only the student's folder is read; networks and training are not imported. A line for every image, in a table
or with --json as JSON: {"image", "class", "probability"}, and {"probabilities"} of the most likely classes
when --top asks for several; {"image", "error"} for one that cannot be read, when the others are still told.
With --form onnx, int8 or onnx_int8 another form of the student is asked, which `mtkd_jax.export --forms` has
written. With --cascade the ensemble answers where the student is not sure enough, and {"answered_by"} says
who did. A student of pixels, boxes or tokens tells what its task does, such as the area of each class:
{"image", "told"}; one of sequences reads text files, a source a line: {"source", "told"}. With --logits
OUT.npz nothing is printed but where it went: the logits of all images, under their names, as another run
learns from them (config.teachers.logits; see data/said.py). Exit code 0: every image was read; 2: some were
not, or another error that the user can mend, in one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mtkd_jax.data import images
from mtkd_jax.deploy import cascade
from mtkd_jax.deploy.deployed import PIXELS, PROGRAMS, load_program
from mtkd_jax.system import terminal
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError, printable


class Prediction(NamedTuple):
    """What the student says of one file, the most likely class first; or why it was not asked."""

    path: Path | str  # a file, or a line of one
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    by: str = ""  # "student" | "ensemble", of a cascade
    logits: tuple[float, ...] = ()  # of all classes, in their order
    lines: tuple[str, ...] = ()  # of a student of places, what its task tells of them, in place of classes


def main(argv: Sequence[str] | None = None) -> int:
    """Predict the class of images by an exported student; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    net = cascade.load(asked.student) if asked.cascade else None
    program, card = load_program(asked.student, asked.form) if net is None else (net.student, net.card)
    reads_lines = _kind(card) is not None and _kind(card).read is not None
    what = "source" if reads_lines else "image"
    if reads_lines:
        found = predictions_of_lines(program, card, asked.images, batch=asked.batch)
    else:
        paths = files(asked.images)
        fit = asked.fit or card["input"].get("fit", "crop")
        images.resizer_of(fit)
        found = predictions(program, card, paths, top=asked.top, fit=fit, batch=asked.batch, net=net)
        for note in unlike_training(card["input"], asked.fit, paths):
            terminal.tell(f"note: {note}")
    if asked.logits is not None and "places" in card:
        raise UserError(
            f"--logits {asked.logits}: {card['name']} says a class of every {card['places']['place']}, and "
            "the file would hold one of every image; must be without it"
        )
    if asked.logits is not None:
        told = _write_logits(asked.logits, found, card["class_names"])
    else:
        told = list(_tell_as_json(found, what) if asked.json else _tell(found, what))
    if net is not None:
        terminal.tell(f"note: {_handed_over(told, net.terms)}")
    if unread := sum(bool(one.error) for one in told):
        raise UserError(f"{unread} of {len(told)} {what}s could not be read")


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
    """What the student says of every file, in order, with the `top` most likely classes.

    `program` and `card` are those of `load_program`; `fit` brings images to size, as in `images.read`. With
    `net`, whose student the program is, the ensemble answers where the student is not sure. Raises UserError
    when the student reads no image files.
    """
    shape = check_reads_files(card)
    images.resizer_of(fit)
    size = min(batch, len(paths))
    for start in range(0, len(paths), size):
        part = paths[start : start + size]
        yield from _of_batch(program, card, part, shape, top, fit, size, net)


def predictions_of_lines(
    program: Callable, card: Mapping[str, Any], paths: Sequence[Path], *, batch: int
) -> Iterator[Prediction]:
    """What a student of sequences says of every line of text files, in order, as its task tells it.

    The student is asked as the task asks it (`Kind.asks`), such as a token after the other. Raises UserError
    for a file that cannot be read.
    """
    kind, tell, num_classes = _kind(card), _telling(card), len(card["class_names"])

    def logits_of(images: np.ndarray) -> np.ndarray:
        return np.asarray(program(images))[..., :num_classes]

    read = [one for path in paths for one in kind.read(path, card["input"])]
    for start in range(0, len(read), batch):
        part = read[start : start + batch]
        seen = np.zeros((batch, *card["input"]["shape"]), np.float32)
        for place, (_, image) in enumerate(part):
            if not isinstance(image, str):
                seen[place] = image
        said = np.asarray(program(seen), np.float64)
        asked = {name: ask(logits_of, seen) for name, ask in kind.asks.items()}
        for place, (name, image) in enumerate(part):
            if isinstance(image, str):
                yield Prediction(name, error=image)
            else:
                further = {key: of[place] for key, of in asked.items()}
                yield Prediction(name, lines=tuple(tell(said[place], further)))


def check_reads_files(card: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape [h,w,c] of the images that a student sees; UserError when it reads no image files."""
    shape = tuple(card["input"]["shape"])
    if card["input"]["range"] != PIXELS or shape[-1] not in (1, 3):
        raise UserError(
            f"{card['name']}: reads arrays {list(shape)} ({card['input']['range']}), not image files; "
            "must be asked from Python, as its README.md shows"
        )
    return shape


def _of_batch(
    program: Callable,
    card: Mapping[str, Any],
    paths: Sequence[Path],
    shape: tuple[int, int, int],
    top: int,
    fit: str,
    size: int,
    net: cascade.Cascade | None,
) -> Iterator[Prediction]:
    """At most `size` files; the program always sees as many images, so that it is compiled once."""
    class_names, tell = card["class_names"], _telling(card)
    pixels, errors = np.zeros((size, *shape), np.uint8), [""] * len(paths)
    for place, path in enumerate(paths):
        try:
            pixels[place] = images.read(path, shape=shape, fit=fit)
        except UserError as error:
            errors[place] = str(error)
    seen = pixels.astype(np.float32) / 255
    if net is None:
        logits, by = np.asarray(program(seen), np.float64), [""] * size
    else:
        there = np.array([not error for error in errors] + [False] * (size - len(paths)))
        logits, handed_over = cascade.answer(net, seen, there)
        by = np.where(handed_over, "ensemble", "student").tolist()
    for path, error, own, row, who in zip(paths, errors, logits, softmax(logits), by):
        best = np.argsort(-row, kind="stable")[:top]
        if error:
            yield Prediction(path, error=error)
        elif tell is not None:
            yield Prediction(path, lines=tuple(tell(own)))
        else:
            classes = tuple(class_names[i] for i in best)
            probabilities = tuple(row[best].tolist())
            yield Prediction(path, classes, probabilities, by=who, logits=tuple(own.tolist()))


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

    def tell(said: np.ndarray, asked: Mapping[str, np.ndarray] | None = None) -> list[str]:
        logits, *others = np.split(said, ends, axis=-1)
        return kind.tell(logits, names, {**dict(zip(sorted(beside), others)), **(asked or {})})

    return tell


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [...,C] of logits [...,C]."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _write_logits(into: Path, found: Iterable[Prediction], class_names: Sequence[str]) -> list[Prediction]:
    """The logits of all that can be read as a file of one teacher, see data/said.py."""
    from mtkd_jax.data import said  # and all that reads data; nobody else here needs it

    told = list(found)
    read = {one.path.as_posix(): one.logits for one in told if not one.error}
    for one in told:
        if one.error:
            terminal.tell(one.error)
    arrays = {
        "logits": np.array(list(read.values()), np.float32).reshape(len(read), len(class_names)),
        "names": np.array(list(read), str),
    }
    said.write(into, arrays, class_names)
    print(f"{into}: the logits of {len(read)} images, for config.teachers.logits")
    return told


# --- telling ------------------------------------------------------------------------------------------


def _tell_as_json(found: Iterable[Prediction], what: str) -> Iterator[Prediction]:
    """Each as a line as soon as it is known."""
    for one in found:
        line = json.dumps(_as_json(one, what), ensure_ascii=not terminal.is_utf8())
        print(line if line == printable(line) else json.dumps(_as_json(one, what)), flush=True)
        yield one


def _as_json(one: Prediction, what: str) -> dict[str, Any]:
    if one.error:
        return {what: str(one.path), "error": one.error}
    if not one.classes:
        return {what: str(one.path), "told": list(one.lines)}
    said = {what: str(one.path), "class": one.classes[0], "probability": one.probabilities[0]}
    said |= {"answered_by": one.by} if one.by else {}
    several = {"probabilities": dict(zip(one.classes, one.probabilities))} if len(one.classes) > 1 else {}
    return said | several


def _tell(found: Iterable[Prediction], what: str) -> list[Prediction]:
    """All as a table of the terminal's width; into a pipe or a file 100 columns."""
    told = list(found)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(what, overflow="fold")
    if any(one.lines for one in told):
        table.add_column("what is there", overflow="fold")
    else:
        table.add_column("class", overflow="fold")
        table.add_column("probability", justify="right", no_wrap=True)
    if any(one.by for one in told):
        table.add_column("answered by", no_wrap=True)
    for one in told:
        if one.error:
            error = one.error.removeprefix(f"{printable(one.path)}: ")
            table.add_row(Text(printable(one.path)), Text(error, style="red"))
        elif not one.classes:
            table.add_row(Text(printable(one.path)), Text(printable(", ".join(one.lines) or "nothing")))
        for place, (name, probability) in enumerate(zip(one.classes, one.probabilities)):
            path = "" if place else printable(one.path)
            by = [one.by] if one.by and not place else []
            table.add_row(Text(path), Text(printable(name)), f"{probability:.4f}", *by)
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
        help="files, or folders of them",
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
