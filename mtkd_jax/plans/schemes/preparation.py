"""Plans in which teachers are made ready for their students, before these learn from them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import mesh
from mtkd_jax.addresses import build_model
from mtkd_jax.config import GIVEN, student_models, teacher_models
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split, scale
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.methods.features import MATCHED, channels_of, matching
from mtkd_jax.methods.maps import Taps, stage_names
from mtkd_jax.methods.teaching import FOLLOWED
from mtkd_jax.models.friendly import StudentFriendly, with_branches
from mtkd_jax.plans import students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, alone, ensemble_of, train_students
from mtkd_jax.plans.schemes.direct import (
    check_hears_all,
    check_networks_teach,
    recipe_for,
    with_baseline,
)
from mtkd_jax.plans.students import Family
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Absent, Array, Ensemble, PyTree, Task, UserError

MATCHED_BY = 256  # training images that channels are matched by


def intermediate_heads(
    config: ConfigDict, split: Split, *, after: tuple[str, ...] = (), mode: str = "output_avg"
) -> Plan:
    """Students whom a classifier after every stage of a teacher teaches as well as the teacher itself (DIH).

    Beside each frozen teacher a linear classifier of the flattened map after each of the stages `after`, all
    features "stage..." unless they are named, is trained for `train.epochs` by labels, on the examples that
    the teacher was trained on; each for itself, and has its own best epoch. K teachers with k classifiers
    each are then K (1 + k) teachers, from whom the students of the row "intermediate_heads" learn by `mode`,
    such as "weights.ebkd", which weighs each by how sure it is.
    Raises UserError for a mode with more than one head, stages that a teacher lacks, teachers that are no
    networks or teach some images only, and labels of places.

    Source: distilling knowledge via intermediate classifiers, Asadian and Salehi-Abari 2021, arXiv
    2103.00497, with one teacher, and the losses added up by all that teach, each with the hard loss: here
    `mode` says what these weigh, and the hard loss counts once.
    """
    name = "intermediate_heads"
    check_networks_teach(name, config)
    check_hears_all(name, config, split)
    if split.dataset.is_dense:
        raise UserError(f"config.plan: {name} says one class of an image, and here places of one have labels")
    addresses, num_members = teacher_models(config), config.teachers.num_members
    tapped = [(own, stage) for own in addresses for stage in _stages_of(config, split, own, after)]
    num_teachers = num_members * (len(addresses) + len(tapped))
    recipe = recipe_for(name, mode, num_teachers)
    direct = with_baseline(name, config, split)

    def classify(done: Done, address: str, stage: str) -> Job:
        return teachers.classifiers_job(config, split, address, done[teachers.stage_name(address)], stage)

    stages = [
        Stage(
            teachers.classifiers_stage(address, stage),
            functools.partial(classify, address=address, stage=stage),
        )
        for address, stage in tapped
    ]
    note = (
        f"{num_members * len(tapped)} of the {num_teachers} teachers of {name} are classifiers after stages "
        "of the others."
    )
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        family = students.of_model(students.grid(config, name, recipe), model)

        def distil(done: Done, transfer: str = transfer, family: Family = family) -> Job:
            ensemble = (*ensemble_of(done), *_classifiers_of(done, tapped))
            return students.job(config, split, transfer, family, ensemble, {})

        stages.append(Stage(students.stage_name(transfer, family), distil, family, transfer, note=note))
    return (*direct, *stages)


def student_friendly(
    config: ConfigDict,
    split: Split,
    *,
    student: str = "",
    after: tuple[str, ...] = (),
    hard_weight: float = 1.0,
    soft_weight: float = 3.0,
) -> Plan:
    r"""Teachers that are trained with branches of their student, so that it can follow them; students (SFTN).

    $$\ell = \mathrm{CE}(z) + \sum_b (\lambda_1\, \mathrm{CE}(z_b) + \lambda_2\,
    \mathrm{KL}(\mathrm{softmax}(z) \parallel \mathrm{softmax}(z_b)))$$

    Here $z$ are a teacher's logits and $z_b$ those of branch b, which takes the teacher's map after one of
    the stages `after` through a 1x1 convolution, BatchNorm and ReLU to the size of the student's, and from
    there on has the student's later stages and head. The gradient of the divergence goes into both;
    $\lambda_1$ is `hard_weight` and $\lambda_2$ is `soft_weight`. Branches begin anew and are dropped after
    the training: teachers are what they ever are, and all of `students.modes` learn from them, with initial
    weights of their own. `student` is the architecture of the branches, that of the students unless it is
    named, and `after` all stages of blocks that both have and the student has blocks behind. Teachers may
    begin with the weights of `teachers.init_from`. Raises UserError for students of several architectures
    where none is named, networks that cannot be cut, negative weights, and teachers that come trained or have
    a method of their own.

    Source: learning student-friendly teacher networks, Park et al. 2021, arXiv 2102.07650, of which a summary
    was at hand: its parts are the paper's; the form of the first layers of a branch is ours, and weights of 1
    and 3 at T = 1 are as we remember them.
    """
    name = "student_friendly"
    for argument, weight in (("hard_weight", hard_weight), ("soft_weight", soft_weight)):
        if weight < 0:
            raise UserError(f"config.plan: {name}({argument}={weight}): must be at least 0")
    elsewhere = ("from_run", *(field.removeprefix("teachers.") for field in GIVEN), "trained", "method")
    for field in elsewhere:
        if config.teachers[field]:
            raise UserError(
                f"config.teachers.{field}: {config.teachers[field]!r} does not go with plan {name}, which "
                "trains teachers in a way of its own; leave it at its default"
            )
    if not student and len(student_models(config)) > 1:
        raise UserError(
            f"config.plan: {name} has branches of one student, and there are several; name student"
        )
    address = student or student_models(config)[0]
    branch = build_model(address, _task_of(split), "plan" if student else "students.model")
    recipe = FOLLOWED._replace(hyper=(("hard_weight", hard_weight), ("soft_weight", soft_weight)))
    image = loading.example_image(split)

    def friendly(own: str) -> StudentFriendly:
        try:
            return with_branches(teachers.own_network(config, split, own), branch, image, after)
        except UserError as error:
            raise UserError(f"config.plan: {name}: {error}") from None

    def note(own: str, model: StudentFriendly) -> str:
        branches = f"Teachers were trained with {len(model.branches)} branches of {branch.name} each."
        return " ".join(filter(None, (teachers.beginning(config, split, own), branches)))

    models = {own: friendly(own) for own in teacher_models(config)}
    stages = [
        Stage(
            teachers.stage_name(own),
            alone(teachers.friendly_job, config, split, own, model, recipe),
            note=note(own, model),
        )
        for own, model in models.items()
    ]
    return (*stages, *train_students(config, split))


def matched_channels(config: ConfigDict, split: Split, *, weight: float = 100.0) -> Plan:
    r"""Students learn the teachers' features channel by channel, of channels that are matched first (KCD).

    $$\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \ell_\text{soft} + \lambda \frac{1}{K} \sum_k
    \sum_s \mathrm{mean}_{h,w,d}\, (u_k^{(s)}[\pi_{ks}] - v^{(s)})^2$$

    Here $\ell_\text{soft}$ is that of `loss_avg`, $u_k$ and $v$ are maps of teacher k and of the student
    after the stages s that are as wide in both, and $\lambda$ is `weight`. Before the training $\pi_{ks}$
    gives each channel of the student another one of the teacher: the permutation of the least squared
    distance between their means over the image, of up to 256 training images and with the weights that the
    student begins with, by the Hungarian method. Networks that were drawn apart have their channels in an
    order of their own; matched, they need no regressor between them. Row: "matched_channels". Raises
    UserError for a negative weight, where no stage is as wide, and for teachers that are no networks.

    Source: fixing the teacher-student knowledge discrepancy in distillation, Han et al. 2021, arXiv
    2103.16844, of whose paper the abstract was at hand: to match the teachers' channels to those of each
    student is its; by what, when and for which loss is ours.
    """
    name = "matched_channels"
    if weight < 0:
        raise UserError(f"config.plan: {name}(weight={weight}): must be at least 0")
    check_networks_teach(name, config)
    direct, stages = with_baseline(name, config, split), []
    recipe = MATCHED._replace(hyper=(("weight", weight),))
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        family = students.of_model(students.grid(config, name, recipe), model)

        def distil(
            done: Done, computes: bool = True, transfer: str = transfer, family: Family = family
        ) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            return _matched(job, split, family, computes)

        outline = functools.partial(distil, computes=False)
        stages.append(Stage(students.stage_name(transfer, family), distil, family, transfer, outline=outline))
    return (*direct, *stages)


def _task_of(split: Split) -> Task:
    return Task(split.dataset.num_classes, 1, *loading.channel_statistics(split))


def _stages_of(config: ConfigDict, split: Split, address: str, after: tuple[str, ...]) -> tuple[str, ...]:
    """The stages of an architecture that get a classifier, from the image on; UserError where one is none."""
    model = teachers.network(split, address)
    image = loading.example_image(split)
    features = jax.eval_shape(
        lambda key, image: model.apply(model.init(key, image), image)[0].features, jax.random.key(0), image
    )
    known = stage_names(Taps(Absent, features))
    for stage in after:
        if stage not in known:
            raise UserError(
                f"config.plan: intermediate_heads(after={after}): {address} has no stage {stage!r}"
                f"{hint(stage, known)}"
            )
    if not known:
        raise UserError(
            f"config.plan: intermediate_heads needs stages of the teachers, and {address} has none"
        )
    return tuple(stage for stage in known if stage in (after or known))


def _classifiers_of(done: Done, tapped: Sequence[tuple[str, str]]) -> Ensemble:
    """A population for each architecture and stage: of its teachers, as if they ended there."""
    found = []
    for address, stage in tapped:
        own = done[teachers.classifiers_stage(address, stage)].finite_members
        names = tuple(f"{name} after {stage}" for name in own.names)
        found.append(dataclasses.replace(own, names=names))
    return tuple(found)


def _matched(job: Job, split: Split, family: Family, computes: bool) -> Job:
    """The job with the order in which every student reads the teachers' channels, or any order of them."""
    model, program = job.program.model, job.program
    rows = loading.evenly(split.train, MATCHED_BY)
    image = jnp.asarray(scale(split.dataset.train_images[rows]))
    start = population.init(model, job.init_keys, image.shape[1:]) if job.start is None else job.start

    def pooled(start: PyTree, teachers: tuple[PyTree, ...], image: Array) -> tuple[PyTree, tuple]:
        def of_one(variables: PyTree, image: Array) -> PyTree:
            # By the statistics of these images: it has no others yet.
            outputs, _ = model.apply(variables, image, train=True, key=jax.random.key(0))
            return outputs.features

        own = population.over_members(of_one, "map")(start, image)
        others = population.apply_ensemble(program.teachers, teachers, image, ("features",)).features
        return jax.tree.map(lambda x: x.mean(axis=(-3, -2)), (own, others))

    first_of = {member.seed: row for row, member in reversed(list(enumerate(family)))}
    seeds = population.take(start, list(first_of.values()))
    run = mesh.jit(pooled) if computes else functools.partial(jax.eval_shape, pooled)
    own, others = run(seeds, job.stage_data.teachers, image)
    places = [list(first_of).index(member.seed) for member in family]
    orders = {}
    for stage in stage_names(Taps(image, own)):
        each = [
            [_order_of(seed, stage, own, other, computes) for other in others]
            for seed in range(len(first_of))
        ]
        orders[channels_of(stage)] = np.asarray(each, np.int32)[places]
    return dataclasses.replace(job, hyper={**job.hyper, **orders})


def _order_of(seed: int, stage: str, own: PyTree, other: PyTree, computes: bool) -> np.ndarray:
    """[d] for one seed and teacher; channels as they are where the two are not as wide."""
    width = own[stage].shape[-1]
    if not computes or stage not in other or other[stage].shape[-1] != width:
        return np.arange(width)
    return matching(np.asarray(own[stage][seed]), np.asarray(other[stage]))
