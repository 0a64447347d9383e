"""The one training step, for a whole population at once, built from a recipe's eight seams.

Three parts. The INPUTS (batch, stimulus, teachers, targets) are made once for all members when they share
their batches, or by each member from its own when they do not. Every member computes a FORWARD pass (view,
student) and an UPDATE (aim, term, gradient, optimiser, after); between the two, peers exchange their logits
and what else they `tell`. Peers that share a stem are branches of one member, who knows what all of them say.
Nothing here asks which method is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtkd_jax import mesh, optimizers
from mtkd_jax.data import augment, loading, mixing
from mtkd_jax.engine import places, population
from mtkd_jax.engine.population import apply_ensemble, over_members, with_features
from mtkd_jax.mesh import Layout
from mtkd_jax.methods.seams import PEERS, every_leaf, heard, mean_of_places, of_places
from mtkd_jax.models import stages
from mtkd_jax.models.branched import Branched
from mtkd_jax.optimizers import Optimizer, Schedule
from mtkd_jax.types import (
    Absent,
    Array,
    Augment,
    Batch,
    Context,
    Examples,
    Model,
    Networks,
    Outputs,
    Peers,
    PyTree,
    Recipe,
    Targets,
    TeacherOutputs,
    TrainState,
    path_of,
)

Hyper = Mapping[str, Array]  # a member's numbers, by name
MIXING = 2**31  # folded into the key of a batch's stimulus; no seam folds in as much
MIRRORING = MIXING + 1
ANEW = 2**31  # folded into a member's key; no step's number is as large


class Program(NamedTuple):
    """Everything about a step that is compiled into it. Hashable: equal programs are compiled once."""

    model: Model
    recipes: tuple[Recipe, ...]  # one family, see `same_family`
    teachers: tuple[Model, ...]
    optimizer: Optimizer
    schedule: Schedule  # of the learning rate
    num_steps: int  # of the whole stage, for the schedules
    augmentation: tuple[tuple[str, float | tuple], ...]  # the arguments of augment.augment
    layout: Layout
    warmup: float = 0.0  # share of the steps over which the learning rate rises
    clips: bool = False  # whether hyper["clip_norm"] bounds the norm of the gradient of an update
    averages: bool = False  # whether an average of the weights is kept, which is what is used
    accumulate: int = 1  # steps whose gradients make one update
    mixup: float = 0.0  # Beta(mixup, mixup) of the shares; 0 = off
    cutmix: float = 0.0
    alpha_schedule: Schedule = optimizers.constant()  # of the teachers' weight, 1 - alpha
    temperature_schedule: Schedule = optimizers.constant()  # of temperature - 1
    cache_index: str = ""  # how stage_data.cached_logits is indexed, if there: "example" | "step"
    depth_decay: float = 1.0  # factor on the learning rate for each stage nearer to the image
    epochs: int = 1  # of the whole stage
    beside_loss: Callable[[Context], Array] | None = None  # of a task, of what places have beside logits
    # Of its goals, see tasks.kinds.
    mirror: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None
    grid: tuple[int, int] | None = None  # of the places that are mirrored, see DataSet

    @property
    def needs(self) -> tuple[str, ...]:
        """What the recipes read of a network beyond its logits."""
        return tuple(sorted({need for recipe in self.recipes for need in recipe.needs}))

    @property
    def needs_of_teachers(self) -> tuple[str, ...]:
        """What those recipes that have teachers read of them beyond their logits."""
        return tuple(sorted({need for r in self.recipes if r.min_teachers for need in r.needs}))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage's batches are made from: constant while it runs, traced."""

    examples: Examples
    teachers: tuple[PyTree, ...]  # variables of every frozen architecture [K_i,...]; at the end, with a bank
    cached_logits: Array | None  # [K,N,...] or [K,S*B,...], where they were asked before; see teacher_cache
    prepared: Mapping[str, Callable]  # fused networks fitted before, as jax.tree_util.Partial
    temperatures: Array  # [T] the distinct ones; hyper["target"] = recipe * T + temperature
    key: Array  # of the stage
    # variables of frozen stages, of all members; or what else the network is only trained with
    frozen: PyTree = dataclasses.field(default_factory=dict)
    bank: tuple[PyTree, ...] = ()  # of `teachers` at T shares of their training [T,K_i,...]; see _asker


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Inputs:
    context: Context
    table: Targets | None  # targets of every (recipe, temperature), stacked; see _table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Forward:
    """A member's outputs on the rows of this device, and the way back from these to its parameters."""

    outputs: Outputs
    vjp: Callable
    model_state: PyTree


