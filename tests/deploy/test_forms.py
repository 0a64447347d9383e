"""Further forms of a student say what it says, or are refused in one line and leave its folder as it was."""

from __future__ import annotations

import importlib.util
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from mtkd_jax import addresses, experiment
from mtkd_jax import config as configuration
from mtkd_jax import export as command
from mtkd_jax.deploy import deployed, export, forms, int8, onnx, onnx_int8, onnx_runtime
from mtkd_jax.results import forms as measured
from mtkd_jax.results import intervals
from mtkd_jax.runs import workdir
from mtkd_jax.types import Model, Outputs, Task, UserError
from tests import small


def network(address, shape):
    """A network as it is initialised, with normalisation that has seen something, and images."""
    channels = shape[-1]
    task = Task(3, 1, (0.4,) * channels, (0.2,) * channels)
    model = addresses.build_model(address, task)
    images = np.random.default_rng(0).uniform(size=(5, *shape)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return model, variables, images, np.asarray(export.logits_of(model, variables, images))


def save(directory, address="mlp(hidden=(16,))", shape=(4, 4, 1)):
    model, variables, images, logits = network(address, shape)
    card = {
        "name": "made up: student by nobody",
        "model": address,
        "task": model.module.task,
        "class_names": ["a", "b", "c"],
        "input": {"shape": list(shape), "dtype": "float32", "range": deployed.PIXELS},
        "training": "none",
        "data": "none",
        "source": "none",
        "metrics": {},
    }
    export.save_student(directory, model, variables, card, (images, logits))
    return variables, images, logits


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "student")
    return tmp_path / "student"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name, package, extra",
    [("onnx", "jax2onnx", "onnx"), ("int8", "qwix", "int8"), ("onnx_int8", "jax2onnx", "onnx")],
)
def test_a_missing_package_is_one_line_that_names_the_extra(
    folder, monkeypatch, capsys, name, package, extra
):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda one: None if one == package else find(one))
    before = content(folder)
    assert command.main([str(folder), "--forms", name]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    missing = f"the form {name} is made by {package}, which is missing"
    assert told == f"mtkd_jax: {missing}: pip install 'mtkd_jax[{extra}]'"
    assert content(folder) == before
    config = small.config(**{"export.forms": (name,)})
    with pytest.raises(UserError, match=rf"mtkd_jax\[{extra}\]"):  # before anything is trained
        experiment.run(config, folder.parent / "run")


def test_a_form_that_is_none_suggests_the_nearest(folder, capsys):
    assert command.main([str(folder), "--forms", "onx"]) == 2
    assert "--forms onx: must be of onnx, int8" in (said := capsys.readouterr().err) and "'onnx'" in said
    assert command.main([str(folder.parent / "nothing")]) == 2
    assert "holds no student" in capsys.readouterr().err


def test_what_is_there_is_measured_and_told(folder, capsys):
    assert command.main([str(folder)]) == 0
    told = capsys.readouterr()
    card = deployed.read_card(folder / "model.json")
    assert set(card["forms"]["files"]) == {"model.safetensors", "model.stablehlo"}
    program = card["forms"]["files"]["model.stablehlo"]
    assert program["bytes"] == (folder / "model.stablehlo").stat().st_size
    assert program["difference"] < 1e-5 and program["same_class"] == 1 and set(program["ms"]) == {"1", "64"}
    assert "accuracy" not in program and "its accuracy is not measured" in told.err
    readme = (folder / "README.md").read_text()
    assert "## Its forms" in readme and f"Measured on {card['forms']['on']}" in readme.replace("\\", "")
    assert f"{program['bytes']:_}" in told.out
    export.load_student(folder, addresses.build_model)  # still a student, and its card whole


def test_the_run_around_a_student_is_found_from_within_and_no_other_file_is_one(folder, monkeypatch, capsys):
    """The student of a run is "." there; a config.json of somebody else's is no run, and no error."""
    source = "synthetic(num_classes=3, num_train=60, num_test=20, size=4)"
    config = small.config(**{"data.source": source, "data.num_train": 0})
    monkeypatch.chdir(folder)
    for content, measured_on_test in (("", True), ("{}", False), ('{"seed": 1}', False)):
        if content:
            (folder.parent / "config.json").write_text(content)
        else:
            workdir.describe(folder.parent, config, experiment.load_split(config))
        for given in (".", str(folder)):
            assert command.main([given]) == 0
            said = capsys.readouterr().err
            assert ("no run lies around this student" not in said) == measured_on_test
            told = deployed.read_card(folder / "model.json")["forms"]["files"]["model.stablehlo"]
            assert not measured_on_test or "accuracy" in told
            assert "`student/`" in (folder / "README.md").read_text()


def test_latency_is_the_median_of_calls_after_the_first(monkeypatch):
    clock = iter([0.0, 0.010, 1.0, 1.030, 2.0, 2.020, 3.0, 3.5, 4.0, 4.001])
    monkeypatch.setattr(measured.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    sizes = []
    ms = measured.latency(lambda images: sizes.append(len(images)), np.zeros((3, 2, 2, 1)), 7)
    assert ms == pytest.approx(20.0) and sizes == [7] * 6


def test_accuracy_is_paired_with_that_of_the_float32_program(folder, monkeypatch):
    """By hand: of four examples the program finds three, the other form two, both among the three."""
    data = {"test_images": np.zeros((4, 4, 4, 1), np.uint8), "test_labels": np.arange(4)}
    data |= {"is_dense": False, "num_classes": 4, "test_groups": None}
    dataset = type("Data", (), data)
    answers = {"model.stablehlo": [0, 1, 2, 0], "model.onnx": [0, 1, 0, 0]}

    def ask(classes):
        return lambda images: np.eye(4, dtype=np.float32)[np.resize(classes, len(images))][:, :]

    monkeypatch.setattr(measured.forms, "programs", lambda _: {f: ask(c) for f, c in answers.items()})
    (folder / "model.onnx").write_bytes(b"x" * 9)
    monkeypatch.setattr(
        measured, "load_file", lambda _: {"images": np.zeros((4, 4, 4, 1)), "logits": np.eye(4)[[0, 1, 2, 0]]}
    )
    told = measured.measure(folder, dataset)
    assert told["model.stablehlo"]["accuracy"]["value"] == 0.75
    assert told["model.onnx"]["accuracy"]["value"] == 0.5 and told["model.onnx"]["bytes"] == 9
    assert told["model.onnx"]["accuracy_minus_float32"]["value"] == -0.25
    low, high = told["model.onnx"]["accuracy_minus_float32"]["ci95"]
    assert -1 <= low <= -0.25 <= high < 1
    assert told["model.onnx"]["same_class"] == 0.75
    dataset.test_groups = np.array(
        [7, 7, 7, 9]
    )  # three of three right in one group, none of one in the other
    told = measured.measure(folder, dataset)["model.stablehlo"]["accuracy"]
    assert told["value"] == 0.75 and told["ci95"] == pytest.approx((0.0, 1.0))


def test_accuracy_of_a_dense_student_is_over_places_and_its_interval_over_images(folder, monkeypatch):
    """By hand: of an image of four places the program finds three, of one of a single place none."""
    labels = np.array([[0, 1, 2, 0], [1, -1, -1, -1]])
    data = {"test_images": np.zeros((2, 4, 4, 1), np.uint8), "test_labels": labels}
    dataset = type("Data", (), data | {"is_dense": True, "num_classes": 3, "test_groups": None})
    answers = {
        "model.stablehlo": [[0, 1, 2, 1], [0, 1, 1, 1]],  # 3 of 4 and 0 of 1
        "model.onnx": [[0, 0, 0, 0], [1, 0, 0, 0]],  # 2 of 4 and 1 of 1
    }

    def ask(classes):
        return lambda images: np.eye(3, dtype=np.float32)[np.resize(classes, (len(images), 4))]

    monkeypatch.setattr(measured.forms, "programs", lambda _: {f: ask(c) for f, c in answers.items()})
    (folder / "model.onnx").write_bytes(b"x")
    checked = {"images": np.zeros((2, 4, 4, 1)), "logits": np.eye(3)[labels]}
    monkeypatch.setattr(measured, "load_file", lambda _: checked)
    monkeypatch.setattr(intervals, "widen", lambda resampled, value, freedom: resampled)  # of two: to all
    told = measured.measure(folder, dataset)
    assert told["model.stablehlo"]["accuracy"]["value"] == 3 / 5  # of shares an image it would be 3 / 8
    assert told["model.onnx"]["accuracy"]["value"] == 3 / 5
    minus = told["model.onnx"]["accuracy_minus_float32"]
    assert minus["value"] == pytest.approx(0.0)
    # Of two images a resample has either one twice, or both.
    assert told["model.stablehlo"]["accuracy"]["ci95"] == pytest.approx((0.0, 3 / 4))
    assert told["model.onnx"]["accuracy"]["ci95"] == pytest.approx((2 / 4, 1.0))
    assert minus["ci95"] == pytest.approx((-1 / 4, 1.0))


def test_a_configuration_comes_back_from_its_settings():
    config = small.config(**{"export.forms": ("int8",), "students.alphas": (0.0, 0.5)})
    again = configuration.restored(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()


# --- ONNX ---------------------------------------------------------------------------------------------

NETWORKS = [
    ("mlp(hidden=(8,))", (8, 8, 1)),
    ("cnn(widths=(4, 8), dense=8)", (8, 8, 1)),
    ("resnet(depth=8)", (8, 8, 3)),
    ("mobilenet_v2(width=0.25)", (16, 16, 3)),
    ("fcn(widths=(4, 8, 4))", (20, 1, 2)),
    ("inception_time(depth=3, width=4)", (20, 1, 2)),
]


@pytest.mark.parametrize("address, shape", NETWORKS)
def test_onnx_says_what_the_student_says_of_any_number_of_images(address, shape):
    pytest.importorskip("jax2onnx"), pytest.importorskip("onnxruntime")
    model, variables, images, logits = network(address, shape)
    ask = onnx_runtime.open_model(onnx.onnx_of(model, variables, images, logits), address).call
    for num in (1, 3, 5):
        np.testing.assert_allclose(ask(images[:num]), logits[:num], atol=1e-4 * max(1, abs(logits).max()))


def test_onnx_of_another_network_is_refused_and_nothing_is_written(folder, monkeypatch):
    pytest.importorskip("jax2onnx"), pytest.importorskip("onnxruntime")
    said = {"images": (checked := load_file(folder / "check.safetensors"))["images"]}
    monkeypatch.setattr(forms, "load_file", lambda _: said | {"logits": checked["logits"] + 0.01})
    before = content(folder)
    with pytest.raises(UserError, match=r"mlp.*cannot be written as ONNX.*as on a gpu: differs by") as caught:
        forms.add(folder, ["onnx"], addresses.build_model)
    assert "\n" not in str(caught.value) and content(folder) == before


def test_activations_are_rounded_to_the_range_of_the_images_that_are_seen(tmp_path):
    """By hand: logits are the pixels. Of a range 0..1.02 a step is 0.004, and what lies beyond is cut off."""
    pytest.importorskip("jax2onnx"), pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    kernel = np.eye(4, dtype=np.float32)

    def apply(_, image, train):
        logits = image.reshape(image.shape[0], 4) @ kernel
        return Outputs(logits, logits[None], logits, {})

    images = rng.uniform(0, 1, (8, 2, 2, 1)).astype(np.float32)
    pixels = images.reshape(8, 4)
    data = onnx.onnx_of(Model("pixels", SimpleNamespace(apply=apply)), {}, images, pixels)
    images[0, 0, 0], seen = 5.0, np.append(images[1:], np.full((1, 2, 2, 1), 1.02, np.float32), axis=0)
    said = onnx_runtime.open_model(onnx_int8.rounded(data, seen), "rounded").call(images)
    wanted = np.minimum(images.reshape(8, 4), 1.02)
    np.testing.assert_allclose(said, wanted, atol=1.02 / 255 * 1.5)
    assert np.max(np.abs(said - wanted)) > 1e-4


def test_without_validation_images_activations_have_no_ranges_and_nothing_is_written(folder, capsys):
    pytest.importorskip("jax2onnx"), pytest.importorskip("onnxruntime")
    before = content(folder)
    assert command.main([str(folder), "--forms", "onnx_int8"]) == 2
    assert "mtkd_jax: the form onnx_int8 takes the ranges of activations from validation images" in (
        capsys.readouterr().err
    )
    assert content(folder) == before


# --- int8 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address, shape", [NETWORKS[0], NETWORKS[2], NETWORKS[4]])
def test_kernels_are_rounded_to_127_steps_of_the_largest_of_each_feature(address, shape):
    pytest.importorskip("qwix")
    _, variables, _, _ = network(address, shape)
    arrays = int8.rounded(variables)
    again = flatten_dict(int8.multiplied_out(arrays), sep="/")
    for path, leaf in flatten_dict(variables, sep="/").items():
        leaf = np.asarray(leaf, np.float64)
        if not path.startswith("params/") or leaf.ndim < 2 or path.endswith("/bias"):
            np.testing.assert_array_equal(again[path], leaf)
            continue
        axes = tuple(range(leaf.ndim - 1)) if "heads" not in path else (1,) * (leaf.ndim == 3) or (0,)
        step = np.abs(leaf).max(axis=axes, keepdims=True) / 127
        assert arrays[path].dtype == np.int8
        assert np.all(np.abs(again[path] - leaf) <= 0.5001 * step + 1e-9)


def test_int8_is_a_quarter_of_the_bytes_and_is_asked_without_qwix(tmp_path, monkeypatch):
    pytest.importorskip("qwix")
    _, images, logits = save(tmp_path, "mlp(hidden=(256, 256))", (8, 8, 1))
    forms.add(tmp_path, ["int8"], addresses.build_model)
    size = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert size["model.int8.safetensors"] < 0.28 * size["model.safetensors"]
    assert size["model.int8.stablehlo"] < 0.35 * size["model.stablehlo"]
    monkeypatch.setitem(__import__("sys").modules, "qwix", None)  # importing it would raise
    program, _ = deployed.load_program(tmp_path, "int8")
    model, _, _, _ = network("mlp(hidden=(256, 256))", (8, 8, 1))
    wanted = model.apply(int8.multiplied_out(load_file(tmp_path / "model.int8.safetensors")), images)[
        0
    ].logits
    np.testing.assert_allclose(program(images), wanted, atol=1e-5)
    assert 0 < float(jnp.max(jnp.abs(wanted - logits))) < 0.1
    data = bytearray((tmp_path / "model.int8.stablehlo").read_bytes())
    data[100] ^= 1
    (tmp_path / "model.int8.stablehlo").write_bytes(data)
    with pytest.raises(UserError, match="model.int8.stablehlo: damaged"):
        forms.programs(tmp_path)


def test_a_run_writes_the_forms_it_is_asked_for_and_the_command_measures_them_again(tmp_path, capsys):
    pytest.importorskip("qwix")
    config = small.config(**{"export.forms": ("int8",), "train.epochs": 1})
    experiment.run(config, tmp_path / "run", quiet=True)
    capsys.readouterr()
    card = deployed.read_card(tmp_path / "run" / "student" / "model.json")
    first = card["forms"]["files"]["model.int8.stablehlo"]
    assert {"bytes", "ms", "difference", "accuracy", "accuracy_minus_float32", "sha256"} == set(first) - {
        "same_class"
    }
    assert card["forms"]["files"]["model.stablehlo"]["accuracy"]["value"] == pytest.approx(
        card["metrics"]["test accuracy"]["value"]
    )
    assert command.main([str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err == ""  # the data were found and are the run's
    again = deployed.read_card(tmp_path / "run" / "student" / "model.json")["forms"]["files"]
    assert again["model.int8.stablehlo"]["accuracy"] == first["accuracy"]
    shutil.copytree(tmp_path / "run" / "student", tmp_path / "alone")
    assert "accuracy" in (tmp_path / "alone" / "README.md").read_text()
