"""Average precision by hand, and against numbers that COCO's own program gave."""

import json

import numpy as np
import pytest
from PIL import Image

from mtkd_jax import experiment
from mtkd_jax.data.boxes import Boxes
from mtkd_jax.deploy import predict
from mtkd_jax.results.intervals import bootstrap_statistics, jackknife_interval, t_interval
from mtkd_jax.tasks import boxes
from mtkd_jax.tasks.kinds import PlaceOutputs
from tests import small

UNIT = np.array([0.0, 0.0, 0.4, 0.4])


def boxes_of(image, label, corners, score=None):
    score = np.ones(len(image)) if score is None else np.array(score, float)
    image, label = np.array(image, int), np.array(label, int)
    return Boxes(image, label, np.array(corners, float).reshape(-1, 4), score)


def moved(by):
    """A box of the size of UNIT, moved to the right."""
    return UNIT + np.array([by, 0.0, by, 0.0])


def precision(said, there, threshold=0.5, **further):
    return boxes.average_precision(boxes.match(said, there, np.array([threshold])), **further)[0]


def test_all_found_is_one_and_nothing_found_is_nought():
    there = boxes_of([0, 1], [1, 2], [UNIT, UNIT])
    assert precision(there, there).tolist() == [1.0, 1.0]
    nothing = boxes_of([], [], [])
    assert precision(nothing, there).tolist() == [0.0, 0.0]


def test_precision_by_hand():
    """Right, wrong, right, of two: precision 1 up to a recall of 0.5, then 2/3: 51 of 101 recalls, and 50."""
    there = boxes_of([0, 1], [1, 1], [UNIT, UNIT])
    said = boxes_of([0, 0, 1], [1, 1, 1], [UNIT, moved(0.5), UNIT], [0.9, 0.8, 0.7])
    assert precision(said, there)[0] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_a_box_is_found_once():
    """The second is where the first is and finds nothing left: of two boxes one is found, at precision 1."""
    there = boxes_of([0, 0], [1, 1], [UNIT, moved(0.55)])
    said = boxes_of([0, 0], [1, 1], [UNIT, UNIT], [0.9, 0.8])
    matched = boxes.match(said, there, np.array([0.5]))
    assert matched.right.tolist() == [[True, False]]
    assert precision(said, there)[0] == pytest.approx(51 / 101)


def test_each_threshold_asks_for_its_overlap():
    """Moved by a quarter of its side a box overlaps by 0.3 / 0.5 = 0.6: thresholds .5, .55 and .6 are met."""
    there, said = boxes_of([0], [1], [UNIT]), boxes_of([0], [1], [moved(0.1 + 1e-9)], [0.9])
    right = boxes.match(said, there).right[:, 0]
    assert right.tolist() == [True] * 2 + [False] * 8  # just below .6
    assert boxes.match(boxes_of([0], [1], [moved(0.0999)], [0.9]), there).right[:, 0].sum() == 3


def test_another_class_or_image_is_not_found():
    there = boxes_of([0], [1], [UNIT])
    assert precision(boxes_of([0], [2], [UNIT], [0.9]), there)[0] == 0
    assert precision(boxes_of([1], [1], [UNIT], [0.9]), there)[0] == 0


def test_what_is_said_of_a_class_that_is_not_there_counts_nowhere():
    there = boxes_of([0], [1], [UNIT])
    said = boxes_of([0, 0], [1, 2], [UNIT, UNIT], [0.9, 0.8])
    assert precision(said, there).tolist() == [1.0]


def random_boxes(seed, num_images=20, num_classes=3):
    """(said, there): of each box that is there one that is near and one that is nearer, and some of none."""
    rng = np.random.default_rng(seed)

    def draw(number):
        low = rng.random((number, 2)) * 0.7
        return np.concatenate([low, low + 0.05 + 0.25 * rng.random((number, 2))], axis=1)

    def classes(number):
        return 1 + (rng.random(number) * num_classes).astype(int)

    image = np.repeat(np.arange(num_images), 4)
    there = Boxes(image, classes(len(image)), draw(len(image)), np.ones(len(image)))
    near = [there.corners + size * (rng.random(there.corners.shape) - 0.5) for size in (0.06, 0.02)]
    corners = np.concatenate([*near, draw(60)])
    image = np.concatenate([image, image, (rng.random(60) * num_images).astype(int)])
    label = np.concatenate([there.label, there.label, classes(60)])
    score = np.round(rng.random(len(image)), 2)  # so that some are equal
    order = np.lexsort((-score, image))
    return Boxes(image[order], label[order], corners[order], score[order]), there