def same_family(a: Recipe, b: Recipe) -> bool:
    """Whether two recipes can be trained as one population, by one program.

    They may differ in name, weigh, aim, prepare, needs, hears_all and the values of `hyper`. Targets that
    depend on the student have no row in the shared table, so there weigh and aim count too.
    """
    if tuple(name for name, _ in a.hyper) != tuple(name for name, _ in b.hyper):
        return False
    a = a._replace(name=b.name, needs=b.needs, hears_all=b.hears_all, hyper=b.hyper)
    return a == b if a.reads_student else a._replace(weigh=b.weigh, aim=b.aim, prepare=b.prepare) == b


class Drawn(NamedTuple):
    """What a first state has beside the variables."""

    num_examples: int  # of a dense task of places
    student: Outputs  # shapes of what a member says of two images
    aux: PyTree  # [M,...]
    anew: PyTree | None  # variables [M,...] that nobody begins with, for recipes that are `decoupled`


def init_state(program: Program, variables: PyTree, keys: Array, stage_data: StageData) -> TrainState:
    """The first state of every member, stacked, from variables [M,...] of whole networks and keys [M].

    What is trained begins there. What is frozen stands beside it, unless `stage_data` has it for all members.
    """
    drawn = draw_first(program, variables, keys, stage_data)
    return first_state(program, not stage_data.frozen, variables, keys, drawn)


def draw_first(program: Program, variables: PyTree, keys: Array, stage_data: StageData) -> Drawn:
    """What is drawn for `first_state`, call by call: compiled into one program it is rounded otherwise."""
    recipe = program.recipes[0]

    def outputs_of(variables: PyTree, stage_data: StageData) -> tuple[Outputs, TeacherOutputs | None]:
        batch = loading.gather(stage_data.examples, jnp.arange(2))
        student = program.model.apply(population.take(variables, 0), batch.image)[0]
        student = with_features(student, program.needs, program.model)
        teacher: TeacherOutputs | None = None
        cached = stage_data.cached_logits  # of teachers who are no longer needed
        if program.teachers:
            teacher = _asker(program, stage_data, jnp.int32(0))(batch.image, batch.given_logits)
        elif cached is not None:
            teacher = TeacherOutputs(cached[:, :2].astype(jnp.float32), (), ())
        if not places.are_many(stage_data.examples):
            return student, teacher
        return places.merge_outputs(student), None if teacher is None else places.merge_teachers(teacher)

    student, teacher = jax.eval_shape(outputs_of, variables, stage_data)
    of_cohort = _keys_of_cohorts(keys, recipe.num_peers)
    aux = jax.vmap(lambda key: recipe.init_aux(key, student, teacher))(of_cohort)
    anew = _drawn_anew(program, keys, stage_data) if recipe.decoupled else None
    return Drawn(stage_data.examples.label.size, student, aux, anew)


@partial(jax.jit, static_argnums=1)  # a program instead of one for every operation
def _keys_of_cohorts(keys: Array, num_peers: int) -> Array:
    """What belongs to a cohort is drawn from these [M]: alike in all its peers, who stand side by side."""
    first = np.arange(len(keys)) // num_peers * num_peers
    return jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys[first])


