"""Weights of files in a run: who begins with them, what begins anew, who teaches as he is."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import flax as safetensors

from mtkd_jax import experiment
from mtkd_jax.data import loading
from mtkd_jax.engine import population, training
from mtkd_jax.plans import plan, pretrained, teachers
from mtkd_jax.runs import predictions, workdir
from mtkd_jax.types import UserError
from tests import small
from tests.references import resnets as reference

NETWORK = "resnet(depth=8)"
SIZE = "synthetic(num_classes=4, num_train=120, num_test=40, size=8, noise=0.4)"


def tensors(classes=4, seed=0):
    return reference.drawn(reference.resnet_shapes(8, 16, (16, 32, 64), channels=1, classes=classes), seed)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of two networks for these images, and of one for seven classes."""
    folder = tmp_path_factory.mktemp("weights")
    for name, classes, seed in (("a", 4, 0), ("b", 4, 1), ("seven", 7, 2)):
        np.savez(folder / f"{name}.npz", **tensors(classes, seed))
    return {path.stem: str(path) for path in folder.iterdir()}


def config_of(**overrides):
    return small.config(
        **{"data.source": SIZE, "model.name": NETWORK, "teachers.num_members": 2, **overrides}
    )


def by_reference(name, split, images):
    """Logits [B,C] in float64 of the network that the file `name` holds."""
    (mean,), (std,) = loading.channel_statistics(split)
    return reference.resnet(tensors(seed="ab".index(name)), (images - mean) / std, 8)[0]


def drawn_by(job):
    """Parameters [M,...] from the members' keys alone."""
    assert job.start is None
    return population.init(job.program.model, job.init_keys, job.image.shape[1:])["params"]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- teachers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a", "b"), ("b",)])
def test_every_teacher_begins_with_its_own_file_or_all_with_one(names, files):
    config = config_of(**{"teachers.init_from": tuple(files[name] for name in names)})
    split = experiment.load_split(config)
    start = teachers.job(config, split, NETWORK).start
    for member, name in enumerate(names * (2 // len(names))):
        expected = tensors(seed="ab".index(name))
        params, statistics = (population.take(start[name], member) for name in ("params", "batch_stats"))
        np.testing.assert_array_equal(params["heads"]["kernel"][0], expected["fc.weight"].T)
        kernel = expected["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params["stage2_block1"]["conv1"]["kernel"], kernel)
        found = statistics["stage3_block1"]["norm2"]["var"]
        np.testing.assert_array_equal(found, expected["layer3.0.bn2.running_var"])


def test_heads_for_other_classes_begin_anew_and_the_report_says_so(files):
    plain, config = config_of(), config_of(**{"teachers.init_from": (files["a"], files["seven"])})
    split = experiment.load_split(config)
    (stage,) = plan.train_teachers(config, split)
    assert stage.note.endswith("heads for another number of classes than 4 began anew.")
    start, drawn = stage.make({}).start["params"], drawn_by(teachers.job(plain, split, NETWORK))
    for member, of_file in ((0, True), (1, False)):
        own, new = (population.take(tree["heads"], member) for tree in (start, drawn))
        assert np.array_equal(own["kernel"], new["kernel"]) is not of_file
    np.testing.assert_array_equal(
        start["stem_conv"]["kernel"][1], tensors(7, 2)["conv1.weight"].transpose(2, 3, 1, 0)
    )
    (stage,) = plan.train_teachers(config_of(**{"teachers.init_from": (files["a"],)}), split)
    assert stage.note == f"The teachers began with the weights of {files['a']}."


def test_teachers_with_branches_say_what_they_began_with(files):
    config = config_of(**{"teachers.init_from": (files["a"], files["b"]), "plan": "student_friendly"})
    stage, *_ = plan.build(config, experiment.load_split(config))
    begun = f"The teachers began with the weights of {files['a']}, {files['b']}."
    assert stage.note.startswith(f"{begun} Teachers were trained with ")


def test_trained_teachers_teach_as_they_are(files):
    """Nobody trains them: what they say of the test images is what the reference says."""
    weights = (files["a"], files["b"])
    config = config_of(**{"teachers.init_from": weights, "teachers.trained": True})
    split = experiment.load_split(config)
    assert plan.train_teachers(config, split) == ()
    found, (note, normalised) = teachers.borrow(config, split)
    assert "if they were trained with others, set teachers.mean and teachers.std" in normalised
    assert note == f"The teachers are those of {', '.join(weights)}, as they are."
    (own,) = plan.ensemble_of(found)
    images = np.float32(split.dataset.test_images[:8] / 255)
    for member, name in enumerate("ab"):
        outputs, _ = own.model.apply(population.take(own.variables, member), images)
        expected = by_reference(name, split, images.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)


def test_trained_teachers_may_normalise_by_what_they_were_trained_with(files):
    weights = (files["a"], files["b"])
    config = config_of(
        **{
            "teachers.init_from": weights,
            "teachers.trained": True,
            "teachers.mean": (0.25,),
            "teachers.std": (0.75,),
        }
    )
    split = experiment.load_split(config)
    found, (_, normalised) = teachers.borrow(config, split)
    assert normalised.startswith("The teachers' images are normalised by mean 0.25; std 0.75 (teachers.mean")
    (own,) = plan.ensemble_of(found)
    images = np.float32(split.dataset.test_images[:8] / 255)
    outputs, _ = own.model.apply(population.take(own.variables, 0), images)
    expected = reference.resnet(tensors(seed=0), (images.transpose(0, 3, 1, 2) - 0.25) / 0.75, 8)[0]
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)
    (mean,), (std,) = loading.channel_statistics(split)
    assert normalised.endswith(f"the students have them, differ: mean {mean:.3g}; std {std:.3g}.")
    config.teachers.mean, config.teachers.std = (mean + 0.004,), (std - 0.004,)
    assert "differ" not in teachers.borrow(config, split)[1][1]
    for name, of_mean, of_std in (("mean", 125.3, 0.2), ("std", 0.5, 63.0)):
        config.teachers.mean, config.teachers.std = (of_mean,), (of_std,)
        with pytest.raises(UserError, match=rf"teachers.{name}: \([\d.]+,\) is not of images in 0..1"):
            teachers.borrow(config, split)
    config.teachers.mean, config.teachers.std = (0.2, 0.2, 0.2), (1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="teachers.mean: has 3 values for images of 1 channels"):
        teachers.borrow(config, split)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "state_dict.model."])
