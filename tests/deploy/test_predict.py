"""Image files are told their classes by the student's folder alone, and one bad file spoils no other."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from mtkd_jax import api
from mtkd_jax.data import images, logit_files
from mtkd_jax.deploy import deployed, export, forms, predict
from mtkd_jax.types import DataSet, Model, Outputs, Task, UserError, printable

TASK = Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.25,))
CARD = {
    "name": "made up: student by hand",
    "model": "brightness",
    "task": TASK,
    "class_names": ["dark", "grey [of all]", "bright"],
    "input": {"shape": [4, 4, 1], "dtype": "float32", "range": deployed.PIXELS, "fit": "crop"},
    "training": "none",
    "data": "none",
    "source": "none",
    "metrics": {},
}
GREYS = {"a.png": 0, "b.png": 128, "c.PNG": 255, "d.png": 10, "e.png": 200}


class Brightness(nn.Module):
    """Logits -20 (mean - centre)^2 at the centres 0, 0.5, 1 of [0,1]: known by hand for an even image."""

    @nn.compact
    def __call__(self, image, train):
        centres = self.param("centres", lambda key: jnp.array([0.0, 0.5, 1.0]))
        mean = image.mean(axis=(1, 2))
        logits = -20 * (mean - centres[None]) ** 2
        return Outputs(logits=logits, heads=logits[None], embedding=mean, features={})


def probabilities(grey: int) -> np.ndarray:
    weights = np.exp(-20 * (grey / 255 - np.array([0, 0.5, 1])) ** 2)
    return weights / weights.sum()


def save(directory, **card):
    model = Model("brightness", Brightness())
    card = {**CARD, **card}
    blank = jnp.zeros((2, *card["input"]["shape"]))
    variables = model.init(jax.random.key(0), blank)
    export.save_student(directory, model, variables, card, (blank, model.apply(variables, blank)[0].logits))
    return str(directory)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "student")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, grey in GREYS.items():
        Image.fromarray(np.full((7, 9), grey, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def lines(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.parametrize("batch", ["1", "2", "64"])
def test_every_image_of_a_folder_has_its_class_and_probability(student, photos, capsys, batch):
    assert predict.main(["--student", student, str(photos), "--json", "--batch", batch]) == 0
    found = lines(capsys.readouterr().out)
    assert [one["image"] for one in found] == [str(photos / name) for name in GREYS]
    for one, grey in zip(found, GREYS.values()):
        wanted = probabilities(grey)
        assert set(one) == {"image", "class", "probability"}
        assert one["class"] == CARD["class_names"][wanted.argmax()]
        assert one["probability"] == pytest.approx(wanted.max(), abs=1e-5)


def test_images_are_brought_to_size_as_in_training(tmp_path, capsys):
    """Half black, half white, twice as wide as high: cropping keeps the middle, stretching all of it."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shape = {"shape": [4, 4, 1], "dtype": "float32", "range": deployed.PIXELS}
    said = {}
    for fit in ("", "crop", "stretch"):
        student = save(tmp_path / f"s{fit}", input={**shape, **({"fit": fit} if fit else {})})
        assert predict.main(["--student", student, str(tmp_path / "a.png"), "--json"]) == 0
        told = capsys.readouterr()
        said[fit] = lines(told.out)[0]["class"]
        unknown = "does not say how images were brought to 4 x 4 in training: they are cropped here"
        assert (unknown in told.err) == (fit == "") and told.err.count("\n") == (fit == "")
    assert said == {"": "bright", "crop": "bright", "stretch": "grey [of all]"}
    assert predict.main(["--student", student, str(tmp_path / "a.png"), "--json", "--fit", "crop"]) == 0
    told = capsys.readouterr()
    assert lines(told.out)[0]["class"] == "bright"
    assert told.err == "note: --fit crop, but the network was trained with stretch\n"


