"""The public face says what the long way says: `experiment.run`, its predictions, its student."""

import gc
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import mtkd_jax
from mtkd_jax import api, experiment
from mtkd_jax.deploy import export
from mtkd_jax.results import lookup
from mtkd_jax.runs import workdir
from mtkd_jax.system.interrupts import Interrupted
from tests import small

SMALL = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "quiet": True}
NETWORK = "mlp(hidden=(8,))"


@pytest.fixture(scope="module")
def data():
    return mtkd_jax.load_data("synthetic(num_classes=4, num_train=120, num_test=40, size=4, noise=0.4)")


@pytest.fixture(scope="module")
def arrays(data):
    """The same data as somebody's own arrays, grey images without an axis of channels."""
    test = (data.test_images[..., 0], data.test_labels.tolist())
    return mtkd_jax.data_from_arrays(data.train_images[..., 0], data.train_labels, test=test)


@pytest.fixture(scope="module")
def teachers(arrays):
    return mtkd_jax.train_teachers(arrays, model=NETWORK, num_members=3, **SMALL)


@pytest.fixture(scope="module")
def student(teachers):
    return mtkd_jax.distil(teachers, "logit_avg", alphas=(0.0, 0.5), num_seeds=2, **SMALL)


@pytest.fixture(scope="module")
def long_way(tmp_path_factory):
    """(predictions, folder, report) of a run whose configuration says all of that."""
    into = tmp_path_factory.mktemp("run")
    config = small.config(
        **{
            "data.num_train": 0,
            "train.epochs": 2,
            "students.modes": ("logit_avg",),
            "fusion.rules": ("mean_probs", "copeland", "stacking"),
            "export.choose": "logit_avg",
            "runtime.how": "auto",
        }
    )
    report = experiment.run(config, into, quiet=True)
    return workdir.read_predictions(into), into, report


# --- the names ----------------------------------------------------------------------------------------


def test_every_name_is_offered_listed_and_shown_by_an_example():
    assert mtkd_jax.__all__ == api.__all__ == sorted(api.__all__)
    assert set(mtkd_jax.__all__) <= set(dir(mtkd_jax))
    for name in mtkd_jax.__all__:
        offered = getattr(mtkd_jax, name)
        assert offered is getattr(api, name)
        assert ">>>" in offered.__doc__ or not inspect.isfunction(offered), name
    with pytest.raises(AttributeError, match="no attribute 'destil'"):
        mtkd_jax.destil  # noqa: B018


def test_importing_the_package_imports_no_jax_and_the_command_line_keeps_its_file():
    said = "import sys, mtkd_jax; print('jax' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
    with pytest.raises(ImportError, match="from mtkd_jax import predict"):
        importlib.import_module("mtkd_jax.predict")
    assert mtkd_jax.predict is api.predict
    asked = [sys.executable, "-m", "mtkd_jax.predict", "--help"]
    assert "--student" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout


# --- the long way -------------------------------------------------------------------------------------


def test_teachers_of_arrays_say_to_the_bit_what_those_of_a_run_say(teachers, data, long_way):
    found, _, _ = long_way
    np.testing.assert_array_equal(teachers.logits(data.test_images), lookup.teacher_logits(found))
    np.testing.assert_array_equal(
        teachers.logits(teachers.validation[0]), lookup.teacher_logits(found, "val")
    )
    np.testing.assert_array_equal(teachers.validation[1], found.val_labels)
    assert teachers.names == ("teacher 0", "teacher 1", "teacher 2")


def test_the_student_has_to_the_bit_the_weights_that_a_run_exports(student, data, long_way):
    found, into, _ = long_way
    model, variables, card = export.load_student(into / "student", mtkd_jax.api.addresses.build_model)
    assert (student.model, student.card["training"]) == (model, card["training"])
    jax.tree.map(np.testing.assert_array_equal, student.variables, variables)
    group, position = lookup.network_to_deploy(found)
    np.testing.assert_allclose(student.logits(data.test_images), group.test[position], atol=1e-5)
    assert json.loads(json.dumps(student.card["metrics"])) == card["metrics"]


def test_fusion_and_metrics_are_those_of_the_report(teachers, data, long_way):
    found, _, report = long_way
    val_images, val_labels = teachers.validation
    val = {"val_logits": teachers.logits(val_images), "val_labels": val_labels}
    rows = {row["name"]: row for row in report["rows"] if row["role"] == "ensemble"}
    assert rows.keys() == {"mean_probs", "copeland", "stacking"}
    for rule, row in rows.items():
        scores = mtkd_jax.fuse(teachers.logits(data.test_images), rule, **val)
        np.testing.assert_array_equal(scores, lookup.fused(found, rule)["test"])
        measured = mtkd_jax.evaluate(scores, data.test_labels)
        assert measured["accuracy"] == row["accuracy"]["mean"]
        assert list(measured["accuracy_ci95"]) == list(row["accuracy"]["ci95"])
        assert rule == "copeland" or measured["nll"] == row["nll"]["mean"]


