"""Plans in which trained teachers are made ready to teach, before their students learn from them."""

from __future__ import annotations

import itertools

import jax
from ml_collections import ConfigDict

from mtkd_jax.config import teacher_models
from mtkd_jax.data.loading import Split, scale
from mtkd_jax.engine.jobs import Job
from mtkd_jax.methods.maps import Taps, stage_names
from mtkd_jax.models.intermediate import alone, with_heads
from mtkd_jax.plans import students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of
from mtkd_jax.plans.schemes.direct import (
    check_hears_all,
    check_networks_teach,
    recipe_for,
    with_baseline,
)
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Ensemble, Population, UserError


def intermediate_heads(
    config: ConfigDict, split: Split, *, after: tuple[str, ...] = (), mode: str = "output_avg"
) -> Plan:
    """Students whom a classifier after every stage of a teacher teaches as well as the teacher itself (DIH).

    Beside each frozen teacher a linear classifier of the flattened map after each of the stages `after`, all
    features "stage..." unless they are named, is trained for `train.epochs` by labels, on the examples that
    the teacher was trained on. K teachers with k classifiers each are then K (1 + k) teachers, from whom the
    students of the row "intermediate_heads" learn by `mode`, such as "weights.ebkd", which weighs each by how
    sure it is.
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
    tapped = {address: _stages_of(config, split, address, after) for address in teacher_models(config)}
    num_teachers = config.teachers.num_members * sum(1 + len(stages) for stages in tapped.values())
    recipe = recipe_for(name, mode, num_teachers)
    direct = with_baseline(name, config, split)

    def learn_heads(done: Done, address: str) -> Job:
        return teachers.heads_job(config, split, address, done[teachers.stage_name(address)], tapped[address])

    stages = [
        Stage(teachers.heads_stage(address), lambda done, address=address: learn_heads(done, address))
        for address in tapped
    ]
    num_heads = config.teachers.num_members * sum(map(len, tapped.values()))
    note = f"{num_heads} of the {num_teachers} teachers of {name} are classifiers after stages of the others."
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        family = students.of_model(students.grid(config, name, recipe), model)

        def distil(done: Done, transfer=transfer, family=family) -> Job:
            ensemble = (*ensemble_of(done), *_heads_of(done, tapped))
            return students.job(config, split, transfer, family, ensemble, {})

        stages.append(Stage(students.stage_name(transfer, family), distil, family, transfer, note=note))
    return (*direct, *stages)


def _stages_of(config: ConfigDict, split: Split, address: str, after: tuple[str, ...]) -> tuple[str, ...]:
    """The stages of an architecture that get a classifier, from the image on; UserError where one is none."""
    model = teachers.network(split, address)
    image = jax.eval_shape(scale, split.dataset.train_images[:1])
    features = jax.eval_shape(
        lambda key, image: model.apply(model.init(key, image), image)[0].features, jax.random.key(0), image
    )
    known = stage_names(Taps(image, features))
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


def _heads_of(done: Done, tapped: dict[str, tuple[str, ...]]) -> Ensemble:
    """A population for each architecture and stage: of its teachers, as if they ended there."""
    found = []
    for address, stages in tapped.items():
        trained, whole = (
            done[name] for name in (teachers.heads_stage(address), teachers.stage_name(address))
        )
        heads, network = trained.finite_members, whole.population.model
        num_classes = heads.model.module.num_classes
        for stage in stages:
            names = tuple(f"{name} after {stage}" for name in heads.names)
            model = with_heads(network, num_classes, (stage,))
            found.append(Population(model, alone(heads.variables, stage), {}, names))
    return tuple(found)
