"""The exported student answers as the one that was saved, or is refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from safetensors import safe_open

from mtkd_jax import addresses, experiment
from mtkd_jax.data.images import read as read_image
from mtkd_jax.deploy import predict
from mtkd_jax.deploy.cascade import answer, confidence
from mtkd_jax.deploy.cascade import load as load_cascade
from mtkd_jax.deploy.deployed import PIXELS, card_digest, load_program
from mtkd_jax.deploy.export import load_student, program_of, readme, save_student, verify_student
from mtkd_jax.engine import training
from mtkd_jax.models import layers
from mtkd_jax.models.levels import INPUT, LEVELS, round_inputs
from mtkd_jax.plans import checks
from mtkd_jax.results import cascade, evaluation, lookup
from mtkd_jax.results import student as results_student
from mtkd_jax.types import Model, Outputs, Task, UserError
from tests import small

TASK = Task(num_classes=3, num_heads=1, mean=(0.25, 0.5), std=(0.125, 0.1))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 4, 4, 2)), jnp.float32)
CARD = {
    "name": "digits: student by output_avg",
    "model": "tiny(width=6)",
    "task": TASK,
    "class_names": ["nought", "één", "two"],
    "input": {"shape": [4, 4, 2], "dtype": "float32", "range": PIXELS},
    "training": "output_avg, alpha 0.25 (weight of the hard labels), temperature 1",
    "data": "digits, 100 labelled and 1100 unlabelled images",
    "source": "runs/digits",
    "metrics": {
        "accuracy": {"value": 0.91234, "ci95": [0.89, 0.93456], "over": "test examples"},
        "nll": {"value": 0.3, "ci95": None, "over": "test examples"},
    },
}


class Tiny(nn.Module):
    width: int
    task: Task
    dtype: str = "float32"  # said, not done

    @nn.compact
    def __call__(self, image, train):
        mean, std = (jnp.asarray(value)[None, None, None] for value in (self.task.mean, self.task.std))
        hidden = nn.Dense(self.width)(((image - mean) / std).reshape(image.shape[0], -1))
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(hidden))
        logits = nn.Dense(self.task.num_classes, param_dtype=jnp.bfloat16, dtype=jnp.float32)(hidden)
        return Outputs(logits=logits, heads=logits[None], embedding=hidden, features={})


def build(address: str, task: Task) -> Model:
    return Model(address, Tiny(int(re.fullmatch(r"tiny\(width=(\d+)\)", address)[1]), task))


MODEL = build(CARD["model"], TASK)


def student() -> tuple[dict, jax.Array]:
    variables = MODEL.init(jax.random.key(1), IMAGES)
    return variables, MODEL.apply(variables, IMAGES)[0].logits


@pytest.fixture
def folder(tmp_path):
    variables, logits = student()
    save_student(tmp_path / "run" / "student", MODEL, variables, CARD, (IMAGES, logits))
    return tmp_path / "run" / "student"


def test_it_comes_back_bit_for_bit(folder):
    variables, logits = student()
    model, loaded, card = load_student(folder, build)
    assert model == MODEL  # the task has come back as it was, tuples and all
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(variables)):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert {name: card[name] for name in CARD} == CARD | {
        "task": {"num_classes": 3, "num_heads": 1, "mean": [0.25, 0.5], "std": [0.125, 0.1]}
    }
    assert verify_student(folder, build, IMAGES, logits) <= 1e-6


def test_a_student_that_reads_few_bits_reads_them_when_it_is_loaded(tmp_path):
    """As weights and as program, which holds the rounding; the card in words says how many."""
    variables, real = student()
    variables[LEVELS] = {"Dense_1": {INPUT: jnp.float32(3)}}
    model = round_inputs(MODEL)
    logits = model.apply(variables, IMAGES)[0].logits
    assert np.abs(logits - real).max() > 1e-3
    told = {"weight_bits": 17.5, "activation_bits": 2.0, "zeros": 0.25, "num_bytes": 1234.0}
    save_student(tmp_path / "student", model, variables, {**CARD, "weights": told}, (IMAGES, logits))
    assert verify_student(tmp_path / "student", build, IMAGES, logits) <= 1e-5
    words = (tmp_path / "student" / "README.md").read_text(encoding="utf-8")
    assert "| weights | 17.5 bits each on average, 25.0% of them 0: 1,234 bytes if stored so" in words
    assert "Layers between the first and the last read 2 bits |" in words


def test_weights_are_found_by_readable_names(folder):
    with safe_open(folder / "model.safetensors", "np") as file:
        assert {"params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean"} <= set(file.keys())


def test_arrays_in_any_memory_order_are_saved_as_they_read(tmp_path):
    variables, logits = student()
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"])
    variables["params"]["Dense_0"]["kernel"] = np.asfortranarray(kernel)
    save_student(tmp_path / "student", MODEL, variables, CARD, (IMAGES, logits))
    verify_student(tmp_path / "student", build, IMAGES, logits)


@pytest.mark.parametrize("value, size", [(0.5, "0.5"), (2e-5, r"[12]\.?\d*e-05"), (np.nan, "nan")])
def test_a_difference_is_reported_by_size(folder, value, size):
    _, logits = student()
    with pytest.raises(RuntimeError, match=f"differ by {size}, more than 1e-05"):
        verify_student(folder, build, IMAGES, logits.at[1, 2].add(value))


def test_it_is_replaced_whole(folder):
    variables, logits = student()
    (folder / "model.onnx").touch()  # of the old one
    other = jax.tree.map(lambda leaf: leaf * 0, variables)
    save_student(folder, MODEL, other, CARD, (IMAGES, logits * 0))
    assert {path.name for path in folder.parent.iterdir()} == {"student"}
    names = {"model.safetensors", "model.stablehlo", "model.json", "check.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    assert verify_student(folder, build, IMAGES, logits * 0) == 0


def test_what_is_no_student_is_not_replaced(tmp_path, monkeypatch):
    """Whoever names a folder of theirs, a run's for instance, keeps what lies in it."""
    variables, logits = student()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "thesis")
    for folder, why in (
        (tmp_path, "the current folder lies there"),
        (Path("."), "the current folder lies there"),
        (tmp_path / "file", "is a file; name a folder"),
    ):
        with pytest.raises(UserError, match=why):
            save_student(folder, MODEL, variables, CARD, (IMAGES, logits))
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="holds 'chapter.txt', which is no part of a student; move it away"):
        save_student(tmp_path / "thesis", MODEL, variables, CARD, (IMAGES, logits))
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", "file"}
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"
    (tmp_path / "thesis" / "chapter.txt").unlink()
    save_student(tmp_path / "thesis", MODEL, variables, CARD, (IMAGES, logits))  # an empty one is free


