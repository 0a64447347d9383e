"""Teachers that are classifiers: fitted to the labelled training rows alone, and known by what they say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mtkd_jax
from mtkd_jax import addresses, experiment
from mtkd_jax import config as configuration
from mtkd_jax.data.sources.rows import iris
from mtkd_jax.models.classifiers import scikit_learn
from mtkd_jax.plans import given
from mtkd_jax.runs import workdir
from mtkd_jax.types import Classifier, UserError
from tests import small

FOREST = "scikit_learn(name='RandomForestClassifier', arguments={'n_estimators': 3}, scaled=False)"


def set_up(*addresses, **overrides):
    config = small.config(
        **{"data.source": "iris", "data.num_train": 0, "teachers.classifiers": addresses, **overrides}
    )
    return config, experiment.load_split(config)


def test_it_says_the_logarithms_of_its_probabilities_of_every_row():
    config, split = set_up("scikit_learn:GaussianNB")
    (teachers,), notes = [*given.borrow(config, split)[0].values()], given.borrow(config, split)[1]
    rows = {
        part: getattr(split.dataset, f"{part}_images")[:, 0, 0].astype(np.float64)
        for part in ("train", "test")
    }
    expected = make_pipeline(StandardScaler(), GaussianNB())
    expected.fit(rows["train"][split.train], split.dataset.train_labels[split.train])
    for part in ("train", "test"):
        probs = np.maximum(expected.predict_proba(rows[part]).astype(np.float32), np.float32(1e-7))
        np.testing.assert_allclose(teachers.population.variables[part][0], np.log(probs), rtol=1e-6)
    assert teachers.population.names == ("scikit_learn:GaussianNB",) and teachers.seconds > 0
    assert any(f"fitted to the {len(split.train)} labelled training images" in note for note in notes)
    assert not any("were not trained here" in note for note in notes)


def test_what_draws_draws_by_the_seed_and_its_place():
    config, split = set_up(FOREST)
    first, again, other = (
        given.from_classifier(FOREST, split, seed)[0].variables for seed in ((0, 0), (0, 0), (0, 1))
    )
    np.testing.assert_array_equal(first["test"], again["test"])
    assert not np.array_equal(first["test"], other["test"])


def test_a_class_without_a_training_example_has_the_least_logit():
    config, split = set_up("scikit_learn:GaussianNB")
    without = dataclasses.replace(split, train=split.train[split.dataset.train_labels[split.train] != 1])
    said = given.from_classifier("scikit_learn:GaussianNB", without, (0, 0))[0].variables["test"]
    np.testing.assert_allclose(said[..., 1], np.log(np.float32(1e-7)))


def test_pixels_are_between_0_and_1_and_warnings_become_a_note():
    split = experiment.load_split(small.config())
    address = "scikit_learn(name='LogisticRegression', arguments={'max_iter': 1}, scaled=False)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, notes = given.from_classifier(address, split, (0, 0))
    assert any("ConvergenceWarning" in note for note in notes)
    np.testing.assert_allclose(given._as_rows(np.full((1, 2, 2, 1), 255, np.uint8)), np.ones((1, 4)))


@pytest.fixture
def described(tmp_path):
    """A run of one classifier that has kept it: its configuration, its data, and its folder."""
    config, split = set_up(FOREST)
    workdir.describe(tmp_path, config, split)
    found, _ = given.borrow(config, split)
    given.keep(tmp_path, found)
    return config, split, tmp_path, found["teachers-classifier-0"]


def test_a_run_that_goes_on_has_the_same_and_does_not_fit_them_again(described, monkeypatch):
    config, split, into, first = described
    monkeypatch.setattr(given, "from_classifier", None)
    _, borrowed, notes = experiment.planned(config, split, into)
    again = borrowed["teachers-classifier-0"]
    for part in ("train", "test"):
        np.testing.assert_array_equal(again.population.variables[part], first.population.variables[part])
    assert (again.notes, again.seconds, again.population.names) == (first.notes, first.seconds, (FOREST,))
    assert again.population.model == first.population.model and notes[0] == first.notes[0]
    given.keep(into, borrowed)  # what is there stays
    saved, dataset = experiment.said_by_teachers(into)
    np.testing.assert_array_equal(saved["test_logits"], first.population.variables["test"])
    assert dataset.name == "iris"


def test_a_run_whose_data_has_no_test_set_keeps_them_too(tmp_path):
    config, split = set_up("scikit_learn:GaussianNB")
    nothing = {name: getattr(split.dataset, name)[:0] for name in ("test_images", "test_labels")}
    split = dataclasses.replace(split, dataset=dataclasses.replace(split.dataset, **nothing))
    workdir.describe(tmp_path, config, split)
    first, _ = given.borrow(config, split, tmp_path)
    given.keep(tmp_path, first)
    again, _ = given.borrow(config, split, tmp_path)
    of_first, of_again = (one["teachers-classifier-0"].population.variables for one in (first, again))
    np.testing.assert_array_equal(of_again["train"], of_first["train"])
    assert of_again["test"].shape == of_first["test"].shape == (1, 0, 3)


def test_what_another_run_has_kept_is_refused(described, tmp_path_factory):
    config, split, into, _ = described
    other = tmp_path_factory.mktemp("other")
    config.seed = 5
    workdir.describe(other, config, split)
    shutil.copytree(into / "checkpoints", other / "checkpoints")
    with pytest.raises(UserError, match="teachers-classifier-0: these checkpoints are of another run"):
        given.borrow(config, split, other)
    changed = dataclasses.replace(iris(), test_images=iris().test_images + 1)
    with pytest.raises(UserError, match="has another data_sha256"):
        experiment.said_by_teachers(into, changed)


def turned_table(dataset):
    """The test rows as a table with its columns in another order."""
    rows = [list(reversed(row.tolist())) for row in dataset.test_images[:, 0, 0]]
    return "\n".join(",".join(map(str, row)) for row in [list(reversed(dataset.column_names)), *rows])


@pytest.mark.slow
def test_a_run_with_them_has_a_row_for_each(tmp_path):
    small_grid = {"students.modes": ("output_avg",), "students.alphas": (0.5,), "students.num_seeds": 1}
    config, _ = set_up("scikit_learn:GaussianNB", "scikit_learn:KNeighborsClassifier", **small_grid)
    report = experiment.run(config, tmp_path / "run", quiet=True)
    names = [row["architecture"] for row in report["rows"] if row["role"] == "teacher"]
    assert names == ["classifier scikit_learn:GaussianNB", "classifier scikit_learn:KNeighborsClassifier"]
    student = tmp_path / "run" / "student"
    card = json.loads((student / "model.json").read_text())
    assert card["input"]["columns"] == list(iris().column_names)
    assert (
        "read, in any order, and must be numbers as in training:\nsepal length"
        in (student / "README.md").read_text()
    )
    (tmp_path / "new.csv").write_text(turned_table(iris()), encoding="utf-8")
    said, expected = (mtkd_jax.predict(student, of) for of in (tmp_path / "new.csv", iris().test_images))
    assert said.classes == expected.classes
    np.testing.assert_array_equal(said.probabilities, expected.probabilities)
    with pytest.raises(UserError, match="has trained no teachers; .* in teachers.classifiers"):
        experiment.run(
            small.config(
                **{"data.source": "iris", "data.num_train": 0, "teachers.from_run": str(tmp_path / "run")}
            ),
            tmp_path / "other",
        )


@pytest.mark.parametrize(
    "address, message",
    [
        ("scikit_learn:GausianNB", "there is no classifier 'GausianNB'; did you mean 'GaussianNB'?"),
        ("scikit_learn:LinearSVC", "scikit_learn: LinearSVC has no predict_proba: must say probabilities"),
        (
            "scikit_learn(name='GaussianNB', arguments={'alpha': 1})",
            "GaussianNB: .*unexpected keyword argument 'alpha'",
        ),
        ("scikit_lern:GaussianNB", "there is no classifier"),
    ],
)
def test_addresses_are_checked_before_any_work(address, message):
    with pytest.raises(UserError, match=message) as caught:
        small.config(**{"teachers.classifiers": (address,)})
    assert str(caught.value).startswith("config.teachers.classifiers: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field, value, message",
    [
        (
            "train.mixup",
            0.2,
            "config.train.mixup: 0.2, but teachers.classifiers says nothing of mixed images",
        ),
        (
            "teachers.models",
            ("mlp",),
            "config.teachers.classifiers and teachers.models: teachers come from one",
        ),
        (
            "export.cascade",
            True,
            "config.export.cascade: True, but the teachers of teachers.classifiers are no",
        ),
    ],
)
def test_what_does_not_go_with_them_is_one_line(field, value, message):
    with pytest.raises(UserError, match=message):
        small.config(**{"teachers.classifiers": ("scikit_learn:GaussianNB",), field: value})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            "name='KNeighborsClassifier', arguments={'n_neighbors': 0}",
            "cannot be fitted: The 'n_neighbors' parameter .*",
        ),
        (
            "name='KNeighborsClassifier', arguments={'n_neighbors': 999}",
            "cannot be asked: Expected n_neighbors <= ",
        ),
        ("name='MultinomialNB'", "cannot be fitted: Negative values .*; scaled=False leaves rows as they"),
    ],
)
def test_what_it_does_not_take_is_one_line(arguments, message):
    config, split = set_up("scikit_learn:GaussianNB")
    with pytest.raises(UserError, match=message) as caught:
        given.from_classifier(f"scikit_learn({arguments})", split, (0, 0))
    assert "\n" not in str(caught.value)


def test_data_with_a_class_for_every_place_is_one_line():
    _, split = set_up("scikit_learn:GaussianNB")
    labels = np.repeat(split.dataset.train_labels[:, None], 3, axis=1)
    dense = dataclasses.replace(split, dataset=dataclasses.replace(split.dataset, train_labels=labels))
    with pytest.raises(UserError, match="say one class an example; iris has one for every place"):
        given.from_classifier("scikit_learn:GaussianNB", dense, (0, 0))


def test_ours_fits_the_record():
    assert isinstance(scikit_learn(name="GaussianNB"), Classifier)
    assert not isinstance(object(), Classifier)
    assert "scikit_learn" in addresses.catalogue("classifier")


def test_one_of_your_own_is_made_anew_for_every_run(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sklearn.ensemble import RandomForestClassifier\n"
        "from mtkd_jax.types import Classifier\n\n\n"
        "def forest(*, trees: int = 3) -> Classifier:\n"
        "    return RandomForestClassifier(n_estimators=trees)\n\n\n"
        "def number() -> Classifier:\n"
        "    return 3\n",
        encoding="utf-8",
    )
    config, split = set_up("mine.py:forest(trees=2)", **{"runtime.own_code": str(tmp_path)})
    with configuration.own_files(config):
        said = [given.from_classifier("mine.py:forest(trees=2)", split, (seed, 0))[0] for seed in (0, 1, 0)]
        assert "mine.py" in configuration.own_code_digests(config)[0]  # of what a run is
    first, other, again = (one.variables["test"] for one in said)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(UserError, match="mine.py:number returned int; it must be a Classifier"):
        set_up("mine.py:number", **{"runtime.own_code": str(tmp_path)})