# What pycocotools 2.0.11 (COCOeval, "bbox", all areas, 100 boxes an image) said of `random_boxes(seed)`:
# mAP@.5, mAP@.5:.95, and the AP at .75 of the three classes.
COCO = {
    0: (0.6429672081675275, 0.4093286264618071, (0.44549965, 0.44942956, 0.40673204)),
    1: (0.5789291139257959, 0.3530265631939486, (0.32862655, 0.31327584, 0.41444253)),
    2: (0.6240971439692837, 0.39077344836096, (0.46567495, 0.45497604, 0.42288934)),
    3: (0.6230363419542467, 0.4055877326786333, (0.3583654, 0.523124, 0.49882865)),
}


@pytest.mark.parametrize("seed", COCO)
def test_precision_is_that_of_the_program_of_coco(seed):
    found = boxes.average_precision(boxes.match(*random_boxes(seed)))
    at_half, over_all, at_three_quarters = COCO[seed]
    assert found[0].mean() == pytest.approx(at_half, abs=1e-9)
    assert found.mean() == pytest.approx(over_all, abs=1e-9)
    np.testing.assert_allclose(found[5], at_three_quarters, atol=1e-8)


def test_an_image_that_is_drawn_twice_counts_as_two():
    said, there = random_boxes(5)
    said = said._replace(score=said.score - 1e-6 * np.arange(len(said.score)))  # none are equal
    drawn = np.random.default_rng(0).integers(0, 4, size=20)

    def repeated(of):
        rows = [np.flatnonzero(of.image == image) for image in np.repeat(np.arange(20), drawn)]
        image = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        return of.take(np.concatenate(rows))._replace(image=image)

    copies = boxes.average_precision(boxes.match(repeated(said), repeated(there)))
    weighted = boxes.average_precision(boxes.match(said, there), drawn)
    np.testing.assert_allclose(weighted, copies, atol=1e-12)


def logits_of(label, num_classes=3, sure=8.0):
    return sure * np.eye(num_classes)[label]


def said_of(label, corners, goals, goal_label):
    """Two images of two places."""
    example, place = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    return PlaceOutputs(logits_of(label), goal_label, example, place, {"boxes": corners}, {"boxes": goals})


def test_the_measure_reads_places():
    """One image is right; in the other one a box is right and one is missed: of three boxes two are found."""
    goal_label = np.array([1, 0, 1, 2])
    goals = np.stack([UNIT, 0 * UNIT, UNIT, moved(0.5)]).astype(np.float32)
    said = said_of(np.array([1, 0, 1, 0]), goals, goals, goal_label)
    measure = boxes.MeanPrecision((0.5,))(said)
    assert measure(np.array([1, 1])) == pytest.approx(0.5)  # class 1 all, class 2 nothing
    assert np.isnan(measure(np.array([2, 0])))  # class 2 is not there, and no other mean is told instead


def test_a_number_that_hangs_on_one_image_has_no_interval():
    """Only the first image has a box: without it there is no precision."""
    goals = np.stack([UNIT, 0 * UNIT, UNIT, UNIT]).astype(np.float32)
    label = np.array([1, 0, 0, 0])
    measure = boxes.MeanPrecision((0.5,))(said_of(label, goals, goals, label))
    assert np.isnan(measure(np.array([0, 2])))
    assert jackknife_interval(measure, 2) is None


def test_a_class_in_one_image_leaves_no_interval_and_one_in_two_an_ordinary_one():
    """Class 1 is found everywhere, class 2 is missed: without its only image the mean would jump to 1."""

    def interval(num_missed):
        label = np.repeat([[1, 0]], 40, axis=0)
        label[:num_missed, 1] = 2
        corners = np.tile(np.stack([UNIT, moved(0.5)]).astype(np.float32), (40, 1))
        example, place = np.repeat(np.arange(40), 2), np.tile([0, 1], 40)
        heard = np.where(label == 2, 0, label).ravel()
        beside = {"boxes": corners}
        measure = boxes.MeanPrecision((0.5,))(
            PlaceOutputs(logits_of(heard), label.ravel(), example, place, beside, beside)
        )
        assert measure(np.ones(40)) == pytest.approx(0.5)
        return jackknife_interval(measure, 40)

    assert interval(1) is None
    assert interval(2) == pytest.approx((0.5, 0.5))  # whichever is left out