def first_state(
    program: Program, owns_frozen: bool, variables: PyTree, keys: Array, drawn: Drawn
) -> TrainState:
    """`init_state` of what is drawn: copies and zeros."""
    recipe = program.recipes[0]
    variables, frozen = stages.split(program.model, variables)
    params, anew = variables["params"], variables if drawn.anew is None else drawn.anew
    return TrainState(
        params=params,
        aux=drawn.aux,
        model_state={name: value for name, value in variables.items() if name != "params"},
        opt_state=jax.vmap(partial(_first_opt_state, program))((params, drawn.aux)),
        average=jax.tree.map(jnp.copy, dict(variables)) if program.averages else {},
        mem=jax.vmap(lambda own: recipe.init_mem(own, drawn.student, drawn.num_examples))(anew),
        key=keys,
        frozen=frozen if owns_frozen else {},
    )


def _drawn_anew(program: Program, keys: Array, stage_data: StageData) -> PyTree:
    """Variables [M,...] of networks that nobody has begun with, of the stages that are trained."""
    shape = stage_data.examples.image.shape[1:]
    image = jnp.zeros((1, *shape), jnp.float32)

    def draw(key: Array) -> PyTree:
        drawn = program.model.init(jax.random.fold_in(key, ANEW), image)
        return stages.split(program.model, drawn)[0]

    return jax.lax.map(draw, keys)


