"""Numbers of dense tasks are over places, and their intervals over the examples these are of."""

import dataclasses

import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.deploy import predict
from mtkd_jax.plans import checks, given, plan
from mtkd_jax.report import document, mistakes, tables
from mtkd_jax.results import evaluation, intervals, lookup
from mtkd_jax.runs import predictions
from mtkd_jax.types import UserError
from tests import small
from tests.references import predictions as made

NUM, L = 30, 10  # examples, and places of each


def dense(**fields):
    """A made-up run whose 300 test places are those of 30 images."""
    found = made.make(num_classes=3, num_val=60, transfers=("labelled",))
    example = np.arange(300) // L
    return dataclasses.replace(
        found,
        task="masks",
        test_index=example.astype(np.int32),
        test_groups=example.astype(np.int32),
        test_places=(np.arange(300) % L).astype(np.int32),
        num_places=L,
        val_index=np.arange(60) // 5,
        **fields,
    )


# --- what is resampled ----------------------------------------------------------------------------------


def test_terms_of_examples_have_the_mean_of_their_places():
    rng = np.random.default_rng(0)
    found = dataclasses.replace(dense(), test_groups=np.sort(rng.integers(0, 7, 300)))
    values = rng.normal(size=(2, 300))
    by_unit = found.by_unit(values)
    assert by_unit.shape == (2, 7)
    np.testing.assert_allclose(by_unit.mean(axis=1), values.mean(axis=1))
    sizes = np.bincount(found.test_groups)
    mean = values[0].mean()
    one = mean + (values[0][found.test_groups == 3].sum() - mean * sizes[3]) * 7 / 300
    np.testing.assert_allclose(by_unit[0, 3], one)
    plain = made.make(num_classes=3)
    assert plain.by_unit(values) is values


def test_groups_of_one_size_are_resampled_by_their_means():
    found, values = dense(), np.random.default_rng(1).normal(size=300)
    np.testing.assert_allclose(found.by_unit(values), values.reshape(NUM, L).mean(axis=1))


def test_an_interval_of_places_that_are_alike_is_that_of_their_examples():
    """Ten copies of one number say no more than it does."""
    values = np.random.default_rng(2).random(NUM)
    found = dense().by_unit(np.repeat(values, L))
    np.testing.assert_allclose(intervals.bootstrap_interval(found), intervals.bootstrap_interval(values))


def test_an_interval_of_sums_is_that_of_a_mean():
    values = np.random.default_rng(3).random(40)
    statistics = np.stack([values, np.ones(40)], axis=1)
    found = intervals.bootstrap_sums(statistics, lambda total: total[0] / total[1])
    expected = intervals.bootstrap_interval(values)
    np.testing.assert_allclose(found, expected, atol=0.02)


# --- the report -----------------------------------------------------------------------------------------


def test_a_report_of_places_has_the_metrics_of_its_task():
    found = dense()
    report = document.build(found)
    assert report["task"] == "masks" and report["cascade"] is None and report["detection"] is None
    assert [one["name"] for one in report["metrics"]] == ["mIoU", "pixel accuracy"]
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["borda"]["own"] == {"mIoU": None, "pixel accuracy": None}  # places are no logits
    for row in (row for row in rows.values() if row["nll"]):
        np.testing.assert_allclose(row["own"]["pixel accuracy"]["mean"], row["accuracy"]["mean"])
        low, high = row["own"]["mIoU"]["ci95"]
        assert 0 <= low < row["own"]["mIoU"]["mean"] < high <= 1
    fused = rows["mean_probs"]["accuracy"]
    right = lookup.fused(found, "mean_probs")["test"].argmax(-1) == found.test_labels
    np.testing.assert_allclose(fused["mean"], right.mean())
    expected = intervals.bootstrap_interval(right.reshape(NUM, L).mean(axis=1).astype(float))
    np.testing.assert_allclose(fused["ci95"], expected)


def test_precision_that_hangs_on_one_image_is_told_without_an_interval():
    example = np.arange(300) // L
    corners = np.tile(np.float32([0.1, 0.1, 0.6, 0.6]), (300, 1))
    found = dense(test_goals={"boxes": corners}, class_names=("background", "a", "b"))
    groups = tuple(
        dataclasses.replace(one, beside={"boxes": np.tile(corners, (len(one.test), 1, 1))})
        for one in found.groups
    )
    found = dataclasses.replace(
        found,
        task="boxes",
        groups=groups,
        ensemble_beside={"boxes": corners},
        test_labels=np.where(example == 0, found.test_labels, 0),
    )
    report = document.build(found)
    (fused,) = (row["own"]["mAP@.5"] for row in report["rows"] if row["name"] == "mean_probs")
    assert 0 < fused["mean"] <= 1 and fused["ci95"] is None
    _, sections = tables.own_metrics(report)
    shown = {cells[0]: cells[1] for _, rows in sections for cells in rows}
    assert shown["mean_probs"] == f"{fused['mean']:.3f}"
    assert "test examples (by a jackknife)" in tables.own_caption(report)


