"""A data set before training: sizes, classes, groups, values, duplicates, a contact sheet.

    python -m mtkd_jax.data SOURCE [--path PATH] [--sheet FILE.png] [--json]
    python -m mtkd_jax.data fetch NAME     gets a published set, see data/fetch.py

SOURCE is an address as in config.data.source, such as digits or "npz(path='mine.npz')". The data is read and
cut as a run with these settings would.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import itertools
import sys
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont
from rich.text import Text

from mtkd_jax import config as configuration
from mtkd_jax import experiment, validation
from mtkd_jax.data import fetch
from mtkd_jax.data.loading import Split, holds
from mtkd_jax.report import cell_text, document, pictures, rendering
from mtkd_jax.system import terminal
from mtkd_jax.system.files import write_atomically
from mtkd_jax.types import Images, printable

BLOCK = 2**24  # bytes of images that are held at once
TILE, GAP = 72, 6  # pixels of the sheet: the longer side of an image, what is between two
COLUMNS = 10  # images of each class on the sheet
VALUES = ("least", "greatest", "mean", "std")


def main(argv: Sequence[str] | None = None) -> int:
    """Show what a source holds and how it would be cut; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["fetch"]:
        return fetch.main(arguments[1:])
    return terminal.answer(lambda: _main(arguments))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    split = experiment.load_split(_config(asked))
    found = facts(split)
    if asked.sheet is not None:
        write_atomically(asked.sheet, sheet(split))
    if asked.json:
        print(document.as_json(found).decode())
    else:
        _show(found)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    data = configuration.default().data
    parser = terminal.Parser("python -m mtkd_jax.data", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="an address as in config.data.source")
    parser.add_argument("--path", default=data.path, help="config.data.path")
    parser.add_argument("--val_fraction", type=float, default=data.val_fraction, metavar="F")
    parser.add_argument("--num_train", type=int, default=data.num_train, metavar="N")
    parser.add_argument("--split", default=data.split, metavar="grouped|random")
    parser.add_argument("--seed", type=int, default=configuration.default().seed)
    parser.add_argument(
        "--sheet", type=terminal.path, metavar="FILE.png", help="also draw images of every class here"
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    return parser.parse_args(argv)


def _config(asked: argparse.Namespace) -> ConfigDict:
    """The configuration of a run on this data."""
    config = configuration.default()
    config.seed = asked.seed
    config.data.source = asked.source
    for name in ("path", "val_fraction", "num_train", "split"):
        config.data[name] = getattr(asked, name)
    validation.validate(config)
    return config


# --- facts --------------------------------------------------------------------------------------------


def facts(split: Split) -> dict:
    """What there is to know of the parts of a split, ready for JSON.

    "parts" has train, pool (where `num_train` cut labels away), val and test: size, images of each class (or
    with it, where their places have labels),
    groups (None where the data names none), and the least, greatest, mean and standard deviation of the
    values of each channel, in the units of the data. "shared_groups" and "duplicates" are counts, of groups
    and of images that are equal byte by byte: see `duplicates`.
    """
    dataset = split.dataset
    rows = _rows(split)
    digests, parts = {}, {}
    for part in rows:
        images, labels, groups = _arrays(split, part)
        values, digests[part] = _looked_at(images, rows[part])
        parts[part] = {
            "size": len(rows[part]),
            "counts": [int(holds(labels[rows[part]], c).sum()) for c in range(dataset.num_classes)],
            "groups": None if groups is None else len(np.unique(groups[rows[part]])),
            **values,
        }
    labels_of = {part: _as_one(_arrays(split, part)[1][rows[part]]) for part in rows}
    return {
        "name": dataset.name,
        "shape": list(dataset.train_images.shape[1:]),
        "dtype": str(np.dtype(dataset.train_images.dtype)),
        "class_names": list(dataset.class_names),
        "channels": list(dataset.column_names) or list(map(str, range(dataset.train_images.shape[-1]))),
        "parts": parts,
        "shared_groups": None if dataset.train_groups is None else _shared_groups(split, rows),
        "duplicates": duplicates(digests, labels_of),
        "notes": list(dataset.notes),
    }


def _as_one(labels: np.ndarray) -> np.ndarray:
    """A number [n] for each example, which differs where its label or those of its places do."""
    return labels if labels.ndim == 1 else np.array([zlib.crc32(own.tobytes()) for own in labels], np.int64)


def duplicates(digests: dict[str, list[bytes]], labels: dict[str, np.ndarray]) -> dict:
    """Images that are there more than once, told by the digests and labels of every part.

    "within": images of a part that repeat an earlier one of the same part. "across": images of the one part
    that are in the other as well, for every pair of parts. "conflicting": how many different images stand
    under more than one label, in whatever parts.
    """
    known: dict[bytes, set[int]] = collections.defaultdict(set)
    for part in digests:
        for digest, label in zip(digests[part], labels[part].tolist()):
            known[digest].add(label)
    across = {}
    for first, second in itertools.combinations(digests, 2):
        there = set(digests[first])
        across[f"{second} in {first}"] = sum(digest in there for digest in digests[second])
    return {
        "within": {part: len(own) - len(set(own)) for part, own in digests.items()},
        "across": across,
        "conflicting": sum(len(under) > 1 for under in known.values()),
    }


def _rows(split: Split) -> dict[str, np.ndarray]:
    """Rows of every part that holds any; those of test are rows of the test images."""
    rows = {"train": split.train, "pool": split.pool, "val": split.val}
    rows["test"] = np.arange(len(split.dataset.test_labels))
    return {part: own for part, own in rows.items() if len(own)}


def _arrays(split: Split, part: str) -> tuple[np.ndarray | Images, np.ndarray, np.ndarray | None]:
    """Images, labels and groups that the rows of a part are rows of."""
    dataset = split.dataset
    if part == "test":
        return dataset.test_images, dataset.test_labels, dataset.test_groups
    return dataset.train_images, dataset.train_labels, dataset.train_groups


def _shared_groups(split: Split, rows: dict[str, np.ndarray]) -> dict[str, int]:
    """The number of groups that each pair of parts has in common."""
    of_parts = {part: _arrays(split, part)[2] for part in rows}
    groups = {part: of_part[rows[part]] for part, of_part in of_parts.items() if of_part is not None}
    return {
        f"{second} in {first}": len(np.intersect1d(groups[first], groups[second]))
        for first, second in itertools.combinations(groups, 2)
    }


def _looked_at(images: np.ndarray | Images, rows: np.ndarray) -> tuple[dict[str, list[float]], list[bytes]]:
    """Least, greatest, mean and standard deviation of each channel, and a digest of every image."""
    digests, sums, squares, least, greatest = [], 0.0, 0.0, np.inf, -np.inf
    for block in _blocks(images, rows):
        digests += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in block]
        pixels = block.reshape(-1, block.shape[-1]).astype(np.float64)
        sums, squares = sums + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
        least, greatest = np.minimum(least, pixels.min(axis=0)), np.maximum(greatest, pixels.max(axis=0))
    number = len(rows) * images.shape[1] * images.shape[2]
    mean = sums / number
    found = least, greatest, mean, np.sqrt(np.maximum(squares / number - mean**2, 0))
    return {name: value.tolist() for name, value in zip(VALUES, found)}, digests