def make_step(program: Program) -> Callable:
    """(states [M], hyper {name: [M,...]}, indices [B] or [M,B], step [], stage_data) -> (states, losses [M]).

    Where the layout has several devices this is one device's part, to be called inside `mesh.spread`.
    """
    recipe, layout = program.recipes[0], program.layout

    def make_inputs(
        keys: tuple[Array, Array], indices: Array, step: Array, stage_data: StageData, shared: bool
    ) -> _Inputs:
        batch, key = _batch(program, keys, indices, step, stage_data)
        progress = step.astype(jnp.float32) / program.num_steps
        context = Context(
            batch, Absent, stage_data.prepared, {}, key, step, progress, steps_of_update=program.accumulate
        )
        if "teach" not in recipe.reads_student:
            ask = _asker(program, stage_data, step)
            if stage_data.cached_logits is not None:
                rows = (
                    indices
                    if program.cache_index == "example"
                    else step * len(indices) + jnp.arange(len(indices))
                )
                cached = TeacherOutputs(stage_data.cached_logits[:, rows].astype(jnp.float32), (), ())
                ask = lambda image, given_logits: cached  # noqa: E731
            elif shared:
                ask = mesh.shared_out(ask, layout)
            teacher = recipe.teach(context, _networks(program, ask, stage_data, {}, batch))
            context = dataclasses.replace(context, teacher=places.silence(teacher, batch.valid))
        temperatures = _annealed_temperature(program, stage_data.temperatures, progress)
        table = None if recipe.reads_student else _table(program.recipes, context, temperatures)
        return jax.lax.stop_gradient(_Inputs(context, table))

    def with_targets(inputs: _Inputs, context: Context, stage_data: StageData) -> Context:
        """The context with teachers and targets, neither of which passes a gradient on."""
        if inputs.table is not None:
            targets = jax.tree.map(lambda leaf: leaf[context.hyper["target"]], inputs.table)
            return dataclasses.replace(context, targets=targets)
        known = jax.lax.stop_gradient(context)
        if "teach" in recipe.reads_student:
            ask = _asker(program, stage_data, context.step)
            networks = _networks(program, ask, stage_data, known.state.frozen, known.batch)
            teacher = places.silence(recipe.teach(known, networks), known.batch.valid)
            known = dataclasses.replace(known, teacher=teacher)
        found: PyTree = known.teacher, _aim(recipe, known)  # either may be None, as in any context
        teacher, targets = jax.lax.stop_gradient(found)
        return dataclasses.replace(context, teacher=teacher, targets=targets)

    def keys_of(state: TrainState, step: Array) -> Array:
        return jax.random.split(jax.random.fold_in(state.key, step), 4)

    def forward(state: TrainState, hyper: Hyper, inputs: _Inputs, stage_data: StageData) -> _Forward:
        _, view_key, apply_key, _ = keys_of(state, inputs.context.step)
        image = _seen(recipe, inputs.context.batch, hyper).image
        own_rows = partial(mesh.own_rows, layout=layout)
        image = own_rows(image) if image.ndim == 4 else jax.vmap(own_rows)(image)
        apply_key = mesh.own_key(apply_key, layout)

        def outputs_of(params: PyTree) -> tuple[Outputs, PyTree]:
            variables = recipe.view({"params": params, **state.model_state}, state, hyper, view_key)
            # What is frozen does not depend on the parameters: JAX takes no gradient through it.
            variables = stages.join(variables, stage_data.frozen, state.frozen)
            with stages.still(program.model):
                outputs, model_state = program.model.apply(variables, image, train=True, key=apply_key)
            model_state, _ = stages.split(program.model, model_state)
            # What the view adds is its own.
            model_state = {name: model_state[name] for name in state.model_state}
            outputs = with_features(outputs, program.needs, program.model)
            dense = places.are_many(stage_data.examples)
            return places.merge_outputs(outputs) if dense else outputs, model_state

        outputs, vjp, model_state = jax.vjp(outputs_of, state.params, has_aux=True)
        return _Forward(outputs, vjp, model_state)

    def whole(outputs: Outputs, batch: Batch) -> Outputs:
        """What the student says of the whole batch, and nothing where there is no place."""
        return places.silence(mesh.whole_batch(outputs, layout), batch.valid)

    def context_of(state: TrainState, hyper: Hyper, inputs: _Inputs, forward_pass: _Forward) -> Context:
        *_, seam_key = keys_of(state, inputs.context.step)
        return dataclasses.replace(
            inputs.context,
            batch=_seen(recipe, inputs.context.batch, hyper),
            hyper=_annealed(program, hyper, inputs.context.progress),
            state=state,
            key=seam_key,
            student=whole(forward_pass.outputs, inputs.context.batch),
        )

    def say(
        state: TrainState, hyper: Hyper, inputs: _Inputs, forward_pass: _Forward, stage_data: StageData
    ) -> Mapping[str, Array]:
        """What a peer says of the batch, or all branches of a member [P,...], without a gradient."""
        known = jax.lax.stop_gradient(context_of(state, hyper, inputs, forward_pass))
        ask = _asker(program, stage_data, known.step)
        networks = _networks(program, ask, stage_data, state.frozen, known.batch)
        return jax.lax.stop_gradient({"logits": known.student.logits, **recipe.tell(known, networks)})

    def update(
        state: TrainState,
        hyper: Hyper,
        inputs: _Inputs,
        forward_pass: _Forward,
        peers: Peers,
        stage_data: StageData,
    ) -> tuple[TrainState, Array]:
        context = context_of(state, hyper, inputs, forward_pass)
        hyper, step = context.hyper, context.step
        context = with_targets(inputs, dataclasses.replace(context, peers=peers), stage_data)

        def loss_of(outputs: Outputs, aux: PyTree) -> Array:
            batch, student = context.batch, whole(outputs, context.batch)
            known = dataclasses.replace(context, student=student, state=dataclasses.replace(state, aux=aux))
            loss = recipe.term(known)
            if program.beside_loss is not None:
                loss = of_places(loss, batch) + hyper.get("alpha", 1.0) * program.beside_loss(known)
            return mean_of_places(loss, batch)

        loss, (by_outputs, by_aux) = jax.value_and_grad(loss_of, argnums=(0, 1))(
            forward_pass.outputs, state.aux
        )
        (by_params,) = mesh.sum_over_data(forward_pass.vjp(by_outputs), layout)
        if (penalty_of := recipe.penalty) is not None:
            penalty, more = jax.value_and_grad(
                lambda params: penalty_of(dataclasses.replace(state, params=params), hyper)
            )(state.params)
            loss, by_params = loss + penalty, jax.tree.map(jnp.add, by_params, more)
        state = _apply_gradients(
            program, recipe, hyper, step, (by_params, by_aux), state, forward_pass.model_state
        )
        state = recipe.after(state, context)
        return (_with_average(program, state, hyper["ema_decay"], step) if program.averages else state), loss

    def forward_and_update(member: tuple, shared: tuple) -> tuple[TrainState, Array]:
        """Both passes of a member that reads nobody else's logits."""
        state, hyper, own_indices = member
        inputs, step, stage_data = shared
        if inputs is None:
            keys = state.key, keys_of(state, step)[0]
            inputs = make_inputs(keys, own_indices, step, stage_data, shared=False)
        forward_pass, peers = forward(state, hyper, inputs, stage_data), Absent
        if recipe.sharing is not None:
            peers = _peers(say(state, hyper, inputs, forward_pass, stage_data), jnp.int32(0))
        return update(state, hyper, inputs, forward_pass, peers, stage_data)

    def forward_of_one(member: tuple, shared: tuple) -> tuple[_Forward, Mapping[str, Array]]:
        (state, hyper), (inputs, stage_data) = member, shared
        forward_pass = forward(state, hyper, inputs, stage_data)
        return forward_pass, say(state, hyper, inputs, forward_pass, stage_data)

    def update_of_one(member: tuple, shared: tuple) -> tuple[TrainState, Array]:
        (state, hyper, forward_pass), (inputs, told, stage_data) = member, shared
        peers = _peers({name: leaf[hyper["mates"]] for name, leaf in told.items()}, hyper["place"])
        return update(state, hyper, inputs, forward_pass, peers, stage_data)

    def population_step(
        states: TrainState, hyper: Hyper, indices: Array, step: Array, stage_data: StageData
    ) -> tuple[TrainState, Array]:
        member_loop = layout.member_loop
        if indices.ndim == 2:
            return over_members(forward_and_update, member_loop)(
                (states, hyper, indices), (None, step, stage_data)
            )
        inputs = make_inputs(_shared_keys(stage_data, step), indices, step, stage_data, shared=True)
        if recipe.num_peers == 1:
            return over_members(forward_and_update, member_loop)(
                (states, hyper, None), (inputs, step, stage_data)
            )
        # jit, so that it is traced once: vjps that were traced apart differ, and cannot be stacked.
        forward_pass, told = over_members(jax.jit(forward_of_one), member_loop)(
            (states, hyper), (inputs, stage_data)
        )
        told = mesh.all_members(told, layout)
        return over_members(update_of_one, member_loop)(
            (states, hyper, forward_pass), (inputs, told, stage_data)
        )

    return population_step


