"""The exported cascade: the ensemble answers where the student is not sure, and is asked nothing else."""

from __future__ import annotations

import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mtkd_jax.deploy import cascade, deployed, export, predict
from mtkd_jax.types import UserError
from tests import small
from tests.deploy.test_predict import CARD, GREYS, lines, probabilities, save

# What the student says of a grey is known by hand (`probabilities`); the ensemble says "bright" of all.
TERMS = {"rule": "mean_probs", "threshold": 0.9, "certified": True, "val_share": 0.25}


def bright(images):
    return jnp.zeros((images.shape[0], 3)).at[:, 2].set(5.0) + images.mean()


def with_net(directory, **terms):
    student = save(directory)
    card = {name: CARD[name] for name in ("name", "class_names", "input", "training", "data", "source")}
    export.save_ensemble(directory, bright, {**card, "cascade": {**TERMS, **terms}}, ["Of <b>five</b>."])
    return student


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return with_net(tmp_path_factory.mktemp("run") / "student")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, grey in GREYS.items():
        Image.fromarray(np.full((4, 4), grey, np.uint8)).save(folder / name)
    return folder


SURE = {name: probabilities(grey).max() > TERMS["threshold"] for name, grey in GREYS.items()}


@pytest.mark.parametrize("batch", ["1", "3", "64"])
def test_who_is_sure_answers_and_of_the_others_the_ensemble(student, photos, capsys, batch):
    assert set(SURE.values()) == {True, False}
    assert predict.main(["--cascade", "--student", student, str(photos), "--json", "--batch", batch]) == 0
    told = capsys.readouterr()
    for one, (name, grey) in zip(lines(told.out), GREYS.items()):
        own = probabilities(grey)
        assert set(one) == {"image", "class", "probability", "answered_by"}
        assert one["answered_by"] == ("student" if SURE[name] else "ensemble")
        assert one["class"] == (CARD["class_names"][own.argmax()] if SURE[name] else "bright")
        of_ensemble = np.exp(5) / (np.exp(5) + 2)
        assert one["probability"] == pytest.approx(own.max() if SURE[name] else of_ensemble, abs=1e-5)
    num = len(GREYS) - sum(SURE.values())
    share = f"{100 * num / len(GREYS):.1f} %"
    said = f"{num} of {len(GREYS)} images handed over to the ensemble by mean_probs ({share}; on validation"
    assert told.err == f"note: {said} 25.0 %)\n"