def test_the_interval_holds_the_precision_that_resamples_raise():
    """Few images of many classes: most resamples have a higher precision than the images have."""
    said, there = random_boxes(1, num_images=12, num_classes=8)  # each in two images at least
    prepared = boxes._by_class(boxes.match(said, there, np.array([0.5])))

    def mean_precision(counts):
        return float(boxes._areas(*prepared, counts).mean())

    value = mean_precision(np.ones(12))
    of_resamples = bootstrap_statistics(
        lambda counts: [mean_precision(counts)], np.zeros(12), num_resamples=200
    )
    low, high = jackknife_interval(mean_precision, 12)
    assert low < value < np.mean(of_resamples[0]) < high
    # Of twelve images each is left out alone: Tukey's pseudo-values have a mean with Student's interval.
    pseudo = [12 * value - 11 * mean_precision(1.0 - np.eye(12)[e]) for e in range(12)]
    expected = np.diff(t_interval(pseudo))
    np.testing.assert_allclose(high - low, expected, rtol=1e-9)
    np.testing.assert_allclose((high + low) / 2, value, rtol=1e-9)


def test_an_image_is_told_box_by_box():
    logits = logits_of(np.array([0, 2]))
    corners = np.stack([UNIT, moved(0.5)])
    (line,) = boxes.tell(logits, ("background", "hole", "crack"), {"boxes": corners})
    assert line == "crack 0.999: left 0.500, top 0.000, right 0.900, bottom 0.400"
    (none,) = boxes.tell(logits_of(np.array([0, 0])), ("background", "hole", "crack"), {"boxes": corners})
    assert none == "no box of a probability of 0.3"


def test_boxes_are_drawn_where_they_are():
    """Of an image of 16x16, enlarged 8 times: left and upper side of one box, and nothing of the other."""
    image = np.full((16, 16, 3), 50, np.uint8)
    corners = np.array([[0.5, 0.25, 1.0, 0.75], [0.0, 0.0, 0.4, 0.4]])
    picture = boxes.draw(image, np.array([1, 0]), ("background", "hole"), {"boxes": corners})
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
    colour = np.array(boxes.COLOURS[0])
    assert (picture[60, 64:66] == colour).all() and (picture[32:34, 120] == colour).all()
    assert (picture[:30] == 50).all() and (picture[:, :64] == 50).all()
    nothing = boxes.draw(image, np.array([0, -1]), ("background", "hole"), {"boxes": corners})
    assert (nothing == 50).all()


@pytest.mark.slow(seconds=25)
def test_a_run_over_boxes_from_data_to_predict(tmp_path, capsys):
    """Small detectors of bright rectangles, with the bound of their teachers' boxes."""
    config = small.config(
        **{
            "data.source": "synthetic_boxes(num_train=60, num_test=8, size=16, noise=0.0, stride=4)",
            "data.num_train": 40,
            "model.name": "detector(network='cnn(widths=(4, 4))', channels=8)",
            "teachers.num_members": 2,
            "train.batch_size": 8,
            "train.epochs": 20,
            "train.learning_rate": 2e-2,
            "students.modes": ("detection.bounded_boxes",),
            "students.alphas": (0.5,),
            "students.num_seeds": 1,
            "fusion.rules": ("mean_probs", "borda"),
        }
    )
    report = experiment.run(config, tmp_path / "run", quiet=True)
    rows = {row["name"]: row["own"] for row in report["rows"]}
    assert rows.pop("borda") == {"mAP@.5": None, "mAP@.5:.95": None}  # places are no probabilities
    for own in rows.values():
        half, over_all = own["mAP@.5"], own["mAP@.5:.95"]
        assert 0 < over_all["mean"] < half["mean"] <= 1
        assert half["ci95"][0] <= half["mean"] <= half["ci95"][1]
    assert (tmp_path / "run" / "plots" / "mistakes.png").stat().st_size > 0

    dataset = experiment.load_split(config).dataset
    Image.fromarray(dataset.test_images[0, ..., 0]).save(tmp_path / "one.png")
    capsys.readouterr()
    asked = [str(tmp_path / "one.png"), "--student", str(tmp_path / "run" / "student"), "--json"]
    assert predict.main(asked) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["told"][0].startswith("brightness 1 0.")