@lru_cache
def compiled_teacher_logits(program: Program) -> Callable:
    """(batches [S,B], stage_data) -> [S,K,B,C], the frozen teachers' logits on a stage's first S batches."""

    def ask(batches: Array, stage_data: StageData) -> Array:
        def one(numbered: tuple[Array, Array]) -> Array:
            step, indices = numbered
            batch, _ = _batch(program, _shared_keys(stage_data, step), indices, step, stage_data)
            # Of a dense task [K,B,L,C].
            ask_about = mesh.shared_out(_asker(program, stage_data, step), program.layout)
            return ask_about(batch.image, batch.given_logits).logits

        return jax.lax.map(one, (jnp.arange(len(batches)), batches))

    return mesh.jit(mesh.on_all(ask, program.layout))


def _shared_keys(stage_data: StageData, step: Array) -> tuple[Array, Array]:
    """The keys of a batch that all members share: that of the whole stage, and the step's own."""
    return stage_data.key, jax.random.fold_in(stage_data.key, step)


def _batch(
    program: Program, keys: tuple[Array, Array], indices: Array, step: Array, stage_data: StageData
) -> tuple[Batch, Array]:
    """The batch after the stimulus, and the key for the other seams; of the stage's key and the step's.

    Pixels that have labels are moved with these before the stimulus, alike for all that are shown them, and
    images are mirrored with the grid of their places.
    """
    stage_key, step_key = keys
    stimulus_key, key = jax.random.split(step_key)
    batch = loading.gather(stage_data.examples, indices)
    stimulus = program.recipes[0].stimulus
    arguments = _augmentation(program, stage_key, batch.index, step)
    dense = places.are_many(stage_data.examples)
    batch = places.number(batch) if dense else batch
    if dense and (moving := places.moves(arguments)):
        if program.mirror is None or program.grid is None:
            batch = places.move(batch, lambda both: augment.augment(stimulus_key, both, **moving))
        else:
            by_lot = jax.random.bernoulli(jax.random.fold_in(stimulus_key, MIRRORING), shape=indices.shape)
            mirrored = moving["flip"] if isinstance(moving["flip"], Array) else by_lot
            batch = places.mirror(batch, mirrored, program.mirror, program.grid)
        arguments = {name: value for name, value in arguments.items() if name not in moving}
    augment_images: Augment = partial(_augmented, arguments)
    if program.mixup or program.cutmix:
        mixing_key = jax.random.fold_in(stimulus_key, MIXING)
        mixture = mixing.draw(mixing_key, batch.image.shape, mixup=program.mixup, cutmix=program.cutmix)
        batch = mixing.mix_labels(mixture, batch)
        augment_images = mixing.mix_after(augment_images, mixture)
    networks = _networks(program, _asker(program, stage_data, step), stage_data, {})
    batch = stimulus(stimulus_key, batch, augment_images, networks)
    return places.merge_batch(batch) if dense else batch, key


