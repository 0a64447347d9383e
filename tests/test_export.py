"""The exported student answers as the one that was saved, or is refused in one line."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors import safe_open

from mtkd_jax.export import load_student, save_student, verify_student
from mtkd_jax.types import Model, Outputs, Task, UserError

TASK = Task(num_classes=3, num_heads=1, mean=(0.25, 0.5), std=(0.125, 0.1))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 4, 4, 2)), jnp.float32)
CARD = {
    "name": "digits: student by output_avg",
    "model": "tiny(width=6)",
    "task": TASK,
    "class_names": ["nought", "één", "two"],
    "input": {"shape": [4, 4, 2], "dtype": "float32", "range": "uint8 / 255"},
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

    @nn.compact
    def __call__(self, image, train):
        mean, std = (jnp.asarray(value)[None, None, None] for value in (self.task.mean, self.task.std))
        hidden = nn.Dense(self.width)(((image - mean) / std).reshape(len(image), -1))
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(hidden))
        logits = nn.Dense(self.task.num_classes, param_dtype=jnp.bfloat16, dtype=jnp.float32)(hidden)
        return Outputs(logits=logits, heads=logits[None], embedding=hidden, features={})


def build(address: str, task: Task) -> Model:
    return Model(address, Tiny(int(re.fullmatch(r"tiny\(width=(\d+)\)", address)[1]), task))


def student() -> tuple[dict, jax.Array]:
    model = build(CARD["model"], TASK)
    variables = model.init(jax.random.key(1), IMAGES)
    return variables, model.apply(variables, IMAGES)[0].logits


@pytest.fixture
def folder(tmp_path):
    variables, logits = student()
    save_student(tmp_path / "run" / "student", variables, CARD, (IMAGES, logits))
    return tmp_path / "run" / "student"


def test_it_comes_back_bit_for_bit(folder):
    variables, logits = student()
    model, loaded, card = load_student(folder, build)
    assert model == build(CARD["model"], TASK)  # the task has come back as it was, tuples and all
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(variables)):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert {name: card[name] for name in CARD} == CARD | {
        "task": {"num_classes": 3, "num_heads": 1, "mean": [0.25, 0.5], "std": [0.125, 0.1]}
    }
    assert verify_student(folder, build, IMAGES, logits) <= 1e-6


def test_weights_are_found_by_readable_names(folder):
    with safe_open(folder / "model.safetensors", "np") as file:
        assert {"params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean"} <= set(file.keys())


def test_arrays_in_any_memory_order_are_saved_as_they_read(tmp_path):
    variables, logits = student()
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"])
    variables["params"]["Dense_0"]["kernel"] = np.asfortranarray(kernel)
    save_student(tmp_path / "student", variables, CARD, (IMAGES, logits))
    verify_student(tmp_path / "student", build, IMAGES, logits)


@pytest.mark.parametrize("value, size", [(0.5, "0.5"), (2e-5, r"[12]\.?\d*e-05"), (np.nan, "nan")])
def test_a_difference_is_reported_by_size(folder, value, size):
    _, logits = student()
    with pytest.raises(RuntimeError, match=f"differ by {size}, more than 1e-05"):
        verify_student(folder, build, IMAGES, logits.at[1, 2].add(value))


def test_it_is_replaced_whole(folder):
    variables, logits = student()
    (folder / "of the old one").touch()
    other = jax.tree.map(lambda leaf: leaf * 0, variables)
    save_student(folder, other, CARD, (IMAGES, logits * 0))
    assert {path.name for path in folder.parent.iterdir()} == {"student"}
    names = {"model.safetensors", "model.json", "check.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    assert verify_student(folder, build, IMAGES, logits * 0) == 0


def test_a_save_that_fails_leaves_the_old_one(folder, monkeypatch):
    variables, logits = student()
    monkeypatch.setattr(
        "mtkd_jax.export._readme", lambda card, name: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(UserError, match=f"{folder}: cannot save the student: full"):
        save_student(folder, variables, CARD, (IMAGES, logits))
    verify_student(folder, build, IMAGES, logits)
    assert {path.name for path in folder.parent.iterdir()} == {"student"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder / name}: cannot read the student: No such file") as caught:
        load_student(folder, build)
    assert "\n" not in str(caught.value)


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


def test_the_readmes_code_runs_as_printed(folder, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    config = types.ModuleType("mtkd_jax.config")
    config.build_model = build  # the stand-in network has no address of its own
    monkeypatch.setitem(sys.modules, "mtkd_jax.config", config)
    monkeypatch.chdir(folder.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    lines = printed.getvalue().splitlines()
    _, logits = student()
    assert [line.split()[0] for line in lines[:-1]] == [CARD["class_names"][i] for i in logits.argmax(-1)]
    assert float(lines[-1].rsplit(":", 1)[1]) <= 1e-6