def test_a_run_of_arrays_says_what_its_teachers_say_and_where_the_data_came_from(
    teachers, arrays, data, tmp_path
):
    config = small.config(
        **{"data.num_train": 0, "train.epochs": 2, "students.modes": (), "fusion.rules": ("mean_probs",)},
        **{"runtime.how": "auto"},  # as the teachers were trained: another layout is another program
    )
    report = mtkd_jax.run(config, tmp_path, arrays, quiet=True)
    found = workdir.read_predictions(tmp_path)
    np.testing.assert_array_equal(lookup.teacher_logits(found), teachers.logits(data.test_images))
    assert workdir.read_config(tmp_path)["data"]["source"] == "in_memory:arrays"
    assert config.data.source.startswith("synthetic")  # the caller's own is left alone
    told = mtkd_jax.write_report(tmp_path)
    assert [row["name"] for row in told["rows"]] == [row["name"] for row in report["rows"]]
    with pytest.raises(mtkd_jax.UserError, match="arrays are arrays that were given in Python"):
        mtkd_jax.load_data("in_memory:arrays")


def test_the_laboratory_of_given_logits_is_that_of_a_run(long_way):
    from mtkd_jax.laboratory import rule_study

    found, _, _ = long_way
    names = ("plurality", "weighted_mean")
    given = mtkd_jax.compare_rules(
        lookup.teacher_logits(found),
        found.test_labels,
        val_logits=lookup.teacher_logits(found, "val"),
        val_labels=found.val_labels,
        names=names,
    )
    of_run = rule_study.study(found, names=names)
    assert [one["rule"] for one in given["rules"]] == ["mean_probs", "weighted_mean", "plurality"]
    assert (given["rules"], given["findings"]) == (of_run["rules"], of_run["findings"])


# --- the student --------------------------------------------------------------------------------------


def test_a_saved_student_says_the_same_wherever_it_is_asked(student, data, tmp_path):
    folder = student.save(tmp_path / "student")
    loaded = mtkd_jax.load_student(folder)
    np.testing.assert_array_equal(loaded.logits(data.test_images), student.logits(data.test_images))
    again = mtkd_jax.load_student(loaded.save(tmp_path / "again"))
    assert again.card["weights_sha256"] == loaded.card["weights_sha256"]
    images = []
    for number, image in enumerate(data.test_images):
        images.append(tmp_path / f"{number:02d}.png")
        Image.fromarray(image[..., 0]).save(images[-1])
    asked = student, loaded, folder, str(folder)
    found = [mtkd_jax.predict(one, of) for one in asked for of in (data.test_images, images)]
    for one in found:
        np.testing.assert_allclose(one.probabilities, found[0].probabilities, atol=1e-5)
        np.testing.assert_allclose(one.probabilities.sum(axis=-1), 1.0, atol=1e-9)
        assert one.classes == tuple(data.class_names[c] for c in found[0].probabilities.argmax(-1))


def test_no_images_no_logits(teachers, student, data):
    assert teachers.logits(data.test_images[:0]).shape == (3, 0, 4)
    assert student.logits(data.test_images[:0]).shape == (0, 4)


def test_without_a_test_set_students_are_trained_all_the_same_and_no_report_is_made(data, tmp_path):
    val = (data.test_images, data.test_labels)
    teachers = mtkd_jax.train_teachers(
        data.train_images, data.train_labels, val=val, model=NETWORK, num_members=2, **SMALL
    )
    np.testing.assert_array_equal(teachers.validation[0], data.test_images)
    student = mtkd_jax.distil(teachers, alphas=(0.5,), **SMALL)
    assert student.card["metrics"] == {} and student.logits(data.test_images).shape == (40, 4)
    student.save(tmp_path / "student")
    with pytest.raises(mtkd_jax.UserError, match="has no test set"):
        mtkd_jax.run(small.config(**{"data.num_train": 0}), tmp_path, mtkd_jax.data_from_arrays(*val))


def test_what_is_of_students_alone_does_not_stand_in_the_way_of_teachers(arrays):
    """Nor is it forgotten: `distil` has it of them, but for what names modes."""
    own = {
        "students.modes": ("logits.dkd",),
        "students.arguments": {"logits.dkd": {"warmup": 0.5}},
        "students.controls": ("random_teacher",),
        "students.controlled": ("logits.dkd",),
        "students.num_seeds": "auto",
        "students.epochs": 1,
    }
    config = small.config(**own)
    teachers = mtkd_jax.train_teachers(arrays, config=config, num_members=2, **SMALL)
    student = mtkd_jax.distil(teachers, alphas=(0.5,), quiet=True)
    assert (
        student.card["name"] == "arrays: student output_avg" and teachers._trained.config.students.epochs == 1
    )