def test_a_save_that_fails_leaves_the_old_one(folder, monkeypatch):
    variables, logits = student()
    monkeypatch.setattr(
        "mtkd_jax.deploy.export.readme", lambda card, name: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(UserError, match=f"{folder}: cannot save the student: full"):
        save_student(folder, MODEL, variables, CARD, (IMAGES, logits))
    verify_student(folder, build, IMAGES, logits)
    assert {path.name for path in folder.parent.iterdir()} == {"student"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder / name}: cannot be read: No such file") as caught:
        load_student(folder, build)
    assert "\n" not in str(caught.value)


def test_whoever_names_the_run_is_told_where_its_student_is(folder):
    with pytest.raises(UserError, match=f"the student of this run is {folder}"):
        load_student(folder.parent, build)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_changed_byte_is_refused(folder, name):
    data = (folder / name).read_bytes()
    for position in np.random.default_rng(0).integers(len(data), size=60):
        changed = bytearray(data)
        changed[position] ^= 1
        (folder / name).write_bytes(changed)
        with pytest.raises(UserError, match=re.escape(str(folder / name))):
            load_student(folder, build)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "null"])
def test_a_card_that_is_none_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(UserError, match="model.json: damaged or edited"):
        load_student(folder, build)


def test_an_edited_normalisation_is_refused(folder):
    path = folder / "model.json"
    card = json.loads(path.read_text())
    card["task"]["mean"][0] += 0.01
    path.write_text(json.dumps(card))
    with pytest.raises(UserError, match="damaged or edited"):
        load_student(folder, build)