def test_the_table_says_who_answered_and_what_cannot_be_read_is_not_handed_over(
    student, photos, tmp_path, capsys
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files = [str(photos / "a.png"), str(broken), str(photos / "e.png")]
    assert predict.main(["--cascade", "--student", student, *files, "--top", "2"]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines()[0].split()[-2:] == ["answered", "by"]
    assert told.out.count("student") == SURE["a.png"] + SURE["e.png"]
    assert told.out.count("ensemble") == 2 - SURE["a.png"] - SURE["e.png"]
    assert "of 2 images handed over" in told.err


def test_without_being_asked_the_student_answers_alone(student, photos, capsys):
    assert predict.main(["--student", student, str(photos), "--json"]) == 0
    told = capsys.readouterr()
    assert all("answered_by" not in one for one in lines(told.out)) and told.err == ""


class Asked(NamedTuple):
    images: list

    def __call__(self, images):
        self.images.append(images)
        return np.zeros((len(images), 3))


@pytest.mark.parametrize("num, num_unsure", [(64, 0), (64, 1), (64, 9), (64, 64), (5, 4), (1, 1)])
def test_the_ensemble_sees_those_alone_and_always_as_many(num, num_unsure):
    """So that it is compiled once, and computes at most an eighth of a batch for nothing."""
    images = np.arange(num, dtype=np.float32)[:, None, None, None]
    unsure = np.random.default_rng(0).permutation(num)[:num_unsure]
    logits = np.tile([9.0, 0.0, 0.0], (num, 1))
    logits[unsure] = 0.0
    asked = Asked([])
    said = cascade.answer(cascade.Cascade(lambda _: logits, asked, 0.9, {}, {}), images)
    np.testing.assert_array_equal(np.flatnonzero(said.handed_over), np.sort(unsure))
    size = -(-num // 8)
    assert {len(part) for part in asked.images} <= {size}
    assert len(asked.images) == -(-num_unsure // size)
    seen = np.concatenate([np.ravel(part) for part in asked.images]) if num_unsure else []
    assert set(seen) == set(unsure)
    assert (said.logits[unsure] == 0).all() and logits[0].shape == (3,)


def test_rows_that_do_not_count_are_not_handed_over():
    asked = Asked([])
    net = cascade.Cascade(lambda images: np.zeros((len(images), 3)), asked, 0.9, {}, {})
    found = cascade.answer(net, np.zeros((4, 1, 1, 1), np.float32), np.array([True, False, False, True]))
    assert found.handed_over.tolist() == [True, False, False, True]


def test_nothing_is_compiled_again_for_another_number_of_images_handed_over(student):
    net = cascade.load(student)
    greys = np.array([0, 128, 255, 60, 70, 180, 190, 200]) / 255
    images = np.broadcast_to(np.float32(greys)[:, None, None, None], (8, 4, 4, 1))
    cascade.answer(net, images)
    with small.compilations() as said:
        for num in range(8):
            found = cascade.answer(net, np.roll(images, num, axis=0) * np.float32(num > 2))
            assert found.handed_over.any() == (num > 2)
    assert said == []


def test_the_ensemble_is_a_program_that_answers_alone(student):
    program, card = deployed.load_program(f"{student}/cascade")
    images = jnp.full((3, 4, 4, 1), 0.5)
    np.testing.assert_allclose(program(images), bright(images), rtol=1e-6)
    assert card["class_names"] == CARD["class_names"]
    own = deployed.load_program(student)[1]
    assert card["cascade"] == {**TERMS, "student_sha256": own["program_sha256"]}
    with open(f"{student}/cascade/README.md", encoding="utf-8") as file:
        text = file.read()
    assert "&lt;b>five" in text and "python -m mtkd_jax.predict --cascade --student student IMAGES" in text


def test_what_is_no_cascade_is_one_line(tmp_path, photos, capsys):
    alone = save(tmp_path / "alone")
    assert predict.main(["--cascade", "--student", alone, str(photos)]) == 2
    assert capsys.readouterr().err == (
        f"mtkd_jax: {alone}: has no cascade/; give the command of the run again with "
        "--config.export.cascade=True\n"
    )
    other = with_net(tmp_path / "other")
    card = json.loads((tmp_path / "other/cascade/model.json").read_text())
    card["cascade"]["student_sha256"] = "of another"
    card["card_sha256"] = deployed.card_digest(card)
    (tmp_path / "other/cascade/model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="other/cascade: is the safety net of another student; export both"):
        cascade.load(other)
    (tmp_path / "other/cascade/model.stablehlo").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cascade/model.stablehlo: damaged"):
        cascade.load(other)
    (tmp_path / "other/cascade/model.json").unlink()
    with pytest.raises(UserError, match="cascade/model.json: cannot be read"):
        cascade.load(other)


def test_an_edited_threshold_is_refused(tmp_path):
    student = with_net(tmp_path / "student")
    path = tmp_path / "student/cascade/model.json"
    path.write_text(path.read_text().replace('"threshold": 0.9', '"threshold": 0.1'))
    with pytest.raises(UserError, match="damaged or edited"):
        cascade.load(student)


def test_a_rule_that_makes_no_program_is_one_line(tmp_path):
    def no_program(images):
        return jnp.asarray(np.asarray(images).mean())

    save(tmp_path)
    with pytest.raises(UserError, match="config.export.cascade: made up: student by hand cannot be exported"):
        export.save_ensemble(tmp_path, no_program, {**CARD, "cascade": TERMS}, [])
    assert not list(tmp_path.glob("*cascade*")) and cascade.FOLDER == "cascade"


def test_saving_again_leaves_no_older_cascade(tmp_path):
    """It belongs to the student that was there before."""
    with_net(tmp_path / "student")
    student = save(tmp_path / "student")
    with pytest.raises(UserError, match="has no cascade/"):
        cascade.load(student)
