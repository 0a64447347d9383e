"""Teachers known by what they say: whoever learns from their files learns what it would have from them."""

import json

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.data import said
from mtkd_jax.engine import population, teacher_cache
from mtkd_jax.plans import plan
from mtkd_jax.runs import predictions
from mtkd_jax.types import UserError
from tests import small

MODES = ("mimic_all", "output_avg", "supernet", "weights.ca_mkd", "vote", "logits.dkd")


def logits_of(config, done):
    """What the teachers of a run say of all images of its data: {"train": [K,N,C], "test": [K,n,C]}."""
    dataset = experiment.load_split(config).dataset
    (teachers,) = plan.ensemble_of(done)
    return {
        "train_logits": population.logits(teachers, dataset.train_images),
        "test_logits": population.logits(teachers, dataset.test_images),
    }, dataset.class_names


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with teachers of its own, and the file of what they say."""
    folder = tmp_path_factory.mktemp("own")
    config = small.config(
        **{"students.modes": MODES, "students.alphas": (0.5,), "students.transfer": ("labelled", "unlabelled")}
    )
    done = small.train(config, folder / "run")
    arrays, class_names = logits_of(config, done)
    said.write(folder / "cube.npz", arrays, class_names)
    for k in range(3):
        one = {name: cube[k] for name, cube in arrays.items()}
        said.write(folder / f"{'abc'[k]}.npz", one, class_names)
    return config, done, folder


def of_files(trained, *files, **overrides):
    config, _, folder = trained
    given = config.copy_and_resolve_references()
    given.teachers.logits = tuple(str(folder / file) for file in files)
    for field, value in overrides.items():
        group, _, name = field.rpartition(".")
        (given[group] if group else given)[name] = value
    return given


def refusal(trained, tmp_path, *files, **overrides):
    with pytest.raises(UserError) as error:
        experiment.run(of_files(trained, *files, **overrides), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "checkpoints").exists()
    return str(error.value)


@pytest.mark.parametrize("files", [("cube.npz",), ("a.npz", "b.npz", "c.npz")])
def test_students_of_the_files_are_those_of_the_teachers(trained, files, tmp_path):
    config, done, _ = trained
    report = experiment.run(of_files(trained, *files), tmp_path, quiet=True)
    given = experiment.train(of_files(trained, *files), tmp_path, quiet=True)
    for stage in given.done:
        if stage.startswith(("students-", "fuser-")):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
                given.done[stage].population.variables,
                done[stage].population.variables,
            )
    teacher = report["rows"][0]
    assert teacher["role"] == "teacher" and teacher["n"] == 3
    assert teacher["params"] is teacher["flops"] is teacher["train_seconds"] is None
    own = experiment.evaluation.predict(config, experiment.load_split(config), plan.build(config, given.split), done)
    found = predictions.load(tmp_path / "predictions.npz")
    np.testing.assert_allclose(found.groups[0].val, own.groups[0].val, atol=1e-5)
    np.testing.assert_allclose(found.groups[0].test, own.groups[0].test, atol=1e-5)
    assert report["to_deploy"]["name"] != teacher["name"] if "to_deploy" in report else True
