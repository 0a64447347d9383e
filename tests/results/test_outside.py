"""What networks say of images that the data does not have: untrained ones, against doing it by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from mtkd_jax import addresses, experiment
from mtkd_jax.data import corruptions
from mtkd_jax.engine import population
from mtkd_jax.methods.seams import PLAIN
from mtkd_jax.models.given import Given
from mtkd_jax.plans import teachers
from mtkd_jax.report import document
from mtkd_jax.results import kept, metrics, outside
from mtkd_jax.runs import predictions
from mtkd_jax.runs.predictions import Group
from mtkd_jax.types import Population, Task, UserError
from tests import small

OOD = "synthetic(num_test=30, size=4, seed=9)"
FIELDS = {"report.corruptions": ("contrast",), "report.strengths": (2, 5), "report.ood": OOD}


def group(key, role, own, split):
    said = [population.logits(own, split.dataset.train_images[split.val]), np.zeros((own.num_members, 1, 4))]
    facts = dict(architecture=own.model.name, method="", transfer="", alpha=None, temperature=None)
    return Group(key, key, role, members=own.names, val=said[0], test=said[1], **facts)


@pytest.fixture(scope="module")
def asked():
    """(configuration, split, networks, groups, fields) of three teachers and a student with two heads."""
    config = small.config(**FIELDS)
    split = experiment.load_split(config)
    keys = jax.random.split(jax.random.key(1), 3)
    model = teachers.network(split, config.model.name)
    several = addresses.build_model("mlp(hidden=(8,))", Task(4, 2, (0.5,), (0.3,)))
    networks = {
        "teachers/mlp": (
            Population(model, population.init(model, keys, (4, 4, 1)), {}, ("a", "b", "c")),
            None,
        ),
        "students/two": (
            Population(several, population.init(several, keys[:2], (4, 4, 1)), {}, ("seed 0", "seed 1")),
            PLAIN.mutual,
        ),
    }
    roles = ("teacher", "student")
    groups = [group(key, role, own, split) for role, (key, (own, _)) in zip(roles, networks.items())]
    return (config, split, networks, *outside.ask(config, split, groups, networks))


def test_corrupted_images_are_seen_by_every_network_and_the_ensemble(asked):
    _, split, networks, groups, fields = asked
    images, labels = split.dataset.test_images, split.dataset.test_labels
    own, _ = networks["teachers/mlp"]
    right, nll, fused = [], [], []
    for strength in (2, 5):
        shifted = corruptions.corrupted("contrast", corruptions.contrast(), images, strength)
        logits = population.logits(own, shifted)
        terms = [metrics.per_example(one, labels) for one in logits]
        right.append([one["accuracy"] for one in terms])
        nll.append([one["nll"] for one in terms])
        probs = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).mean(axis=0)
        fused.append(metrics.per_example(np.log(probs), labels)["nll"])
    np.testing.assert_allclose(groups[0].shifted[:, 0], np.mean(right, axis=0), atol=1e-6)
    np.testing.assert_allclose(groups[0].shifted[:, 1], np.mean(nll, axis=0), rtol=1e-5)
    np.testing.assert_allclose(groups[0].by_shift[:, 0, 0], np.mean(right, axis=2).T)
    ece = metrics.ece(logits[1], labels)  # at strength 5
    np.testing.assert_allclose(groups[0].by_shift[1, metrics.TERMS.index("ece"), 0, 1], ece, rtol=1e-6)
    np.testing.assert_allclose(fields["ensemble_shifted"][1], np.mean(fused, axis=0), rtol=1e-5)
    assert (fields["corruptions"], fields["strengths"], fields["ood"]) == (("contrast",), (2, 5), OOD)


def test_outliers_are_seen_and_members_disagree_about_them(asked):
    config, split, networks, groups, _ = asked
    images = outside.outliers(config, split.dataset)
    assert len(images) == 30
    own, _ = networks["students/two"]
    np.testing.assert_allclose(groups[1].outliers, population.logits(own, images), rtol=1e-6)
    heads = own.model.apply(population.take(own.variables, 1), images.astype(np.float32) / 255)[0].heads
    np.testing.assert_allclose(groups[1].mutual_outliers[1], metrics.mutual_information(heads), atol=1e-6)
    assert groups[1].mutual.shape == (2, 40) and groups[0].mutual is None


def test_all_of_it_is_kept_with_the_run(asked, tmp_path):
    from tests.references.predictions import make

    *_, groups, fields = asked
    small_run = make(num_classes=4, num_val=groups[0].val.shape[1], num_test=1, transfers=())
    run = dataclasses.replace(small_run, groups=tuple(groups), **fields)
    predictions.save(tmp_path / "p.npz", run)
    again = predictions.load(tmp_path / "p.npz")
    for one, before in zip(again.groups, groups):
        np.testing.assert_array_equal(one.by_shift, before.by_shift)
        np.testing.assert_array_equal(one.outliers, before.outliers)
    assert again.strengths == (2, 5) and again.groups[0].mutual is None
    np.testing.assert_array_equal(again.ensemble_by_shift, fields["ensemble_by_shift"])


def test_teachers_known_by_their_logits_are_not_asked_nor_is_their_ensemble(asked):
    config, split, networks, groups, _ = asked
    given = Population(Given("others", None), {"train": None, "test": None}, {}, ("a", "b", "c"))
    plain = [dataclasses.replace(one, outliers=None, shifted=None, by_shift=None) for one in groups]
    found, fields = outside.ask(config, split, plain, {**networks, "teachers/mlp": (given, None)})
    assert found[0].outliers is found[0].shifted is None and "ensemble_shifted" not in fields
    np.testing.assert_allclose(found[1].shifted, groups[1].shifted)


def test_outliers_of_another_shape_are_refused_before_any_work():
    config = small.config(**{"report.ood": "digits"})
    with pytest.raises(UserError, match=r"config.report.ood: digits has images uint8 8x8x1; .* uint8 4x4x1"):
        experiment.planned(config, experiment.load_split(config))


def test_what_is_no_picture_is_refused_before_any_work(asked):
    config, split, *_ = asked
    floats = dataclasses.replace(split.dataset, test_images=np.full((5, 4, 4, 1), 3.0, np.float32))
    with pytest.raises(UserError, match="config.report.corruptions: .*black and white"):
        outside.check(config, dataclasses.replace(split, dataset=floats))


@pytest.mark.slow(seconds=30)
def test_a_finished_run_is_asked_and_not_trained_again(tmp_path):
    assert experiment.run(small.config(), tmp_path, quiet=True)["kept"]["corruptions"] == []
    curves = (tmp_path / "metrics.jsonl").read_bytes()
    report = experiment.run(small.config(**FIELDS), tmp_path, quiet=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curves
    (section,) = report["kept"]["sections"]
    assert set(section["gaps"]) == set(kept.QUANTITIES)
    assert section["gaps"]["mutual"]["baseline"] == 0 < section["gaps"]["mutual"]["ensemble"]
    disagreed = {row["name"]: row["shares"]["mutual"]["value"] for row in section["rows"]}
    assert disagreed["output_avg"] == 0 < min(disagreed["mimic_all"], disagreed["control"])
    assert document.write(tmp_path)["kept"] == report["kept"]