def test_teachers_that_a_plan_made_teach_as_others_do(arrays, tmp_path):
    teachers = mtkd_jax.train_teachers(arrays, model=NETWORK, num_members=2, plan="snapshots", **SMALL)
    student = mtkd_jax.distil(teachers, alphas=(0.0,), workdir=tmp_path, **SMALL)
    assert student.card["name"] == "arrays: student output_avg"
    assert workdir.read_config(tmp_path)["plan"] == "teachers_then_students"


def test_teachers_that_are_not_lent_are_refused_before_any_work(arrays):
    dropping = {"model": "mlp(hidden=(8,), dropout=0.2)", "plan": "dropout_draws"}
    teachers = mtkd_jax.train_teachers(arrays, num_members=2, **dropping, **SMALL)
    with pytest.raises(mtkd_jax.UserError, match="teachers of plan dropout_draws, which are not lent"):
        mtkd_jax.distil(teachers, **SMALL)


def test_teachers_who_are_known_by_their_logits_are_not_asked_about_other_images(arrays):
    config = small.config(**{"teachers.classifiers": ("scikit_learn:GaussianNB",), "data.num_train": 0})
    teachers = mtkd_jax.train_teachers(arrays, config=config, quiet=True)
    with pytest.raises(mtkd_jax.UserError, match="known by their logits of the data's own images"):
        teachers.logits(arrays.test_images)


def test_nobody_is_returned_for_students_that_broke_down(teachers):
    with pytest.raises(mtkd_jax.UserError, match="^distil: no student of output_avg is left"):
        mtkd_jax.distil(teachers, alphas=(0.0,), temperatures=(1e30,), **SMALL)


def test_teachers_of_several_architectures_and_images_that_are_no_numbers(arrays):
    two = mtkd_jax.train_teachers(
        arrays, model=("mlp(hidden=(4,))", "mlp(hidden=(8,))"), num_members=1, **SMALL
    )
    assert [own.model.name for own in two.ensemble] == ["mlp(hidden=(4,))", "mlp(hidden=(8,))"]
    images = np.random.default_rng(0).random((30, 4, 4), np.float32)
    student = mtkd_jax.distil(
        mtkd_jax.train_teachers(images, np.arange(30) % 2, num_members=1, **SMALL), alphas=(0.5,), **SMALL
    )
    images[3, 1, 1] = np.nan
    with pytest.raises(mtkd_jax.UserError, match="1 of 30 images hold NaN .* the first is image 3"):
        mtkd_jax.predict(student, images)


# --- folders ------------------------------------------------------------------------------------------


def test_a_workdir_is_gone_on_with_and_a_temporary_one_goes_with_the_teachers(arrays, tmp_path):
    asked = {"model": NETWORK, "num_members": 3, "workdir": tmp_path / "teachers", **SMALL}
    first = mtkd_jax.train_teachers(arrays, **asked)
    begun = (tmp_path / "teachers" / "metrics.jsonl").stat().st_mtime_ns
    again = mtkd_jax.train_teachers(arrays, **asked)
    assert (tmp_path / "teachers" / "metrics.jsonl").stat().st_mtime_ns == begun
    assert again.logits(arrays.test_images).tobytes() == first.logits(arrays.test_images).tobytes()
    with pytest.raises(mtkd_jax.UserError, match="holds another run: train.epochs was 2 and is 4"):
        mtkd_jax.train_teachers(arrays, **{**asked, "epochs": 4})
    asked.pop("workdir")
    temporary = mtkd_jax.train_teachers(arrays, **asked)
    folder = temporary.workdir
    assert folder.is_dir() and first.logits(arrays.test_images).tobytes() == (
        temporary.logits(arrays.test_images).tobytes()
    )
    del temporary
    gc.collect()
    assert not folder.exists()


def test_interrupted_without_a_workdir_nothing_is_kept_and_nothing_else_is_promised(tmp_path):
    for given, said in (
        (None, "without a workdir nothing is kept"),
        (tmp_path, "saved; run the cell again"),
    ):
        with pytest.raises(Interrupted) as stopped, api._folder(given) as folder:
            raise Interrupted(2, "teachers-mlp is saved")
        (line,) = stopped.value._render_traceback_()
        assert said in line and ("again" in line) == (given is not None)
    assert folder == tmp_path and folder.exists()


# --- one line -----------------------------------------------------------------------------------------

