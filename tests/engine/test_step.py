"""Each of the seven seams does what it says, with the smallest recipe that would notice if it did not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.addresses import build_recipe
from mtkd_jax.engine import population, step, training
from mtkd_jax.methods.seams import PLAIN, targets_of
from mtkd_jax.plans import students, teachers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Population
from tests import small

ONE_STEP = {"data.num_train": 16, "train.epochs": 1, "train.optimizer": "sgd", "train.learning_rate": 0.1}


@pytest.fixture(scope="module")
def setting():
    """(configuration, split, three untrained teachers)."""
    config = small.config(**ONE_STEP, **{"students.modes": ("output_avg",), "students.alphas": (0.25,)})
    split = experiment.load_split(config)
    model = teachers.network(split, config.model.name)
    variables = population.init(model, jax.random.split(jax.random.key(5), 3), (4, 4, 1))
    variables = jax.tree.map(lambda leaf: 3 * leaf, variables)  # opinionated
    return config, split, (Population(model, variables, {}, ("a", "b", "c")),)


def student_job(setting, **seams):
    """The job of all students of `setting`, their one recipe changed in these seams."""
    config, split, ensemble = setting
    (family,) = students.families(config)
    job = students.job(config, split, "labelled", family, ensemble, {})
    if not seams:
        return job
    recipes = tuple(recipe._replace(**seams) for recipe in job.program.recipes)
    return dataclasses.replace(job, program=job.program._replace(recipes=recipes))


def trained(job, tmp_path):
    with Logbook(tmp_path, quiet=True) as logbook:
        return training.fit(job, tmp_path / "checkpoints", logbook).population.variables


def test_an_alternating_flip_turns_every_image_round_from_epoch_to_epoch(setting):
    job = student_job(setting)
    program = job.program._replace(augmentation=(("alternating_flip", True),), num_steps=6, epochs=3)
    indices = jnp.asarray(job.order(0)[0])
    plain = np.asarray(job.stage_data.examples.image[indices], np.float32) / 255

    def at(number):
        number = jnp.int32(number)
        keys = step._shared_keys(job.stage_data, number)
        return np.asarray(step._batch(program, keys, indices, number, job.stage_data)[0].image)

    first = at(0)
    mirrored = np.array([not np.allclose(*pair) for pair in zip(first, plain)])
    assert 0 < mirrored.sum() < len(mirrored)
    np.testing.assert_allclose(first[mirrored], plain[mirrored][:, :, ::-1], rtol=1e-6)
    for number, same in ((1, True), (2, False), (3, False), (4, True)):  # two steps an epoch
        np.testing.assert_array_equal(at(number), first if same else first[:, :, ::-1])


def initial(job):
    return population.init(job.program.model, job.init_keys, (4, 4, 1))


def close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=0), a, b)


def test_stimulus_is_what_student_and_teachers_see(setting, tmp_path):
    mean = student_job(setting).program.model.module.task.mean[0]  # after normalisation: zeros
    seen = []

    def at_mean(key, batch, augment, networks):
        batch = dataclasses.replace(batch, image=jnp.full_like(batch.image, mean))
        seen.append(networks.teachers(batch.image).logits.shape)
        return batch

    job = student_job(setting, stimulus=at_mean)
    kernel = trained(job, tmp_path)["params"]["dense1"]["kernel"]
    close(kernel, initial(job)["params"]["dense1"]["kernel"])  # zeros in: no gradient for the first kernel
    assert set(seen) == {(3, 16, 4)}


def test_view_is_what_the_student_computes_with_and_deploy_what_is_kept(setting, tmp_path):
    sign, stop = lambda params: jax.tree.map(jnp.sign, params), jax.lax.stop_gradient
    job = student_job(
        setting,
        view=lambda variables, state, hyper, key: (
            variables | {"params": jax.tree.map(lambda p: p + stop(jnp.sign(p) - p), variables["params"])}
        ),
        deploy=lambda state, hyper: {"params": sign(state.params), **state.model_state},
    )
    kept = trained(job, tmp_path / "signs")
    assert {float(v) for leaf in jax.tree.leaves(kept) for v in np.unique(leaf)} <= {-1.0, 0.0, 1.0}
    plain = trained(student_job(setting, deploy=job.program.recipes[0].deploy), tmp_path / "plain")
    differs = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(plain))]
    assert any(differs)  # the gradient was taken at the signs


def test_after_remembers_and_deploy_can_return_the_memory(setting, tmp_path):
    job = student_job(
        setting,
        init_mem=lambda variables, student, num_examples: {"average": variables["params"]},
        after=lambda state, context: dataclasses.replace(
            state,
            mem={
                "average": jax.tree.map(
                    lambda old, new: 0.75 * old + 0.25 * new, state.mem["average"], state.params
                )
            },
        ),
        deploy=lambda state, hyper: {"params": state.mem["average"], **state.model_state},
    )
    expected = jax.tree.map(
        lambda before, after: 0.75 * before + 0.25 * after,
        initial(job),
        trained(student_job(setting), tmp_path / "plain"),
    )
    close(trained(job, tmp_path / "average"), expected)


def test_after_can_change_the_parameters(setting, tmp_path):
    job = student_job(
        setting,
        after=lambda state, context: dataclasses.replace(
            state, params=jax.tree.map(lambda p: p.clip(-0.05, 0.05), state.params)
        ),
    )
    clipped = trained(job, tmp_path)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(clipped)) <= np.float32(0.05)


def test_targets_drawn_by_each_member_are_those_of_the_shared_table(setting, tmp_path):
    shared = trained(student_job(setting), tmp_path / "shared")
    own = trained(student_job(setting, reads_student=("weigh", "aim")), tmp_path / "own")
    close(shared, own)


def test_weigh_chooses_among_teachers(setting, tmp_path):
    """All weight on teacher 1 is training by teacher 1 alone."""
    config, split, ensemble = setting

    def only_teacher_1(context):
        return jnp.zeros(context.teacher.logits.shape[:2]).at[1].set(1.0)

    weighed = trained(student_job(setting, weigh=only_teacher_1), tmp_path / "weighed")
    alone = (population.members(ensemble[0], [1]),)
    by_one = trained(student_job((config, split, alone)), tmp_path / "alone")
    close(weighed, by_one)


def test_the_step_stops_gradients_through_weigh_and_aim(setting, tmp_path):
    """Targets made of the student's own logits: the gradient is that of constant targets."""

    def own_opinion(context, w):
        return targets_of(
            jax.nn.softmax(context.student.logits)[None], jnp.ones((1, len(context.batch.label)))
        )

    def linear(context):
        return (context.targets.probs[0] * context.student.logits).sum(-1)

    job = student_job(setting, reads_student=("weigh", "aim"), aim=own_opinion, term=linear)
    found = trained(job, tmp_path)
    examples, indices = job.stage_data.examples, job.order(0)[0]
    image = examples.image[indices].astype(jnp.float32) / 255
    model, before = job.program.model, population.take(initial(job), 0)

    def loss_of(variables):
        logits = model.apply(variables, image)[0].logits
        return (jax.lax.stop_gradient(jax.nn.softmax(logits)) * logits).sum(-1).mean()

    nesterov = 0.1 * (1 + 0.9)  # the first step of momentum 0.9
    expected = jax.tree.map(lambda p, g: p - nesterov * g, before, jax.grad(loss_of)(before))
    close(population.take(found, 0), expected)


