"""Teachers that are programs: asked in the step, on whatever the students see, or once by another runtime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from mtkd_jax import experiment
from mtkd_jax.deploy import export, programs
from mtkd_jax.engine import population, teacher_cache
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.plans import given, students, teachers
from mtkd_jax.types import Population, UserError
from tests import small

WEIGHTS = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)


def network():
    config = small.config(
        **{
            "students.modes": ("mimic_all",),
            "students.alphas": (0.5,),
            "students.num_seeds": 1,
            "data.augment.noise": 0.1,
        }
    )
    split = experiment.load_split(config)
    model = teachers.network(split, "mlp(hidden=(8,))")
    variables = population.init(model, jax.random.split(jax.random.key(5), 2), (4, 4, 1))
    return config, split, Population(model, variables, {}, ("a", "b"))


def linear(image):
    """Logits of images [B,4,4,1]."""
    return image.reshape(image.shape[0], 16) @ WEIGHTS


def write(path, function, shape):
    """A StableHLO file of a function of images; -1 is any number."""
    sizes = jax_export.symbolic_shape(",".join("b" if size == -1 else str(size) for size in shape))
    exported = jax_export.export(jax.jit(function))(jax.ShapeDtypeStruct(sizes, jnp.float32))
    path.write_bytes(exported.serialize())
    return path


def load(path, shape=(4, 4, 1)):
    return programs.load(path, shape, np.dtype(np.uint8), 4)


@pytest.mark.parametrize("size", [-1, 3])
def test_a_program_is_asked_about_any_number_of_images_with_channels_on_either_side(size, tmp_path):
    images = np.random.default_rng(1).random((8, 4, 4, 1), np.float32)
    plain = load(write(tmp_path / "a.stablehlo", linear, (size, 4, 4, 1)))
    np.testing.assert_allclose(plain.call(images), linear(images), rtol=1e-5)
    turned = write(
        tmp_path / "b.stablehlo", lambda image: linear(jnp.moveaxis(image, 1, -1)), (size, 1, 4, 4)
    )
    np.testing.assert_allclose(load(turned).call(images), linear(images), rtol=1e-5)


@pytest.mark.parametrize("layout", [Layout("vmap"), Layout("map", 2)])
def test_programs_say_in_the_step_what_their_networks_say(layout, tmp_path):
    config, split, own = network()
    populations = []
    for k in range(2):
        variables = population.take(own.variables, k)
        (tmp_path / f"{k}.stablehlo").write_bytes(export.program_of(own.model, variables, (4, 4, 1)))
        found, notes = given.from_program(str(tmp_path / f"{k}.stablehlo"), str(k), split.dataset)
        assert "taken to be in the data's order" in notes[1]
        populations.append(found)
    said = []
    for ensemble in ((own,), tuple(populations)):
        (family, *_) = students.families(config)
        job = with_layout(students.job(config, split, "labelled", family, ensemble, {}), layout)
        said.append(teacher_cache.fill(job, {}).stage_data.cached_logits)  # of augmented images, step by step
    np.testing.assert_allclose(said[1], said[0], atol=1e-5)
    logits = [experiment.evaluation.logits(one, split.dataset.test_images, "test") for one in populations]
    np.testing.assert_allclose(
        np.concatenate(logits), population.logits(own, split.dataset.test_images), atol=1e-5
    )


def test_a_run_is_taught_by_a_program_and_by_a_file_of_logits(tmp_path):
    config, split, own = network()
    write(tmp_path / "linear.stablehlo", linear, (-1, 4, 4, 1))
    arrays = {
        f"{part}_logits": population.logits(own, getattr(split.dataset, f"{part}_images"))
        for part in ("train", "test")
    }
    given.logit_files.write(tmp_path / "two.npz", arrays, split.dataset.class_names)
    config.teachers.logits = (str(tmp_path / "two.npz"),)
    config.teachers.programs = (str(tmp_path / "linear.stablehlo"),)
    config.train.epochs, config.students.modes = 2, ("output_avg",)
    report = experiment.run(config, tmp_path / "run", quiet=True)
    rows = [row for row in report["rows"] if row["role"] == "teacher"]
    assert [(row["name"], row["n"], row["params"]) for row in rows] == [
        ("logits files", 2, None),
        ("program linear", 1, None),
    ]
    expected = linear(split.dataset.test_images.astype(np.float32) / 255).argmax(-1)
    assert rows[1]["accuracy"]["mean"] == pytest.approx(np.mean(expected == split.dataset.test_labels))
    write(tmp_path / "linear.stablehlo", lambda image: linear(image) + 1, (-1, 4, 4, 1))
    with pytest.raises(UserError, match="weights_sha256.*linear.stablehlo.*choose another --workdir"):
        experiment.run(config, tmp_path / "run", quiet=True)


def test_a_program_has_no_gradient_and_that_is_said_before_any_work(tmp_path):
    write(tmp_path / "linear.stablehlo", linear, (-1, 4, 4, 1))
    config, _, _ = network()
    config.teachers.programs = (str(tmp_path / "linear.stablehlo"),)
    config.students.modes = ("stimuli.ods",)
    with pytest.raises(UserError, match="stimuli.ods: asks how logits change with the image"):
        experiment.run(config, tmp_path / "run", quiet=True)
    config.students.modes = ("features.attention_transfer",)
    with pytest.raises(UserError, match="of program linear only the logits are known"):
        experiment.run(config, tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    "function, shape, words",
    [
        (lambda image: image.reshape(-1, 48)[:, :4], (-1, 4, 4, 3), r"sees images \['any', 4, 4, 3\]"),
        (
            lambda image: image.reshape(-1, 16),
            (-1, 4, 4, 1),
            r"says \(2, 16\) of two images",
        ),
    ],
)
def test_programs_for_other_images_or_classes_are_refused_in_a_line(function, shape, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        load(write(tmp_path / "a.stablehlo", function, shape))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.stablehlo", "a.pt", "a.onnx", "missing.stablehlo"])
def test_files_that_are_no_programs_are_refused_in_a_line(name, tmp_path):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    if name.startswith("a"):
        (tmp_path / name).write_bytes(b"no program")
    with pytest.raises(UserError, match=name) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_an_onnx_program_is_asked_once_of_the_plain_images(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    tensor, make = onnx.helper.make_tensor_value_info, onnx.helper
    flat = make.make_node("Flatten", ["images"], ["flat"], axis=1)
    product = make.make_node("MatMul", ["flat", "weights"], ["logits"])
    weights = onnx.numpy_helper.from_array(WEIGHTS, "weights")
    graph = make.make_graph(
        [flat, product],
        "linear",
        [tensor("images", onnx.TensorProto.FLOAT, ["n", 1, 4, 4])],
        [tensor("logits", onnx.TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "t.onnx").write_bytes(model.SerializeToString())
    _, split, _ = network()
    found, _ = given.from_program(str(tmp_path / "t.onnx"), "t", split.dataset)
    images = split.dataset.train_images.astype(np.float32) / 255
    np.testing.assert_allclose(found.variables["train"][0], linear(images), rtol=1e-4, atol=1e-5)