IMAGES, LABELS = np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda t: mtkd_jax.train_teachers(IMAGES), "images without labels"),
        (lambda t: mtkd_jax.train_teachers(labels=LABELS), "labels and val go with images"),
        (lambda t: mtkd_jax.train_teachers(IMAGES, LABELS[:3]), "train_labels: 3 labels for 8 images"),
        (lambda t: mtkd_jax.data_from_arrays(IMAGES, LABELS, test=IMAGES), "test: must be"),
        (lambda t: mtkd_jax.data_from_arrays(IMAGES, LABELS, layout="CHWN"), "must be NHWC or NCHW"),
        (lambda t: mtkd_jax.train_teachers(t._data, epoch=3), "did you mean 'train.epochs'"),
        (lambda t: mtkd_jax.train_teachers(t._data, epochs=0), "config.train.epochs: 0 is not possible"),
        (lambda t: mtkd_jax.train_teachers(t._data, students__sede=1), "config.students.sede"),
        (lambda t: mtkd_jax.distil(t, "logit_av"), "did you mean 'logit_avg'"),
        (lambda t: mtkd_jax.distil(t, seed=1), "another data_sha256|another split_sha256|use the same data"),
        (lambda t: mtkd_jax.distil(t, alphas=[2.0]), "config.students.alphas: 2.0 is not possible"),
        (lambda t: t.logits(IMAGES.astype(np.float64)), "the teachers learned from images .* of uint8"),
        (
            lambda t: t.logits(np.zeros((2, 5, 5), np.uint8)),
            r"\[N,4,4,1\] of uint8, these are \(2, 5",
        ),
        (lambda t: mtkd_jax.fuse(np.zeros((2, 3, 2)), "bordo"), "did you mean 'borda'"),
        (lambda t: mtkd_jax.fuse(np.zeros((2, 3, 2)), "stacking"), "stacking is fitted; give it val_logits"),
        (lambda t: mtkd_jax.fuse(np.zeros((3, 2))), "must be .members, examples, classes."),
        (lambda t: mtkd_jax.evaluate(np.zeros((3, 2)), [0, 1, 2]), "labels must be in 0..1"),
        (lambda t: mtkd_jax.evaluate(np.zeros(3), [0, 1, 1]), "must be .examples, classes."),
        (lambda t: mtkd_jax.evaluate(np.zeros((3, 2)), [0.0, 1.0, 1.0]), "evaluate: labels must be integers"),
        (lambda t: mtkd_jax.evaluate(np.zeros((3, 2)), ["0", "1", "1"]), "evaluate: labels must be integers"),
        (lambda t: mtkd_jax.fuse(np.zeros((2, 3, 2)), None), "rule is None; must be a name such as"),
        (
            lambda t: mtkd_jax.data_from_arrays(None, LABELS),
            "train_images: is None; must be",
        ),
        (lambda t: mtkd_jax.data_from_arrays(IMAGES, None), "train_labels: is None"),
        (lambda t: mtkd_jax.data_from_arrays([[1], [1, 2]], [0, 1]), "all rows are of one shape"),
        (lambda t: mtkd_jax.data_from_arrays(IMAGES, LABELS, class_names={0: "a", 1: "b"}), "in a list"),
        (lambda t: mtkd_jax.data_from_arrays(IMAGES, LABELS, class_names="ab"), "in a list"),
        (lambda t: mtkd_jax.data_from_arrays(IMAGES, LABELS, class_names=2), "in a list"),
        (
            lambda t: mtkd_jax.train_teachers(IMAGES, LABELS, config={}),
            "config is {}; must be a ConfigDict",
        ),
        (lambda t: mtkd_jax.train_teachers(t._data, model=lambda task: None), "config.model.name is"),
        (lambda t: mtkd_jax.train_teachers(t._data, logits="t.npz"), "such as .'t.npz',."),
        (lambda t: mtkd_jax.run("digits", "w"), "run: config is 'digits'; must be a ConfigDict"),
        (lambda t: mtkd_jax.run(mtkd_jax.default_config(), "w", IMAGES), "run: data is array"),
        (lambda t: mtkd_jax.load_data(Path("digits")), "load_data: source is PosixPath"),
        (lambda t: mtkd_jax.load_data("npz", None), "load_data: path is None; must be a path"),
        (lambda t: mtkd_jax.write_report(None), "the folder of the run is None; must be a path"),
        (lambda t: mtkd_jax.distil(IMAGES), "distil: teachers is array"),
        (lambda t: mtkd_jax.distil(t, ("vote", "output_avg")), "distil: mode is .'vote'"),
        (lambda t: mtkd_jax.predict(t, IMAGES), "predict: student is Teachers"),
        (lambda t: mtkd_jax.predict("nowhere", IMAGES), "nowhere/model.json"),
        (
            lambda t: mtkd_jax.predict(
                mtkd_jax.Student(None, {}, {"name": "x", "places": {"place": "pixel"}}, IMAGES), IMAGES
            ),
            "predict: x says a class of every pixel; must be a student that says one of every image",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(teachers, call, said):
    with pytest.raises(mtkd_jax.UserError, match=said) as error:
        call(teachers)
    assert "\n" not in str(error.value)