def test_inputs_made_by_each_member_equal_shared_ones(setting, tmp_path):
    job = student_job(setting)
    num_members = len(job.names)
    repeated = dataclasses.replace(
        job, order=lambda epoch: np.repeat(job.order(epoch)[:, None], num_members, axis=1)
    )
    close(trained(job, tmp_path / "shared"), trained(repeated, tmp_path / "own"))


def test_all_students_see_the_same_augmentation(tmp_path):
    """Equal students stay equal under strong noise."""
    config = small.config(
        **{**ONE_STEP, "data.augment.noise": 0.5, "students.modes": ("output_avg", "loss_avg")},
        **{"students.alphas": (1.0,)},
    )
    done = small.train(config, tmp_path)
    of = done["students-labelled-output-avg"].population
    names = [f"{mode} a=1 T=1 seed 0" for mode in ("output_avg", "loss_avg", "baseline")]
    first, *others = (population.take(of.variables, of.names.index(name)) for name in names)
    for other in others:
        close(first, other)


def test_recipes_inherit_what_they_do_not_change():
    recipe = build_recipe("mimic_all")
    changed = {name for name in recipe._fields if getattr(recipe, name) != getattr(PLAIN, name)}
    assert changed == {"name", "aim", "num_heads"}


def test_members_with_batches_of_their_own_draw_anew_in_every_step():
    """The loss is the mean of images that the stimulus drew: other ones for each member and step."""

    def drawn(key, batch, augment, networks):
        return dataclasses.replace(batch, image=jax.random.uniform(key, batch.image.shape))

    config = small.config(**ONE_STEP)
    job = teachers.job(config, experiment.load_split(config), config.model.name)
    recipe = job.program.recipes[0]._replace(
        stimulus=drawn,
        term=lambda context: (
            context.batch.image.mean(axis=(1, 2, 3)) + 0 * context.student.logits.sum(axis=-1)
        ),
    )
    job = dataclasses.replace(job, program=job.program._replace(recipes=(recipe,)))
    run, indices = training.compiled_part(job.program), job.order(0)[:1]
    losses = [
        float(loss)
        for number in range(3)
        for loss in run(
            training.first_progress(job), job.hyper, indices, np.int32(number), job.stage_data
        ).loss
    ]
    assert len(set(losses)) == 9