def test_the_prefix_of_a_wrapper_is_taken_off(prefix, files, tmp_path):
    config = config_of()
    model = teachers.network(experiment.load_split(config), NETWORK)
    wrapped = {f"{prefix}{name}": value for name, value in tensors().items()}
    np.savez(tmp_path / "w.npz", **wrapped, n_averaged=np.array(3))
    read = pretrained.from_pytorch(tmp_path / "w.npz", model)
    equal(read, pretrained.from_pytorch(Path(files["a"]), model))
    np.savez(tmp_path / "two.npz", **wrapped, **{f"ema.{name}": value for name, value in tensors().items()})
    with pytest.raises(UserError, match="two.npz: 2 networks are in it, under .*; save one of them alone"):
        pretrained.from_pytorch(tmp_path / "two.npz", model)


def test_bfloat16_is_read_and_what_is_not_finite_is_refused(tmp_path):
    config = config_of()
    model = teachers.network(experiment.load_split(config), NETWORK)
    narrow = {name: jnp.asarray(value, jnp.bfloat16) for name, value in tensors().items()}
    safetensors.save_file(narrow, tmp_path / "w.safetensors")
    kernel = pretrained.from_pytorch(tmp_path / "w.safetensors", model)["params"]["stem_conv"]["kernel"]
    expected = np.asarray(narrow["conv1.weight"].astype(jnp.float32)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    for value in (np.nan, np.inf):
        broken = tensors()
        broken["layer1.0.conv1.weight"] = np.full_like(broken["layer1.0.conv1.weight"], value)
        np.savez(tmp_path / "w.npz", **broken)
        with pytest.raises(UserError, match="w.npz: tensor layer1.0.conv1.weight holds NaN or infinite"):
            pretrained.from_pytorch(tmp_path / "w.npz", model)


@pytest.mark.slow
def test_a_run_with_trained_teachers_trains_students_alone(files, tmp_path):
    config = config_of(
        **{
            "teachers.init_from": (files["a"], files["b"]),
            "teachers.trained": True,
            "students.model": "mlp(hidden=(4,))",
            "students.modes": ("output_avg",),
            "students.alphas": (0.0,),
            "train.epochs": 1,
            "runtime.how": "vmap",
        }
    )
    result = experiment.run(config, tmp_path, quiet=True)
    assert any("as they are" in note for note in result["notes"])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["students-labelled-output-avg"]
    found = predictions.load(tmp_path / "predictions.npz")
    assert [group.role for group in found.groups] == ["teacher", "linear", "student", "baseline"]


# --- students -----------------------------------------------------------------------------------------


def students_jobs(config):
    """{mode: (family, its job)} of all students, taught by networks as they are initialised."""
    split = experiment.load_split(config)
    stages, borrowed, _ = experiment.planned(config, split)
    done = plan.rehearse(stages, config, borrowed)
    return {mode: (s.family, s.make(done)) for s in stages for mode in {m.mode for m in s.family}}


def test_all_bodies_of_students_begin_with_the_file_and_heads_with_their_seed(files):
    taught = {
        "teachers.models": ("mlp(hidden=(4,))",),
        "students.modes": ("output_avg", "mimic_all", "peers.dml"),
    }
    plain = students_jobs(config_of(**taught))
    begun = students_jobs(config_of(**taught, **{"students.init_from": files["seven"]}))
    kernel = tensors(7, 2)["layer3.0.conv2.weight"].transpose(2, 3, 1, 0)
    for mode, (_, job) in begun.items():
        equal(job.start["params"]["heads"], drawn_by(plain[mode][1])["heads"])
        found = job.start["params"]["stage3_block1"]["conv2"]["kernel"]
        np.testing.assert_array_equal(found, np.broadcast_to(kernel, found.shape))
    assert {job.start["params"]["heads"]["kernel"].shape[1] for _, job in begun.values()} == {1, 2}


def test_generations_begin_with_the_file_and_heads_of_their_own(files):
    config = config_of(
        **{
            "plan": "born_again(generations=1)",
            "teachers.models": ("mlp(hidden=(4,))",),
            "students.modes": ("output_avg",),
            "students.init_from": files["a"],
        }
    )
    found = students_jobs(config)
    direct, again = (found[mode][1].start["params"] for mode in ("baseline", "born_again 1"))
    equal(direct["stem_conv"]["kernel"][0], again["stem_conv"]["kernel"][0])
    assert np.abs(direct["heads"]["kernel"][0] - again["heads"]["kernel"][0]).max() > 0.01


def test_assistants_of_another_architecture_begin_as_drawn(files):
    config = config_of(
        **{
            "plan": "assistants(models=('mlp(hidden=(5,))',))",
            "students.modes": ("output_avg",),
            "students.init_from": files["a"],
        }
    )
    found = students_jobs(config)
    assert found["assistant 1"][1].start is None and found["assisted"][1].start is not None


# --- what the run is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["teachers.init_from", "students.init_from"])
def test_other_weights_under_the_same_name_are_another_run(field, tmp_path):
    path = tmp_path / "network.npz"
    np.savez(path, **tensors(seed=0))
    config = config_of(**{field: (str(path),) if field.startswith("teachers") else str(path)})
    split = experiment.load_split(config)
    workdir.describe(tmp_path, config, split)
    workdir.check(tmp_path, config, split)
    np.savez(path, **tensors(seed=1))
    with pytest.raises(UserError, match="weights_sha256.*network.npz was"):
        workdir.check(tmp_path, config, split)


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (
            {"teachers.init_from": ("none.npz",)},
            "config.teachers.init_from: none.npz: cannot read the weights: No such",
        ),
        (
            {"students.init_from": "none.npz"},
            "config.students.init_from: none.npz: cannot read the weights: No such",
        ),
        (
            {"teachers.init_from": ("{a}",), "model.name": "resnet(depth=14)"},
            "init_from: {a}: tensor layer1.1",
        ),
        (
            {"teachers.init_from": ("{a}",), "model.name": "mlp"},
            "init_from: {a}: mlp: no PyTorch program has this network",
        ),
        (
            {"students.init_from": "{a}", "students.model": "resnet(depth=14)", "model.name": "mlp"},
            "config.students.init_from: {a}: tensor layer1.1",
        ),
        ({"teachers.init_from": ("{a}",) * 3}, "init_from has 3 values for 2 members"),
        ({"teachers.init_from": ("{a}",), "teachers.models": (NETWORK, "mlp")}, "one architecture"),
        ({"teachers.init_from": ("{a}",), "teachers.from_run": "{a}"}, "one or the other"),
        ({"teachers.init_from": ("{a}",), "teachers.trained": True}, "1 files for 2 members"),
        (
            {"teachers.init_from": ("{a}", "{seven}"), "teachers.trained": True},
            "init_from: {seven}: tensor fc.bias has shape [7]",
        ),
        (
            {"teachers.init_from": ("{a}",), "plan": "specialists", "teachers.num_members": 3},
            "does not go with plan specialists",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_anybody_is_trained(
    overrides, expected, files, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "first_progress", lambda job: pytest.fail("trained"))
    named = lambda value: value.format(**files) if isinstance(value, str) else value  # noqa: E731
    overrides = {
        field: tuple(map(named, value)) if isinstance(value, tuple) else named(value)
        for field, value in overrides.items()
    }
    with pytest.raises(UserError) as error:
        experiment.run(config_of(**overrides), tmp_path, quiet=True)
    assert named(expected) in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("config.") and str(error.value).count("config.") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