def test_files_of_what_teachers_say_of_images_are_refused_where_places_have_labels(tmp_path):
    dataset = experiment.load_split(small.config(**OWN)).dataset
    with pytest.raises(UserError, match="^config.teachers.logits: are of whole images"):
        given.from_logits((str(tmp_path / "some.npz"),), dataset)


def test_predictions_of_places_are_read_as_they_were_written(tmp_path):
    found = dense(test_goals={"boxes": np.random.default_rng(0).random((300, 4)).astype(np.float32)})
    boxes = np.random.default_rng(1).random((5, 300, 4)).astype(np.float32)
    groups = (dataclasses.replace(found.groups[0], beside={"boxes": boxes}), *found.groups[1:])
    found = dataclasses.replace(found, groups=groups)
    predictions.save(tmp_path / "some.npz", found)
    read = predictions.load(tmp_path / "some.npz")
    np.testing.assert_array_equal(read.groups[0].beside["boxes"], boxes)
    np.testing.assert_array_equal(read.test_goals["boxes"], found.test_goals["boxes"])
    np.testing.assert_array_equal(read.test_places, found.test_places)
    assert (read.task, read.num_places, read.groups[1].beside) == ("masks", L, {})


# --- a whole run ----------------------------------------------------------------------------------------

OWN = {
    "data.source": "synthetic_masks(num_train=40, num_test=6, size=8)",
    "data.num_train": 24,
    "data.augment.flip": True,
    "model.name": "unet(width=2, depth=1)",
    "teachers.num_members": 2,
    "train.batch_size": 8,
    "train.epochs": 1,
    "students.modes": ("output_avg",),
    "students.alphas": (0.25,),
    "students.num_seeds": 1,
    "fusion.rules": ("mean_probs",),
}


def test_a_run_over_pixels_from_data_to_predict(tmp_path, capsys):
    config = small.config(**OWN)
    report = experiment.run(config, tmp_path / "run", quiet=True)
    found = predictions.load(tmp_path / "run" / "predictions.npz")
    dataset = experiment.load_split(config).dataset
    there = dataset.test_labels >= 0
    np.testing.assert_array_equal(found.test_labels, dataset.test_labels[there])
    np.testing.assert_array_equal(found.test_index, np.nonzero(there)[0])
    np.testing.assert_array_equal(found.test_places, np.nonzero(there)[1])
    assert found.groups[0].test.shape == (2, there.sum(), 3)
    assert any("pixels, 64 of an image" in note for note in report["notes"])
    assert not [row for row in report["rows"] if row["role"] == "linear"]
    assert mistakes.sheet(dataset, found) == (tmp_path / "run" / "plots" / "mistakes.png").read_bytes()

    from PIL import Image

    Image.fromarray(dataset.test_images[0, ..., 0]).save(tmp_path / "one.png")
    capsys.readouterr()
    student = str(tmp_path / "run" / "student")
    assert predict.main([str(tmp_path / "one.png"), "--student", student, "--json"]) == 0
    assert '"told": ["' in capsys.readouterr().out and "64 pixels" in (
        tmp_path / "run" / "student" / "README.md"
    ).read_text(encoding="utf-8")
    assert experiment.run(config, tmp_path / "run", quiet=True) == report  # finished: read again


@pytest.mark.parametrize(
    "field, value, why",
    [
        ("model.name", "mlp(hidden=(8,))", r"says a class of the whole of an image, .* labels of 64 places"),
        (
            "plan",
            "assistants(models=('mlp(hidden=(8,))',))",
            r"mlp.* says a class of the whole of an image, .* labels of 64 places",
        ),
        ("train.mixup", 0.2, "config.train.mixup"),
        ("data.augment.rand_augment", (1, 2), "config.data.augment.rand_augment"),
        ("report.corruptions", ("shot_noise",), "config.report.corruptions"),
        ("export.cascade", True, "config.export.cascade"),
        ("students.modes", ("supernet",), "a network on the teachers' logits is fitted first"),
    ],
)
def test_what_cannot_be_of_places_is_refused_before_any_work(field, value, why):
    config = small.config(**{**OWN, field: value})
    with pytest.raises(UserError, match=why):
        experiment.planned(config, experiment.load_split(config))


def test_too_many_places_for_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(plan.forecast, "memory_limit", lambda: 2**10)
    config = small.config(**OWN)
    with pytest.raises(UserError, match=r"what 4 networks say of \d+ places takes .* GiB"):
        checks.check_data(config, experiment.load_split(config))


def test_a_network_of_pixels_is_refused_where_images_have_labels():
    config = small.config(**{"model.name": "unet(width=2, depth=1)"})
    with pytest.raises(UserError, match=r"says a class of 16 places of an image, .* labels of the whole"):
        checks.check_data(config, experiment.load_split(config))


def test_places_are_flattened_as_labels_are_there():
    labels = np.array([[1, -1], [0, 2]])
    logits = np.arange(12.0).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(evaluation.flat(labels, labels), [1, 0, 2])
    np.testing.assert_array_equal(evaluation.flat_logits(logits, labels)[0, :, 0], [0, 6, 9])
    np.testing.assert_array_equal(evaluation.of_places(np.array([7, 8]), labels), [7, 8, 8])
    np.testing.assert_array_equal(evaluation.of_places(np.array([7, 8]), labels[:, 1]), [7, 8])