def _asker(program: Program, stage_data: StageData, step: Array) -> Callable[..., TeacherOutputs]:
    """(images [B,h,w,c], what given teachers say of them [B,K,C] or None) -> what all frozen teachers say.

    Places are not merged: [K,B,L,C] of a dense task. With a bank they are what they were at the same share of
    their own training, which the next of its T checkpoints has.
    """
    variables = stage_data.teachers
    if stage_data.bank:
        num_checkpoints = len(jax.tree.leaves(stage_data.bank)[0])
        at = step * num_checkpoints // program.num_steps
        variables = jax.tree.map(lambda leaf: leaf[at], stage_data.bank)

    def ask(image: Array, given_logits: Array | None) -> TeacherOutputs:
        return apply_ensemble(program.teachers, variables, image, program.needs_of_teachers, given_logits)

    return ask


def _networks(
    program: Program,
    ask: Callable[..., TeacherOutputs],
    stage_data: StageData,
    frozen: PyTree,
    batch: Batch | None = None,
) -> Networks:
    """The networks a seam may ask; `frozen` is a member's own, where members differ in it.

    What given teachers say is of the very images of a batch, or of those that it was made from, if of any.
    """
    dense = places.are_many(stage_data.examples)

    def teachers(image: Array) -> TeacherOutputs:
        given_logits = None
        if batch is not None and (image is batch.image or image is batch.given_image):
            given_logits = batch.given_logits
        teacher = ask(image, given_logits)
        return places.merge_teachers(teacher) if dense else teacher

    def student(variables: PyTree, image: Array, **further: Any) -> tuple[Outputs, PyTree]:
        whole = stages.join(variables, stage_data.frozen, frozen)
        with stages.still(program.model):
            outputs, state = program.model.apply(whole, image, **further)
        outputs = places.merge_outputs(outputs) if dense else outputs
        return outputs, stages.split(program.model, state)[0]

    return Networks(teachers, student)


def _seen(recipe: Recipe, batch: Batch, hyper: Hyper) -> Batch:
    """The batch with the images that a member sees, where each peer has a view of its own.

    Of peers that are branches of one member it sees the views of all of them, [P,B,h,w,c].
    """
    if PEERS not in batch.views:
        return batch
    views = batch.views[PEERS]
    return dataclasses.replace(batch, image=views if recipe.sharing else views[hyper["place"]])


def _peers(told: Mapping[str, Array], place: Array) -> Peers:
    """A cohort, from what its P members say; who broke down must not take the others along."""
    finite = jnp.isfinite(told["logits"]).all(axis=(1, 2))

    def kept(leaf: Array) -> Array:
        return jnp.where(finite.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0.0)

    told = {name: kept(leaf) for name, leaf in told.items()}
    return Peers(told.pop("logits"), place, finite, told)