def test_weights_of_another_network_are_refused(folder):
    def build_wider(address, task):
        return Model(address, Tiny(7, task))

    with pytest.raises(UserError, match=r"not the weights of tiny\(width=6\)"):
        load_student(folder, build_wider)


def test_the_readme_says_what_the_card_holds(folder):
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "| accuracy | 0.9123 | 0.89 to 0.9346 | test examples |" in readme
    assert "| nll | 0.3 | none | test examples |" in readme
    for words in ("nought, één, two", "4 x 4 x 2", CARD["training"], CARD["data"], CARD["source"]):
        assert words in readme


def run_readme(folder, number: int) -> list[str]:
    """What a block of Python code of the README prints."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks[number], "README.md", "exec"), {})
    return printed.getvalue().splitlines()


def test_the_readmes_code_without_us_runs_as_printed(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mtkd_jax"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it would raise
    found = [float(word) for word in re.findall(r"[\d.]+(?:e-\d+)?", " ".join(run_readme(folder, 0)))]
    _, logits = student()
    assert found[:5] == logits.argmax(-1).tolist()
    np.testing.assert_allclose(found[5:], jax.nn.softmax(logits).max(-1), rtol=1e-6)


def test_the_readmes_code_with_us_runs_as_printed(folder, monkeypatch):
    stand_in = types.ModuleType("mtkd_jax.addresses")
    stand_in.build_model = build  # the stand-in network has no address of its own
    monkeypatch.setitem(sys.modules, "mtkd_jax.addresses", stand_in)
    monkeypatch.chdir(folder.parent)
    lines = run_readme(folder, 1)
    _, logits = student()
    said = re.findall(r"'(.*?)'", " ".join(lines[:-1]))
    assert said == [CARD["class_names"][i] for i in logits.argmax(-1)]
    assert float(lines[-1].rsplit(":", 1)[1]) <= 1e-6


class Dense(nn.Module):
    """Boxes of four places: in float32 their corners are larger than all logits."""

    task: Task

    @nn.compact
    def __call__(self, image, train):
        rows = image.reshape(image.shape[0], 4, -1)
        logits = nn.Dense(self.task.num_classes)(rows)
        return Outputs(logits, logits[None], rows, {}, beside={"boxes": 100 + nn.Dense(4)(rows)})


def test_the_readmes_code_of_a_student_of_places_runs_as_printed(tmp_path, monkeypatch):
    model = Model("dense", Dense(TASK))
    variables = model.init(jax.random.key(1), IMAGES)
    outputs, _ = model.apply(variables, IMAGES)
    places = {"task": "boxes", "place": "place", "number": 4, "beside": {"boxes": 4}}
    save_student(
        tmp_path / "student", model, variables, {**CARD, "places": places}, (IMAGES, outputs.exported)
    )
    monkeypatch.setattr(addresses, "build_model", lambda address, task: Model(address, Dense(task)))
    monkeypatch.chdir(tmp_path)
    alone, ours = (" ".join(run_readme(tmp_path / "student", number)) for number in (0, 1))
    best = outputs.logits.argmax(-1).ravel().tolist()
    assert [int(word) for word in re.findall(r"(?<![\d.])\d+(?![\d.])", alone)] == best
    assert re.findall(r"'(.*?)'", ours) == [CARD["class_names"][i] for i in best]
    assert float(ours.rsplit(":", 1)[1]) <= 1e-6


@pytest.mark.parametrize(
    "card, words",
    [
        (
            {"input": {"tokens": ["a"]}, "places": {"task": "tokens"}},
            "Of text files in UTF-8, a source a line,",
        ),
        ({"input": {"columns": ["a", "b"]}}, "must be numbers as in training:\na, b.\n"),
        ({"input": {"shape": [9, 1, 2]}}, "Of files of series (.tsv, .ts, .arff) of 9 steps, with"),
        (
            {"input": {"shape": [9, 1, 1]}, "places": {"task": "frames"}},
            "python -m mtkd_jax.predict --student x",
        ),
        ({"input": {"shape": [9, 9, 1]}}, "## How to predict with it\n\nFrom Python without"),
    ],
)
def test_the_readme_says_which_files_it_is_asked_about(card, words):
    taken = {"shape": [2, 2, 1], "dtype": "float32", "range": "as in the data", **card["input"]}
    places = (
        {"places": {"place": "x", "number": 2, "beside": {}, **card["places"]}} if "places" in card else {}
    )
    told = {"weights_sha256": "", "program_sha256": "", "jax": "0"}
    assert words in readme({**CARD, **told, **places, "input": taken}, "x")


@pytest.mark.parametrize(
    "taken, words",
    [
        (
            {},
            "It was trained on arrays: how images were brought to 4 x 4 x 2 (height x width x channels) is",
        ),
        (
            {"fit": "stretch", "files": {"grey": "mean", "frames": "all"}},
            "It brings files to 4 x 4 x 2 (height x width x channels) by `stretch`, as in training (grey: "
            "mean; frames: all).",
        ),
    ],
)
def test_the_readme_says_what_is_done_to_image_files(tmp_path, taken, words):
    variables, logits = student()
    card = {**CARD, "input": {**CARD["input"], **taken}, "class_names": ["<b>", "[a](b)", "c|\n# d"]}
    save_student(tmp_path, MODEL, variables, card, (IMAGES, logits))
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert words in readme
    assert "\n&lt;b>, [a]\\(b), c\\|\\\\n# d.\n" in readme


# --- what a run exports -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run on image files, stretched, of networks as they are initialised: nothing has to be trained."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (root / name).mkdir()
        for number in range(12):
            pixels = rng.integers(0, 256, (8, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    config = small.config(
        **{
            "data.source": "folder(image_size=4, channels=1, fit='stretch')",
            "data.path": str(root),
            "data.num_train": 0,
            "data.val_fraction": 0.3,
            "train.batch_size": 4,
            "teachers.num_members": 2,
            "teachers.models": ("mlp(hidden=(8,))", "cnn(widths=(4,), dense=8)"),
            "students.model": "mlp(hidden=(5,))",
            "plan": "assistants(models=('mlp(hidden=(6,))',))",
        }
    )
    split = experiment.load_split(config)
    stages, done, _ = experiment.planned(config, split)
    done = dict(done)
    for stage in stages:
        done[stage.name] = training.untrained(stage.make(done))
    return root, config, split, stages, done, evaluation.predict(config, split, stages, done)


@pytest.mark.parametrize(
    "choose, address",
    [
        ("best", None),
        ("student", "mlp(hidden=(5,))"),
        ("baseline", "mlp(hidden=(5,))"),
        ("control", "mlp(hidden=(5,))"),
        ("cnn(widths=(4,), dense=8)", "cnn(widths=(4,), dense=8)"),
        ("assistant 1", "mlp(hidden=(6,))"),
    ],
)
def test_whatever_is_chosen_is_exported_and_predicts_as_it_was_evaluated(
    evaluated, tmp_path, capsys, choose, address
):
    root, config, split, stages, done, predicted = evaluated
    predicted = dataclasses.replace(predicted, choose=choose)
    trained = experiment.Trained(config, split, stages, done, ())
    results_student.save_student(trained, predicted, tmp_path)
    group, member = lookup.network_to_deploy(predicted)
    model, variables, card = load_student(tmp_path / "student", addresses.build_model)
    assert card["model"] == group.architecture == (address or group.architecture)
    assert card["name"].endswith(f": {group.role} {group.name}")
    assert f"{group.members[member]}; export.choose = {choose}, by validation NLL" in card["training"]
    images = np.float32(split.dataset.test_images) / 255
    logits = model.apply(variables, images)[0].logits
    np.testing.assert_allclose(logits, group.test[member], atol=1e-4)
    # Predicted from its files by its card alone, which says that they were stretched.
    test_files = [path for path in sorted(root.rglob("*.png")) if _in_test(path, split)]
    student = str(tmp_path / "student")
    assert predict.main(["--student", student, "--json", *map(str, test_files)]) == 0
    told = capsys.readouterr()
    said = [json.loads(line)["class"] for line in told.out.splitlines()]
    assert said == [card["class_names"][best] for best in logits.argmax(-1)] and told.err == ""


@pytest.mark.parametrize("tolerance, choose", [(0.9, "student"), (0.5, "best"), (0.01, "student")])
def test_the_ensemble_is_exported_beside_it_and_answers_what_the_report_says(
    evaluated, tmp_path, capsys, tolerance, choose
):
    """Two architectures, fused; of untrained networks only large tolerances keep anything."""
    root, config, split, stages, done, predicted = evaluated
    config = config.copy_and_resolve_references()
    config.export.cascade = True
    predicted = dataclasses.replace(predicted, choose=choose, cascade_tolerance=tolerance)
    results_student.save_student(experiment.Trained(config, split, stages, done, ()), predicted, tmp_path)
    group, member = lookup.network_to_deploy(predicted)
    found = cascade.of(predicted, group, member)
    assert found["certified"] == (tolerance > 0.1)
    handed_over = confidence(group.test[member]) <= found["threshold"]
    logits = np.where(
        handed_over[:, None], lookup.fused(predicted, found["rule"])["test"], group.test[member]
    )
    net = load_cascade(tmp_path / "student")
    said = answer(net, np.float32(split.dataset.test_images) / 255)
    np.testing.assert_array_equal(said.handed_over, handed_over)
    np.testing.assert_allclose(said.logits, logits, atol=1e-4)
    assert (net.terms["threshold"], net.terms["rule"]) == (found["threshold"], found["rule"])
    readme = (tmp_path / "student" / "cascade" / "README.md").read_text()
    assert ("Nothing less than handing over everything is certified" in readme) != found["certified"]
    # From its files: the card of the student says how they are brought to size.
    files = [str(path) for path in sorted(root.rglob("*.png")) if _in_test(path, split)]
    assert predict.main(["--cascade", "--student", str(tmp_path / "student"), "--json", *files]) == 0
    told = capsys.readouterr()
    who = [json.loads(line)["answered_by"] for line in told.out.splitlines()]
    assert who.count("ensemble") == handed_over.sum() and ("is certified" in told.err) != found["certified"]


def test_no_ensemble_is_exported_unless_it_is_asked_for(evaluated, tmp_path):
    _, config, split, stages, done, predicted = evaluated
    results_student.save_student(experiment.Trained(config, split, stages, done, ()), predicted, tmp_path)
    assert not (tmp_path / "student" / "cascade").exists()


def _in_test(path, split) -> bool:
    pixels = read_image(path, shape=split.dataset.test_images.shape[1:], fit="stretch")
    return any((pixels == image).all() for image in split.dataset.test_images)


def test_a_choice_that_cannot_be_is_one_line_before_anything_is_trained(evaluated):
    _, config, split, stages, _, _ = evaluated
    for choose, hint in (("baselin", "did you mean 'baseline'"), ("mean_probs", ""), ("BANE", "")):
        config = config.copy_and_resolve_references()
        config.export.choose = choose
        with pytest.raises(UserError, match=f"config.export.choose: there will be no row '{choose}'.*{hint}"):
            checks.check_choice(config, stages)
    teachers_alone = tuple(stage for stage in stages if not stage.family)
    config.export.choose = "student"
    with pytest.raises(UserError, match="no row 'student'"):
        checks.check_choice(config, teachers_alone)


# --- the program --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 3, 5])
def test_the_program_says_the_same_of_any_number_of_images(folder, num):
    program, card = load_program(folder)
    np.testing.assert_allclose(program(IMAGES[:num]), student()[1][:num], atol=1e-6)
    assert card == load_student(folder, build)[2]


def test_a_program_of_other_weights_is_found(folder):
    variables, logits = student()
    other = program_of(MODEL, jax.tree.map(lambda leaf: leaf * 2, variables), (4, 4, 2))
    (folder / "model.stablehlo").write_bytes(other)
    card = json.loads((folder / "model.json").read_text())
    card["program_sha256"] = hashlib.sha256(other).hexdigest()
    card["card_sha256"] = card_digest(card)
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(RuntimeError, match="model.stablehlo: reloaded, the student's logits differ by"):
        verify_student(folder, build, IMAGES, logits)


@pytest.mark.parametrize("dtype, allowed", [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_a_program_may_differ_by_the_rounding_of_what_it_computes_in(folder, monkeypatch, dtype, allowed):
    images, logits = IMAGES[:1], student()[1][:1]
    largest = max(1.0, float(abs(logits).max()))

    def build_in_dtype(address, task):
        return Model(address, Tiny(6, task, dtype))

    def verify_with_error(error):
        said = logits + error
        monkeypatch.setattr("mtkd_jax.deploy.export.load_program", lambda _: (lambda images: said, {}))
        return verify_student(folder, build_in_dtype, images, logits)

    assert verify_with_error(0.9 * allowed * largest) == pytest.approx(0.9 * allowed * largest, rel=0.1)
    with pytest.raises(RuntimeError, match="model.stablehlo: reloaded, the student's logits differ by"):
        verify_with_error(1.1 * allowed * largest)


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_a_changed_byte_of_the_program_is_refused(folder, position):
    changed = bytearray((folder / "model.stablehlo").read_bytes())
    changed[position] ^= 1
    (folder / "model.stablehlo").write_bytes(changed)
    with pytest.raises(UserError, match="model.stablehlo: damaged, its SHA-256 is not the one in model.json"):
        load_program(folder)


def test_a_program_that_jax_cannot_read_names_the_jax_that_wrote_it(folder, monkeypatch):
    def expired(data):
        raise ValueError("beyond the window")

    monkeypatch.setattr("jax.export.deserialize", expired)
    with pytest.raises(UserError, match=f"what JAX {re.escape(jax.__version__)} wrote; use that one, or the"):
        load_program(folder)


def test_a_student_from_before_there_were_programs_is_loaded_by_its_weights(folder):
    (folder / "model.stablehlo").unlink()
    card = json.loads((folder / "model.json").read_text())
    del card["program_sha256"], card["jax"]
    card["card_sha256"] = card_digest(card)
    (folder / "model.json").write_text(json.dumps(card))
    model, variables, _ = load_student(folder, build)
    np.testing.assert_array_equal(model.apply(variables, IMAGES)[0].logits, student()[1])
    with pytest.raises(UserError, match="from before there was model.stablehlo; export it again"):
        load_program(folder)


def test_a_program_written_on_a_gpu_has_the_forms_that_a_cpu_runs_fast(monkeypatch):
    class Depthwise(nn.Module):
        @nn.compact
        def __call__(self, image, train):
            logits = layers.Conv(4, (3, 3), groups=4)(image).mean(axis=(1, 2))
            return Outputs(logits=logits, heads=logits[None], embedding=logits, features={})

    model = Model("depthwise", Depthwise())
    image = jnp.zeros((1, 6, 6, 4))
    variables = model.init(jax.random.key(0), image)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda x: model.apply(variables, x)[0].logits)(image))
    program = jax.export.deserialize(bytearray(program_of(model, variables, (6, 6, 4))))
    assert "stablehlo.convolution" not in program.mlir_module()
