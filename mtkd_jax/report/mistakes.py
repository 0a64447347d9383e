"""A contact sheet of the test images that the network to deploy is wrong about, surest first."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.special import expit, softmax

from mtkd_jax.report import pictures
from mtkd_jax.results import lookup, metrics
from mtkd_jax.runs.predictions import Predictions
from mtkd_jax.tasks import kinds
from mtkd_jax.types import DataSet

COLUMNS, MOST = 8, 24  # images of a section: beside each other, and in all
TILE, LINE, GAP = 96, 14, 8  # pixels: the longer side of an image, a line of text, what is between two
INK, PALE = "black", "#555555"


class Section(NamedTuple):
    """What one network is wrong about in one way."""

    title: str
    rows: np.ndarray  # of the test images, surest first
    captions: tuple[str, ...]  # one for each row, of at most two lines


def sheet(dataset: DataSet, found: Predictions) -> bytes | None:
    """A PNG of up to `MOST` images a section; None where no network is deployed or none is wrong.

    None also for the rows of a table, of which there is nothing to see.

    Of two classes of which one is to be detected the sections are its misses and the false alarms, at the
    threshold that validation allows; otherwise there is one, of all images of another class than is said.
    """
    if found.is_dense:
        return _sheet_of_places(dataset, found)
    sections = [section for section in _sections(found) if len(section.rows) and not dataset.column_names]
    if not sections:
        return None
    font, step = ImageFont.load_default(11), TILE + GAP
    heights = [2 * LINE + GAP + _num_lines(section) * (step + 2 * LINE) for section in sections]
    whole = Image.new("RGB", (GAP + COLUMNS * step, GAP + sum(heights)), "white")
    draw, top = ImageDraw.Draw(whole), GAP
    for section, height in zip(sections, heights):
        draw.text((GAP, top), section.title, fill=INK, font=ImageFont.load_default(13))
        shown = dataset.test_images[found.test_index[section.rows[:MOST]]]
        bounds = shown.min(), shown.max()
        for number, (image, caption) in enumerate(zip(shown, section.captions)):
            line, column = divmod(number, COLUMNS)
            left, above = GAP + column * step, top + 2 * LINE + line * (step + 2 * LINE)
            whole.paste(pictures.tile(image, *bounds, TILE), (left, above))
            below = left, above + TILE
            draw.multiline_text(below, _fitting(caption, font), fill=PALE, font=font, spacing=1)
        top += height
    png = io.BytesIO()
    whole.save(png, "PNG")
    return png.getvalue()


def _sheet_of_places(dataset: DataSet, found: Predictions) -> bytes | None:
    """Of a dense task the test images with most places wrong: image, what is right, what is said.

    None where no network is deployed or its task draws nothing.
    """
    deployed, kind = lookup.network_to_deploy(found), kinds.named(found.task)
    places, draw_places = found.test_places, kind.draw
    if deployed is None or places is None or draw_places is None or not len(found.test_labels):
        return None
    group, position = deployed
    classes = group.test[position].argmax(axis=-1)
    examples, first, sizes = np.unique(found.test_index, return_index=True, return_counts=True)
    right = np.add.reduceat((classes == found.test_labels).astype(np.float64), first) / sizes
    worst = np.argsort(right, kind="stable")[: MOST // 2]
    font, step = ImageFont.load_default(11), TILE + GAP
    across = max(1, COLUMNS // 3)  # images beside each other, three pictures each
    num_lines = -(-len(worst) // across)
    whole = Image.new(
        "RGB", (GAP + 3 * across * step, 2 * GAP + 2 * LINE + num_lines * (step + 2 * LINE)), "white"
    )
    draw = ImageDraw.Draw(whole)
    title = (
        f"{group.name}, {group.members[position]}: of {len(examples):,} test images those with most "
        f"{kind.place}s wrong; image, right, said"
    )
    draw.text((GAP, GAP), title, fill=INK, font=ImageFont.load_default(13))
    images = dataset.test_images[examples[worst]]
    bounds = images.min(), images.max()

    def drawn(
        image: np.ndarray, rows: np.ndarray, what: np.ndarray, beside: dict[str, np.ndarray]
    ) -> Image.Image:
        at = places[rows]
        of_all = np.full(found.num_places, -1)
        of_all[at] = what[rows]
        spread = {
            name: np.zeros((found.num_places, one.shape[-1]), np.float32) for name, one in beside.items()
        }
        for name, one in beside.items():
            spread[name][at] = one[rows]
        return Image.fromarray(draw_places(image, of_all, found.class_names, spread))

    said_beside = {name: of[position] for name, of in group.beside.items()}
    for number, place in enumerate(worst):
        line, column = divmod(number, across)
        left, above = GAP + 3 * column * step, 2 * GAP + 2 * LINE + line * (step + 2 * LINE)
        rows = np.arange(first[place], first[place] + sizes[place])
        plain = pictures.as_rgb(images[number], *bounds)
        shown = (
            Image.fromarray(plain),
            drawn(plain, rows, found.test_labels, dict(found.test_goals)),
            drawn(plain, rows, classes, said_beside),
        )
        for offset, picture in enumerate(shown):
            whole.paste(pictures.resized(picture, TILE), (left + offset * step, above))
        caption = f"{100 * right[place]:.0f} % of {kind.place}s right"
        draw.text((left, above + TILE), caption, fill=PALE, font=font)
    png = io.BytesIO()
    whole.save(png, "PNG")
    return png.getvalue()


def _sections(found: Predictions) -> Iterator[Section]:
    deployed = lookup.network_to_deploy(found)
    if deployed is None or not len(found.test_labels):
        return
    group, position = deployed
    who = f"{group.name}, {group.members[position]}"
    positive = lookup.detected(found)
    if positive is None:
        yield _of_all_classes(found, who, group.test[position])
    else:
        yield from _of_detection(found, who, positive, group.val[position], group.test[position])


def _of_all_classes(found: Predictions, who: str, logits: np.ndarray) -> Section:
    said, labels = np.argmax(logits, axis=1), found.test_labels
    sure = softmax(logits, axis=1).max(axis=1)
    rows = np.flatnonzero(said != labels)
    rows = rows[np.argsort(-sure[rows], kind="stable")]
    names = found.class_names
    captions = (f"{names[labels[n]]}\n{names[said[n]]}? {100 * sure[n]:.0f} %" for n in rows[:MOST])
    title = f"{who} is wrong about {len(rows):,} of {len(labels):,} test images{_shown(rows)}"
    return Section(title, rows, tuple(captions))


def _of_detection(
    found: Predictions, who: str, positive: int, val: np.ndarray, test: np.ndarray
) -> Iterator[Section]:
    val_scores, scores = (metrics.log_odds(logits, positive) for logits in (val, test))
    is_positive = found.test_labels == positive
    name = found.class_names[positive]
    validated = (val_scores, found.val_labels == positive)
    alarm = scores > metrics.alarm_threshold(validated, found.false_alarm_rate)
    for what, wrong, of, sign in (
        (f"misses {name} in", is_positive & ~alarm, is_positive, 1),
        (f"sees {name} in", ~is_positive & alarm, ~is_positive, -1),
    ):
        rows = np.flatnonzero(wrong)
        rows = rows[np.argsort(sign * scores[rows], kind="stable")]
        others = "" if of is is_positive else " without any"
        title = f"{who} {what} {len(rows):,} of {int(of.sum()):,} images{others}{_shown(rows)}"
        captions = (f"{name}? {100 * expit(scores[n]):.0f} %" for n in rows[:MOST])
        yield Section(title, rows, tuple(captions))


def _shown(rows: np.ndarray) -> str:
    return f"; the {MOST} it is surest about" if len(rows) > MOST else ""


def _num_lines(section: Section) -> int:
    return -(-min(len(section.rows), MOST) // COLUMNS)


def _fitting(caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The caption, with what is wider than an image left away from the beginning of its lines' ends."""
    lines = caption.split("\n")
    while (longest := max(lines, key=font.getlength)) and font.getlength(longest) > TILE + GAP - 2:
        lines[lines.index(longest)] = f"{longest.rstrip('…')[:-1]}…"
    return "\n".join(lines)