def test_what_is_not_done_as_in_training_is_told(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file)
    taken = {"shape": [4, 4, 1]}
    missing = tmp_path / "none.png"
    assert predict.unlike_training(taken, "", [file, missing]) == []  # nothing has to be brought to size
    taken = {"shape": [4, 8, 1], "fit": "pad", "files": images.READING}
    assert predict.unlike_training(taken, "", [file]) == predict.unlike_training(taken, "pad", [file]) == []
    (said,) = predict.unlike_training({**taken, "files": {**images.READING, "grey": "mean"}}, "", [file])
    assert said.startswith("grey: luma of ITU-R 601, but in training mean; another version")


def test_folders_are_looked_through_and_what_systems_leave_is_passed_over(student, photos, capsys):
    (photos / "more/deep").mkdir(parents=True)
    Image.fromarray(np.full((7, 9), 255, np.uint8)).save(photos / "more/deep/z.jfif", format="jpeg")
    for name in ("._a.png", ".DS_Store", "__MACOSX/._b.png", ".hidden/c.png", "@eaDir/a.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"no image")
    assert predict.main(["--student", student, str(photos), "--json"]) == 0
    found = [one["image"] for one in lines(capsys.readouterr().out)]
    assert found == [str(photos / name) for name in (*GREYS, "more/deep/z.jfif")]


def test_names_that_a_terminal_would_obey_are_shown(student, tmp_path, capsys):
    name = "a\x1b[31m\nb.png"
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(tmp_path / name)
    assert predict.main(["--student", student, str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\\nb.png" in shown
    assert predict.main(["--student", student, str(tmp_path), "--json"]) == 0
    (one,) = lines(capsys.readouterr().out)
    assert one["image"] == str(tmp_path / name)  # JSON is exact


def test_json_is_one_line_an_image_whatever_its_folder_is_called(student, tmp_path, capsys):
    folder = tmp_path / "a\x9b31m\u2028\u202eb\udcff"
    folder.mkdir()
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(folder / "é 犬.png")
    assert predict.main(["--student", student, str(folder), str(tmp_path / "é.png"), "--json"]) == 2
    printed = capsys.readouterr().out
    assert printed.isascii() is False and all(one.isprintable() for one in printed.split("\n"))
    assert [one["image"] for one in lines(printed)] == [str(folder / "é 犬.png"), str(tmp_path / "é.png")]


def test_names_in_any_script_are_plain_text():
    for name in ("a\u00a0b", "犬\u3000猫", "می\u200cخواهم", "👨\u200d👩", "é", "a\\nb"):
        assert printable(name) == name
    for name, shown in (
        ("\x9b", r"\x9b"),
        ("\u202e", r"\u202e"),
        ("\udcff", r"\udcff"),
        ("\u2029", r"\u2029"),
    ):
        assert printable(name) == printable(printable(name)) == shown


def test_several_classes_are_told_in_order(student, photos, capsys):
    assert predict.main(["--student", student, str(photos / "e.png"), "--json", "--top", "9"]) == 0
    (one,) = lines(capsys.readouterr().out)
    assert list(one["probabilities"]) == ["bright", "grey [of all]", "dark"]
    assert list(one["probabilities"].values()) == pytest.approx(sorted(probabilities(200))[::-1], abs=1e-5)
    assert (one["class"], one["probability"]) == next(iter(one["probabilities"].items()))


def test_what_cannot_be_read_is_told_and_the_others_are_predicted(student, photos, capsys):
    (photos / "b.png").write_bytes(b"no image")
    asked = [str(photos / name) for name in ("a.png", "b.png", "nowhere.png", "c.PNG")]
    assert predict.main(["--student", student, *asked, "--json", "--batch", "3"]) == 2
    told = capsys.readouterr()
    found = lines(told.out)
    assert [one.get("class") for one in found] == ["dark", None, None, "bright"]
    for one, path in zip(found[1:3], asked[1:3]):
        assert set(one) == {"image", "error"} and one["image"] == path and path in one["error"]
    assert told.err == "mtkd_jax: 2 of 4 images could not be read\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_terminal_cannot_write_are_told_and_json_stays_json(
    student, tmp_path, encoding, monkeypatch
):
    names = ("\u00fc.png", os.fsdecode(b"\xff.png"))
    for name in names:
        Image.fromarray(np.full((7, 9), 200, np.uint8)).save(tmp_path / name)
    for asked in ((str(tmp_path),), [str(tmp_path / name) for name in names]):
        for how in (["--json"], []):
            raw = io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
            assert predict.main(["--student", student, *asked, *how]) == 0
            told = raw.getvalue().decode(encoding)
            if how:
                assert [one["image"] for one in lines(told)] == [str(tmp_path / name) for name in names]
            else:
                # Names are folded over lines, perhaps within the four digits of what cannot be written.
                assert "\\udc" in told and told.count("bright") == 2


def test_the_table_says_the_same(student, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos / "a.png").write_bytes(b"no image")
    assert predict.main(["--student", student, "photos", "--top", "2"]) == 2
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["photos/b.png", "grey [of all]", f"{probabilities(128)[1]:.4f}"] in rows
    assert ["bright", f"{probabilities(128)[2]:.4f}"] in rows
    assert any(row[0] == "photos/a.png" and row[1].startswith("not an image") for row in rows if row)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--top", "0"], "--top 0: must be at least 1"),
        (["--batch", "0"], "--batch 0: must be at least 1"),
        (["--fit", "crap"], "did you mean 'crop'"),
        (["--tap", "1"], "unrecognized arguments: --tap 1"),
    ],
)
def test_a_wrong_command_is_one_line(student, photos, capsys, arguments, said):
    assert predict.main(["--student", student, str(photos), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_a_folder_without_images_is_one_line(student, tmp_path, capsys):
    assert predict.main(["--student", student, str(tmp_path)]) == 2
    assert f"{tmp_path}: holds no image; must hold .bmp" in capsys.readouterr().err


def test_a_damaged_program_is_one_line(photos, tmp_path, capsys):
    directory = save(tmp_path / "student")
    path = tmp_path / "student" / "model.stablehlo"
    path.write_bytes(path.read_bytes()[:-1])
    assert predict.main(["--student", directory, str(photos)]) == 2
    assert capsys.readouterr().err == (
        f"mtkd_jax: {path}: damaged, its SHA-256 is not the one in model.json; export the student again\n"
    )


@pytest.mark.parametrize("shape, scale", [((8, 2, 1), "as in the data"), ((4, 4, 2), deployed.PIXELS)])
def test_a_student_of_other_arrays_reads_no_image_files(photos, tmp_path, capsys, shape, scale):
    taken = {"shape": list(shape), "dtype": "float32", "range": scale}
    task = TASK._replace(mean=(0.5,) * shape[-1], std=(0.25,) * shape[-1])
    model = Model("sum", Sum())
    blank = jnp.zeros((2, *shape))
    card = {**CARD, "input": taken, "task": task}
    export.save_student(tmp_path / "student", model, {}, card, (blank, model.apply({}, blank)[0].logits))
    assert predict.main(["--student", str(tmp_path / "student"), str(photos)]) == 2
    assert f"reads arrays {list(shape)} ({scale}), not image files" in capsys.readouterr().err


class Sum(nn.Module):
    @nn.compact
    def __call__(self, image, train):
        logits = jnp.stack(3 * [image.sum(axis=(1, 2, 3))], axis=1)
        return Outputs(logits=logits, heads=logits[None], embedding=logits, features={})


def test_another_form_is_asked_and_one_that_is_not_there_names_its_command(student, photos, tmp_path, capsys):
    """The int8 program here always says grey, which the student never says of this image."""
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    asked = [str(photos / "a.png"), "--student", str(folder), "--json", "--form"]
    assert predict.main([*asked, "int8"]) == 2
    command = f"python -m mtkd_jax.export {folder} --forms int8 writes it"
    assert capsys.readouterr().err == f"mtkd_jax: {folder}: has no model.int8.stablehlo; {command}\n"

    grey = export.stablehlo_of(lambda image: jnp.array([[0.0, 1.0, 0.0]]) + 0 * image[:, 0, 0], (4, 4, 1))
    (folder / "model.int8.stablehlo").write_bytes(grey)
    told = {"model.int8.stablehlo": {"sha256": deployed.sha256(grey)}}
    forms.rewrite_card(folder, deployed.read_card(folder / "model.json"), told)
    for form in ("int8", "stablehlo"):
        assert predict.main([*asked, form]) == 0
    int8, stablehlo = lines(capsys.readouterr().out)
    assert int8["class"] == "grey [of all]" and stablehlo["class"] == "dark"
    for more, words in (
        (["onnnx"], "--form onnnx: must be of stablehlo, onnx, int8, onnx_int8; did you mean 'onnx'?"),
        (
            ["int8", "--cascade"],
            "--form int8: the threshold of --cascade was set for the student as stablehlo",
        ),
    ):
        assert predict.main([*asked, *more]) == 2
        assert words in capsys.readouterr().err


def test_neither_networks_nor_training_are_imported(student, photos):
    code = (
        "import sys; from mtkd_jax.deploy import predict; code = predict.main(sys.argv[1:]);"
        "print(*sorted(name for name in sys.modules"
        " if name.partition('.')[0] in ('flax', 'optax', 'orbax', 'safetensors', 'ml_collections')"
        " or name.startswith('mtkd_jax')), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--student", student, str(photos), "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(lines(done.stdout)) == len(GREYS)
    ours = ("", ".data", ".data.checks", ".data.images", ".data.series_files", ".data.tables")
    ours += (
        ".deploy",
        ".deploy.cascade",
        ".deploy.deployed",
        ".deploy.onnx_runtime",
        ".deploy.predict",
        ".system",
        ".system.interrupts",
        ".system.paths",
        ".system.spelling",
        ".system.terminal",
        ".types",
    )
    assert done.stderr.split() == [f"mtkd_jax{name}" for name in ours]


def test_logits_of_files_are_written_under_their_names_as_a_run_reads_them(student, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"no image")
    into = tmp_path / "said.npz"
    assert predict.main(["--student", student, str(photos), "--logits", str(into)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{into}: the logits of 5 images, for config.teachers.logits\n"
    assert "broken.png" in err and "1 of 6 images could not be read" in err
    blank = np.zeros((3, 4, 4, 1), np.uint8)
    labels = np.arange(3, dtype=np.int32)
    train, test = ("photos/c.PNG", "photos/a.png", "photos/b.png"), ("d.png",)
    data = DataSet("x", blank, labels, blank[:1], labels[:1], tuple(CARD["class_names"]), None, None)
    data = dataclasses.replace(data, train_names=train, test_names=test)
    found = logit_files.read(into, data)
    for logits, name in zip((*found.train[0], found.test[0][0]), (*train, *test)):
        np.testing.assert_allclose(
            predict.softmax(logits), probabilities(GREYS[name.split("/")[-1]]), atol=1e-5
        )


# --- lines of files -----------------------------------------------------------------------------------


class Nearest(nn.Module):
    """Logits -(v - centre)^2 summed over centres 0, 1, 2 for every value: known by hand."""

    @nn.compact
    def __call__(self, image, train):
        centres = self.param("centres", lambda key: jnp.array([0.0, 1.0, 2.0]))
        rows = image.reshape(image.shape[0], -1, 1)
        logits = -((rows - centres[None, None]) ** 2).sum(axis=1)
        return Outputs(logits=logits, heads=logits[None], embedding=rows[..., 0], features={})


def save_nearest(directory, shape, **taken):
    taken = {"shape": list(shape), "dtype": "float32", "range": "as in the data", **taken}
    model, blank = Model("nearest", Nearest()), jnp.zeros((2, *shape))
    variables = model.init(jax.random.key(0), blank)
    said = model.apply(variables, blank)[0].logits
    export.save_student(directory, model, variables, {**CARD, "input": taken}, (blank, said))
    return str(directory)


def test_a_table_is_told_line_by_line_by_the_names_of_its_columns(tmp_path, capsys):
    student = save_nearest(tmp_path / "student", (1, 1, 2), columns=["a", "b"])
    table, other = tmp_path / "new.csv", tmp_path / "other.csv"
    table.write_text("b,note,a\n2,x,2\n,y,1\n0,z,0.5\n", encoding="utf-8")
    other.write_text("a,c\n1,2\n", encoding="utf-8")
    assert predict.main(["--student", student, str(table), str(other), "--json", "--batch=2"]) == 2
    told = capsys.readouterr()
    first, second, third, none = lines(told.out)
    assert {name: first[name] for name in ("file", "line", "class")} == {
        "file": str(table),
        "line": 2,
        "class": "bright",
    }
    assert second == {
        "file": str(table),
        "line": 3,
        "error": f"{table}: line 3: b is missing; must be a number in every line",
    }
    np.testing.assert_allclose(third["probability"], 1 / (1 + np.exp(-1) + np.exp(-6)), rtol=1e-5)
    assert third["line"] == 4 and third["class"] == "dark"
    assert set(none) == {"file", "error"}
    assert none["file"] == str(other) and "has no column 'b'" in none["error"]
    assert "2 of 4 lines could not be read" in told.err
    assert predict.main(["--student", student, str(table), "--fit=pad"]) == 2
    assert "--fit pad: is for images" in capsys.readouterr().err


def test_a_table_in_a_terminal_and_its_logits(tmp_path, capsys):
    student = save_nearest(tmp_path / "student", (1, 1, 2), columns=["a", "b"])
    table, into = tmp_path / "n.csv", tmp_path / "logits.npz"
    table.write_text("a,b\n1,1\n0,0\n", encoding="utf-8")
    assert predict.main(["--student", student, str(table)]) == 0
    assert "line 3" in capsys.readouterr().out
    assert predict.main(["--student", student, str(table), "--logits", str(into)]) == 0
    with np.load(into) as archive:
        assert archive["names"].tolist() == [f"{table.as_posix()}: line {n}" for n in (2, 3)]
        np.testing.assert_allclose(archive["logits"], [[-2, 0, -2], [0, -2, -8]], atol=1e-6)


def test_a_file_of_series_is_told_line_by_line(tmp_path, capsys):
    student = save_nearest(tmp_path / "student", (2, 1, 2))
    file = tmp_path / "new.ts"
    head = "@classLabel true a b\n@data\n"
    file.write_text(f"{head}0,0:2,2:?\n1,1:1,1:b\n1,1:1:b\n1,?:1,1:b\n", encoding="utf-8")
    assert predict.main(["--student", student, str(file), "--json"]) == 2
    first, second, short, missing = lines(capsys.readouterr().out)
    np.testing.assert_allclose(first["probability"], 1 / (1 + 2 * np.exp(-4)), rtol=1e-5)
    assert (first["line"], first["class"], second["class"]) == (3, "grey [of all]", "grey [of all]")
    assert "line 5: channels of (2, 1) values; must be 2 of 2, as in training" in short["error"]
    assert "line 6: 1 values are missing" in missing["error"]
    file.write_text(head, encoding="utf-8")
    assert predict.main(["--student", student, str(file), "--json"]) == 2
    (none,) = lines(capsys.readouterr().out)
    assert none["error"] == f"{file}: holds no line; must hold one at least"
    with pytest.raises(UserError, match="holds no line"):
        api.predict(student, file)
    file.write_text("@classLabel false\n@data\n0,0:2,2\n", encoding="utf-8")
    assert predict.main(["--student", student, str(file), "--json"]) == 0
    assert lines(capsys.readouterr().out) == [{**first, "line": 3}]
    assert predict.main(["--student", student, str(tmp_path / "x.csv"), "--json"]) == 2
    assert "must be a file of series that ends in .tsv, .ts, .arff" in capsys.readouterr().out