def _blocks(images: np.ndarray | Images, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The images [n,h,w,c] of the rows, as many at a time as fit into `BLOCK`."""
    size = max(1, BLOCK // (int(np.prod(images.shape[1:])) * np.dtype(images.dtype).itemsize))
    for start in range(0, len(rows), size):
        yield images[rows[start : start + size]]


# --- the terminal -------------------------------------------------------------------------------------


def _show(found: dict) -> None:
    out = terminal.console()
    shape = "x".join(map(str, found["shape"]))
    what = f"{found['name']}: images {shape} {found['dtype']}, {len(found['class_names'])} classes"
    out.print(printable(what), markup=False, highlight=False)
    for title, (header, cells) in _sheets(found).items():
        out.print(Text(f"\n{title}", style="bold"), rendering.render(header, cells))
    number = found["duplicates"]["conflicting"]
    conflict = [f"{number:,} different images stand under more than one label."] if number else []
    for note in (*found["notes"], *conflict):
        out.print(f"- {printable(note)}", markup=False, highlight=False)


def _sheets(found: dict) -> dict[str, rendering.Sheet]:
    """{title: (header, cells)} of every table."""
    parts, equal = found["parts"], found["duplicates"]
    sizes = [
        [
            part,
            f"{own['size']:,}",
            cell_text.MISSING if own["groups"] is None else f"{own['groups']:,}",
            f"{equal['within'][part]:,}",
        ]
        for part, own in parts.items()
    ]
    counts = [
        [name, *(f"{own['counts'][label]:,}" for own in parts.values())]
        for label, name in enumerate(found["class_names"])
    ]
    values = [
        [part, called, *(f"{own[name][channel]:.4g}" for name in VALUES)]
        for part, own in parts.items()
        for channel, called in enumerate(found["channels"])
    ]
    groups = found["shared_groups"] or {}
    shared = [
        [pair, f"{groups[pair]:,}" if pair in groups else cell_text.MISSING, f"{number:,}"]
        for pair, number in equal["across"].items()
    ]
    return {
        "Parts": (["", "images", "groups", "copies of another"], sizes),
        "Images of each class": (["", *parts], counts),
        "Values of each channel, as stored": (["", "channel", *VALUES], values),
        "The same in two parts": (["", "groups", "images"], shared),
    }


# --- the contact sheet --------------------------------------------------------------------------------


def sheet(split: Split) -> bytes:
    """A PNG with a row for each class: its name, the number of its training images, and up to 10 of them.

    They lie evenly among the training rows, so that the same split gives the same sheet. Small images are
    enlarged pixel by pixel, large ones reduced. Floats go from black, the least value drawn, to white;
    images of width 1 are curves over their steps; of other than 1 or 3 channels the mean is drawn.
    """
    dataset = split.dataset
    labels = dataset.train_labels[split.train]
    by_class = [split.train[holds(labels, label)] for label in range(dataset.num_classes)]
    shown = [own[np.linspace(0, len(own) - 1, min(len(own), COLUMNS)).astype(int)] for own in by_class]
    images = [dataset.train_images[own] for own in shown]
    bounds = min(block.min() for block in images), max(block.max() for block in images)
    titles = [f"{name}\n{len(own):,}" for name, own in zip(dataset.class_names, by_class)]
    font = ImageFont.load_default(13)
    left = 16 + max(round(font.getlength(line)) for title in titles for line in title.split("\n"))
    step = TILE + GAP
    whole = Image.new("RGB", (left + COLUMNS * step, GAP + len(titles) * step), "white")
    draw = ImageDraw.Draw(whole)
    for row, (title, block) in enumerate(zip(titles, images)):
        draw.multiline_text((GAP, GAP + row * step), title, fill="black", font=font)
        for column, image in enumerate(block):
            whole.paste(pictures.tile(image, *bounds, TILE), (left + column * step, GAP + row * step))
    png = io.BytesIO()
    whole.save(png, "PNG")
    return png.getvalue()