def _augmented(arguments: Mapping[str, Any], key: Array, images: Array) -> Array:
    return augment.augment(key, images, **arguments)


def _augmentation(program: Program, stage_key: Array, rows: Array, step: Array) -> dict[str, Any]:
    """The arguments of `augment` at a step, for the images `rows` [B] of the data."""
    arguments: dict[str, Any] = dict(program.augmentation)
    if arguments.pop("alternating_flip", False):
        epoch = step // (program.num_steps // program.epochs)
        arguments["flip"] = augment.alternately(stage_key, rows, epoch)
    return arguments


def averaged(program: Program, state: TrainState) -> TrainState:
    """The state with the weights that are used of it: its last ones, or the average of these."""
    if program.averages:
        params, model_state = state.average["params"], {n: state.average[n] for n in state.model_state}
    else:
        params, _ = program.optimizer.averaged(state.opt_state["inner"], (state.params, state.aux))
        model_state = state.model_state
    return dataclasses.replace(state, params=params, model_state=model_state)


def deployed(program: Program, state: TrainState, hyper: Hyper) -> PyTree:
    """What is kept as best of a member; of branches on one stem all of them."""
    return program.recipes[0].deploy(averaged(program, state), hyper)


def leading(program: Program, variables: PyTree) -> PyTree:
    """What is validated and exported of what is `deployed`: of branches on one stem the leader's network."""
    model, recipe = program.model, program.recipes[0]
    return model.branch(variables, recipe.leader) if isinstance(model, Branched) else variables


def _with_average(program: Program, state: TrainState, decay: Array, step: Array) -> TrainState:
    """The state with the weights after an update taken into their average, batch statistics too.

    The decay begins lower, (1 + t) / (10 + t) at update t, so that the first weights are soon forgotten.
    """
    t = (step // program.accumulate).astype(jnp.float32)
    decay = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    decay = jnp.where(_updates_at(program, step), decay, 1.0)
    now = {"params": state.params, **state.model_state}
    average = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.average, now)
    return dataclasses.replace(state, average=average)


def _annealed(program: Program, hyper: Hyper, progress: Array) -> Hyper:
    """A member's numbers at a point of training: `alpha` and `temperature` follow their schedules.

    A factor f on the teachers' weight makes alpha 1 - (1 - alpha) f, one on the temperature 1 + (T - 1) f:
    alpha = 1 and T = 1 are what they are under any schedule.
    """
    hyper = dict(hyper)
    if "alpha" in hyper and program.alpha_schedule != optimizers.constant():
        hyper["alpha"] = 1.0 - (1.0 - hyper["alpha"]) * program.alpha_schedule(progress)
    if "temperature" in hyper:
        hyper["temperature"] = _annealed_temperature(program, hyper["temperature"], progress)
    return hyper


def _annealed_temperature(program: Program, temperature: Array, progress: Array) -> Array:
    if program.temperature_schedule == optimizers.constant():
        return temperature
    return 1.0 + (temperature - 1.0) * program.temperature_schedule(progress)


def _first_opt_state(program: Program, trained: PyTree) -> dict[str, PyTree]:
    """The optimiser's state of one member, and the sum of gradients where several steps make an update."""
    summed = {"summed": jax.tree.map(jnp.zeros_like, trained)} if program.accumulate > 1 else {}
    return {"inner": program.optimizer(1.0, 0.0).init(trained), **summed}


def _updates_at(program: Program, step: Array) -> Array:
    """Whether a step ends in an update."""
    return (step + 1) % program.accumulate == 0


