"""Controls: the same students whose teachers know nothing of their images, and nothing else changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import config as configuration
from mtkd_jax import experiment
from mtkd_jax.engine import population, step, teacher_cache, training
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.models.given import Given
from mtkd_jax.plans import checks, controls, given, students, teachers
from mtkd_jax.types import Population, UserError
from tests import small

BOTH = ("random_teacher", "shuffled_teacher")
FEW = {"students.controls": BOTH, "students.alphas": (0.0,), "students.num_seeds": 2}


def untrained(config):
    split = experiment.load_split(config)
    model = teachers.network(split, config.model.name)
    variables = population.init(model, jax.random.split(jax.random.key(5), 3), (4, 4, 1))
    return split, (Population(model, variables, {}, ("a", "b", "c")),)


def test_each_mode_has_the_same_members_with_its_controls_as_without():
    config = small.config(**{**FEW, "students.modes": ("mimic_all", "output_avg")})
    found = students.families(config)
    members = [member for family in found for member in family]
    for mode in config.students.modes:
        own = [one for one in members if one.mode == mode]
        for control in BOTH:
            row = configuration.row_of_control(control, mode)
            assert configuration.control_and_mode(row) == (control, mode)
            same = [one._replace(mode=mode, control="") for one in members if one.mode == row]
            assert same == own and len(own) == 2
    for family in found:  # one program, one set of teachers
        assert len({member.control for member in family}) == 1
    small_ones = small.config(**{**FEW, "students.controlled": ("output_avg",)})
    rows = {member.mode for family in students.families(small_ones) for member in family}
    assert {row for row in rows if ":" in row} == {f"{control}:output_avg" for control in BOTH}


def test_shuffled_teachers_say_what_was_said_of_exactly_one_other_image_of_the_same_set():
    config = small.config(**{**FEW, "students.transfer": ("labelled", "unlabelled")})
    split, ensemble = untrained(config)
    (own,) = controls.teachers("shuffled_teacher", config, split, ensemble)
    right, said = population.logits(ensemble[0], split.dataset.train_images), own.variables["train"]
    assert isinstance(own.model, Given) and own.names == ("a", "b", "c")
    for rows in (split.train, split.pool):
        source = [int(np.argmin(np.abs(right[:, rows] - said[:, [row]]).sum(axis=(0, 2)))) for row in rows]
        np.testing.assert_allclose(said[:, rows], right[:, rows][:, source], atol=1e-5)
        assert sorted(source) == list(range(len(rows)))  # right marginals
        assert all(place != of for place, of in enumerate(source))  # wrong images
    assert not said[:, split.val].any()  # nobody asked about those
    (again,) = controls.teachers("shuffled_teacher", config, split, ensemble)
    np.testing.assert_array_equal(again.variables["train"], said)


def test_untrained_teachers_are_the_same_networks_drawn_anew():
    config = small.config(**FEW)
    split, ensemble = untrained(config)
    (drawn,) = controls.teachers("random_teacher", config, split, ensemble)
    assert drawn.model == ensemble[0].model and drawn.names == ensemble[0].names
    ours, theirs = (jax.tree.leaves(one.variables) for one in (drawn, ensemble[0]))
    assert [leaf.shape for leaf in ours] == [leaf.shape for leaf in theirs]
    drawn_at_random = [(a, b) for a, b in zip(ours, theirs) if np.ptp(b) > 0]
    assert drawn_at_random
    for a, b in drawn_at_random:
        assert not np.array_equal(a, b) and not np.array_equal(a[0], a[1])  # each member its own
    assert controls.teachers("", config, split, ensemble) is ensemble


def test_untrained_residual_networks_have_the_batch_statistics_of_training_images():
    """As they are drawn, ResNet-56 says the classes of CIFAR-10 surely, settled with 0.6."""
    name = "resnet(depth=14)"
    config = small.config(**{"model.name": name, "students.controls": BOTH})
    split = experiment.load_split(config)
    model = teachers.network(split, name)
    keys, shape = jax.random.split(jax.random.key(1), 2), split.dataset.train_images.shape[1:]
    own = Population(model, population.init(model, keys, shape), {}, ("a", "b"))
    (drawn,) = controls.teachers("random_teacher", config, split, (own,))
    settled = population.logits(drawn, split.dataset.train_images[split.train])
    assert 0.3 < np.std(settled) < 3
    before, after = (jax.tree.leaves(one.variables["batch_stats"]) for one in (own, drawn))
    assert all(np.any(a != b) for a, b in zip(before, after))


def test_untrained_specialists_answer_for_the_classes_of_the_trained_ones():
    config = small.config(**{**FEW, "plan": "specialists", "students.modes": ("logit_avg",)})
    split = experiment.load_split(config)
    job = teachers.specialists_job(config, split, config.model.name)
    trained = training.untrained(job).population
    (drawn,) = controls.teachers("random_teacher", config, split, (trained,))
    share = teachers.coverage(3, 4) * 1.5
    np.testing.assert_allclose(trained.variables["coverage"]["share"], share)
    np.testing.assert_allclose(drawn.variables["coverage"]["share"], share)
    said = population.logits(drawn, split.dataset.train_images[:6])
    np.testing.assert_array_equal(said != 0, np.broadcast_to(share[:, None] > 0, said.shape))
    ours, theirs = (jax.tree.leaves(one.variables["params"]) for one in (drawn, trained))
    assert any(not np.array_equal(a, b) for a, b in zip(ours, theirs))


def test_nothing_but_the_lesson_differs(monkeypatch):
    """Shuffled by a permutation that moves nothing, two steps end where those of the mode itself do."""
    monkeypatch.setattr(controls, "others", lambda number, rng: np.arange(number))
    config = small.config(**{**FEW, "students.modes": ("output_avg",)})
    split, ensemble = untrained(config)
    ended = {}
    for family in students.families(config):
        taught_by = controls.teachers(family[0].control, config, split, ensemble)
        job = students.job(config, split, "labelled", family, taught_by, {})
        job = with_layout(teacher_cache.fill(job, {}), Layout("vmap"))
        variables = population.init(job.program.model, job.init_keys, job.image.shape[1:])
        states = step.init_state(job.program, variables, job.init_keys, job.stage_data)
        one_step = jax.jit(step.make_step(job.program))
        for number in range(2):
            states, _ = one_step(states, job.hyper, job.order(0)[number], jnp.int32(number), job.stage_data)
        ended[family[0].control] = jax.tree.map(lambda leaf: np.asarray(leaf)[:2], states.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ended[""], ended["shuffled_teacher"]
    )
    with pytest.raises(AssertionError):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ended[""], ended["random_teacher"]
        )


def test_a_control_is_a_row_that_is_compared_with_its_mode_and_with_the_baseline(tmp_path):
    config = small.config(**{**FEW, "students.modes": ("output_avg",), "train.epochs": 2})
    report = experiment.run(config, tmp_path / "run", quiet=True)
    rows = {row["name"]: row for row in report["rows"]}
    assert all(rows[f"{control}:output_avg"]["role"] == "control" for control in BOTH)
    pairs = {(one["a"], one["b"]) for one in report["comparisons"]}
    for control in BOTH:
        assert (f"{control}:output_avg", "baseline") in pairs
        assert ("output_avg", f"{control}:output_avg") in pairs
        assert rows[f"{control}:output_avg"]["verdict"] is not None
    assert {one["name"] for one in report["negative_transfer"]} == {
        "output_avg",
        *(f"{control}:output_avg" for control in BOTH),
    }
    notes = " ".join(report["notes"])
    assert all(note in notes for note in controls.NOTES.values())
    assert tuple(controls.NOTES) == configuration.CONTROLS
    assert "by a shuffled teacher" in " ".join(report["findings"])
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "## The teachers' mistakes" in text


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"students.modes": ("averages.mean_teacher",)}, "averages.mean_teacher has no frozen teachers"),
        ({"students.modes": ("targets.pseudo_labels",)}, "targets.pseudo_labels asks its teachers in a way"),
        ({"students.modes": ("supernet",)}, "supernet fits a network or a rule on its teachers first"),
        (
            {"students.modes": ("features.pkt",), "students.controls": ("shuffled_teacher",)},
            "features.pkt asks its teachers for more than the logits",
        ),
        (
            {"students.modes": ("stimuli.funmatch",), "students.controls": ("shuffled_teacher",)},
            "stimuli.funmatch asks its teachers for more than the logits",
        ),
    ],
)
def test_what_cannot_have_a_control_is_refused_in_a_line(fields, words):
    config = small.config(**{**FEW, **fields})
    with pytest.raises(UserError, match=words) as error:
        checks.check_data(config, experiment.load_split(config))
    assert "\n" not in str(error.value) and "students.controlled" in str(error.value)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"train.mixup": 0.2}, "config.train.mixup: 0.2, but shuffled_teacher .* must be 0 with it"),
        ({"train.cutmix": 1.0}, "config.train.cutmix: 1, but shuffled_teacher .* must be 0 with it"),
        (
            {"students.controls": (), "students.controlled": ("output_avg",)},
            "config.students.controlled: output_avg would have no controls",
        ),
    ],
)
def test_what_a_control_cannot_do_is_refused_and_not_left_out_in_silence(fields, words):
    config = small.config(**{**FEW, **fields})
    with pytest.raises(UserError, match=words) as error:
        checks.check_data(config, experiment.load_split(config))
    assert "\n" not in str(error.value)


def test_who_reuses_classifiers_can_have_an_untrained_teacher_whose_own_they_are():
    controls.check(
        small.config(**{"students.modes": ("features.simkd",), "students.controls": ("random_teacher",)})
    )


def test_unknown_controls_and_modes_are_refused():
    with pytest.raises(UserError, match="'shuffled' is not possible; .*; did you mean 'shuffled_teacher'?"):
        small.config(**{"students.controls": ("shuffled",)})
    with pytest.raises(UserError, match="students.controlled: 'vote' is not among students.modes"):
        small.config(**{"students.controlled": ("vote",)})


def test_teachers_who_are_files_can_be_shuffled_and_have_no_untrained_form():
    config = small.config(**FEW)
    split, ensemble = untrained(config)
    cube = population.logits(ensemble[0], split.dataset.train_images)
    said = (Population(given.LOGITS, {"train": cube}, {}, ("a", "b", "c")),)
    of_files, of_networks = (
        controls.teachers("shuffled_teacher", config, split, one)[0].variables["train"]
        for one in (said, ensemble)
    )
    np.testing.assert_allclose(of_files, of_networks, atol=1e-5)
    with pytest.raises(UserError, match="random_teacher is an untrained network, and logits files are none"):
        controls.teachers("random_teacher", config, split, said)
