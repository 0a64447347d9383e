"""The contact sheet of what the deployed network is wrong about: which images, in which order, in words."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from mtkd_jax.data.streams import OneByOne, digest
from mtkd_jax.report import mistakes
from mtkd_jax.results import lookup, measured
from mtkd_jax.types import DataSet
from tests.references import predictions as made_up


def data_of(found, image_shape=(6, 6, 3)):
    images = np.random.default_rng(0).integers(0, 256, (len(found.test_labels), *image_shape), np.uint8)
    names = tuple(str(label) for label in range(len(found.class_names)))
    labels = found.test_labels.astype(np.int32)
    return DataSet("made up", images[:10], labels[:10], images, labels, names)


def test_every_wrong_image_is_counted_and_the_surest_stand_first():
    found = made_up.make(num_test=200)
    (section,) = mistakes._sections(found)
    group, position = lookup.network_to_deploy(found)
    logits = group.test[position].astype(np.float64)
    wrong = np.flatnonzero(np.argmax(logits, axis=1) != found.test_labels)
    assert set(section.rows) == set(wrong) and f"{len(wrong)} of 200" in section.title
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = (odds.max(axis=1) / odds.sum(axis=1))[section.rows]
    assert len(wrong) > 1 and np.all(np.diff(sure) <= 1e-12)
    first = section.rows[0]
    said = found.class_names[int(np.argmax(logits[first]))]
    true = found.class_names[int(found.test_labels[first])]
    assert section.captions[0] == f"{true}\n{said}? {100 * sure[0]:.0f} %"


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (50.0, 10.0)])  # the latter: rounded to a p of 1
def test_of_a_class_to_be_detected_misses_and_false_alarms_are_apart(scale, shift):
    found = dataclasses.replace(
        made_up.make(num_classes=2, students={"output_avg": ("student", 6.0)}, rules=("mean_probs",)),
        class_names=("empty", "smoke"),
    )
    groups = []
    for one in found.groups:
        surer = {part: scale * (getattr(one, part) + (0.0, shift)) for part in ("val", "test")}
        groups.append(dataclasses.replace(one, **surer))
    found = dataclasses.replace(found, groups=tuple(groups))
    group, position = lookup.network_to_deploy(found)
    point = measured.detector(found, 1, group.val[position], group.test[position])
    sections = list(mistakes._sections(found))
    misses, false_alarms = sections
    assert (point["threshold"] == 1.0) == (scale > 1)
    assert (len(misses.rows), len(false_alarms.rows)) == (point["misses"], point["false_alarms"])
    assert np.all(found.test_labels[misses.rows] == 1) and np.all(found.test_labels[false_alarms.rows] == 0)
    score = np.diff(group.test[position], axis=1)[:, 0]
    assert np.all(np.diff(score[misses.rows]) >= 0) and np.all(np.diff(score[false_alarms.rows]) <= 0)
    assert "misses smoke in" in misses.title and "images without any" in false_alarms.title


@pytest.mark.parametrize("image_shape", [(6, 6, 3), (9, 5, 1), (20, 1, 2)])
def test_the_sheet_is_a_png_with_a_tile_for_each(image_shape):
    found = made_up.make(num_test=60)
    picture = Image.open(io.BytesIO(mistakes.sheet(data_of(found, image_shape), found)))
    (section,) = mistakes._sections(found)
    assert len(section.captions) == min(len(section.rows), mistakes.MOST)
    lines = -(-len(section.captions) // mistakes.COLUMNS)
    assert picture.height > lines * mistakes.TILE and picture.width > mistakes.COLUMNS * mistakes.TILE
    assert np.asarray(picture).std() > 0


def test_a_network_without_mistakes_has_no_sheet():
    found = made_up.make(num_test=40)
    right = [
        dataclasses.replace(
            g, test=50 * np.eye(10, dtype=np.float32)[found.test_labels][None].repeat(len(g.members), axis=0)
        )
        for g in found.groups
    ]
    found = dataclasses.replace(found, groups=tuple(right))
    assert mistakes.sheet(data_of(found), found) is None


def test_images_that_stay_in_their_files_make_the_same_sheet_of_places():
    num, side = 4, 4
    found = dataclasses.replace(
        made_up.make(num_test=num * side**2),
        task="masks",
        test_index=np.repeat(np.arange(num), side**2),
        test_places=np.tile(np.arange(side**2), num),
        num_places=side**2,
    )
    dataset = data_of(found, (side, side, 3))
    images = dataset.test_images
    streamed = OneByOne(images.__getitem__, images.shape, images.dtype, map(digest, images))
    sheet = mistakes.sheet(dataset, found)
    assert sheet is not None
    assert mistakes.sheet(dataclasses.replace(dataset, test_images=streamed), found) == sheet