def _apply_gradients(
    program: Program,
    recipe: Recipe,
    hyper: Hyper,
    step: Array,
    grads: PyTree,
    state: TrainState,
    model_state: PyTree,
) -> TrainState:
    """The state after one step of the optimiser; what the recipe does not train stays what it was."""
    trained, opt_state = (state.params, state.aux), state.opt_state

    def update(grads: PyTree) -> tuple[PyTree, PyTree]:
        factor = optimizers.warmed_up(program.schedule, program.warmup, step, program.num_steps)
        transform = program.optimizer(hyper["learning_rate"] * factor, hyper["weight_decay"])
        if recipe.trainable is not every_leaf:  # what is not trained has no part in the gradient's norm
            of_params = _where_trained(recipe, grads[0], jax.tree.map(jnp.zeros_like, grads[0]))
            grads = (of_params, grads[1])
        if program.clips:
            grads, _ = optax.clip_by_global_norm(hyper["clip_norm"]).update(grads, optax.EmptyState())
        # optax mixes its integer step count into float arithmetic, which a strict session forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, inner = transform.update(grads, opt_state["inner"], trained)
            if program.depth_decay != 1.0:
                updates = (_by_depth(program, updates[0]), updates[1])
            return optax.apply_updates(trained, updates), inner

    if program.accumulate == 1:
        (params, aux), inner = update(grads)
        opt_state = {"inner": inner}
    else:
        # Not optax.MultiSteps: it computes an update in every step and throws all but one in so many away.
        summed = jax.tree.map(jnp.add, opt_state["summed"], grads)
        ends = _updates_at(program, step)
        (params, aux), inner = jax.lax.cond(
            ends,
            lambda: update(jax.tree.map(lambda leaf: leaf / program.accumulate, summed)),
            lambda: (trained, opt_state["inner"]),
        )
        summed = jax.tree.map(lambda leaf: jnp.where(ends, 0.0, leaf), summed)
        opt_state = {"inner": inner, "summed": summed}
    params = _where_trained(recipe, params, state.params)
    model_state = {n: _where_trained(recipe, new, state.model_state[n], n) for n, new in model_state.items()}
    return dataclasses.replace(state, params=params, aux=aux, model_state=model_state, opt_state=opt_state)


def _where_trained(recipe: Recipe, new: PyTree, old: PyTree, kind: str = "params") -> PyTree:
    """The leaves of `new` that a recipe trains, and those of `old` that it does not."""

    def chosen(path: tuple[Any, ...], new: Array, old: Array) -> Array:
        place = path_of(path)
        return new if recipe.trainable(f"{kind}/{place}") else old

    return jax.tree_util.tree_map_with_path(chosen, new, old)


def _by_depth(program: Program, updates: PyTree) -> PyTree:
    """Updates of the parameters, each stage's as if its learning rate were `depth_decay`**depth of that."""
    model = program.model
    return {
        name: jax.tree.map(
            lambda leaf, name=name: leaf * program.depth_decay ** stages.depth_of(model, name), of
        )
        for name, of in updates.items()
    }


def _aim(recipe: Recipe, context: Context) -> Targets | None:
    """The recipe's targets, of those teachers alone who speak of an example, if not all do."""
    w: Any = recipe.weigh(context)  # None, as the targets, of a recipe without teachers alone
    speaks = context.batch.speaks
    if speaks is None or not recipe.min_teachers:
        return recipe.aim(context, w)
    hear = partial(heard, speaks=speaks)
    targets: Any = recipe.aim(context, hear(w) if recipe.sharing is None else jax.vmap(hear)(w))
    # A target of no mass is no distribution where it is the mean of nobody; what is 0 must have a gradient.
    anybody = targets.mass[..., None] > 0
    probs = jnp.where(anybody, targets.probs, 1.0 / targets.probs.shape[-1])
    return dataclasses.replace(targets, probs=probs)


def _table(recipes: tuple[Recipe, ...], context: Context, temperatures: Array) -> Targets | None:
    """Targets [R*T,Q,B,C] of every recipe at every temperature; members pick a row by hyper["target"].

    Targets that do not depend on the student are computed once a batch, not once a member. Recipes of one
    family have as many targets as each other.
    """

    def at(recipe: Recipe, temperature: Array) -> Targets | None:
        own = {name: jnp.float32(value) for name, value in recipe.hyper}
        warm = dataclasses.replace(context, hyper={"temperature": temperature, **own})
        return _aim(recipe, warm)

    rows = [jax.vmap(lambda t, r=recipe: at(r, t))(temperatures) for recipe in recipes]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
