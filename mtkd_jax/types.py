"""The records that cross a module boundary, with the shape of every field.

Axes: M members, K teachers, H heads, Q targets, B batch, C classes, N examples, L places of an example,
D features, h w height and width. Of a task with several places an example (pixels, boxes, tokens, frames)
the training step makes every place an example: what is [B] there has B * L rows. Logits are always
unnormalised. `alpha` is the weight of the HARD labels, as in the founding
paper (Zuchniak 2023, arXiv 2302.07215); many code bases use the opposite sign.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Absent: Any = None  # None in the place of a field that is not available here, for the type checker
Scores = jax.Array  # what a fusion rule returns: [B,C], the largest entry is the decision


def path_of(place: tuple[Any, ...]) -> str:
    """The path of a leaf of a pytree, as JAX gives it, such as "params/dense1/kernel"."""
    return jax.tree_util.keystr(place, simple=True, separator="/")


def printable(text: object) -> str:
    """A text as one line that a terminal shows and does not obey: control characters as Python writes them.

    Those that turn the direction of writing or are not seen at all are among them; blanks of every width and
    the joiners that several scripts are written with are not. A second time it changes nothing.

    Examples:
        >>> printable("a\\nb\\x1b[31m")
        'a\\\\nb\\\\x1b[31m'
    """
    return "".join(c.encode("unicode_escape").decode() if _is_obeyed(c) else c for c in str(text))


def _is_obeyed(character: str) -> bool:
    kind = unicodedata.category(character)  # control, half of a pair, line or paragraph; format
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in "\u200c\u200d")


class UserError(ValueError):
    """Something the user can mend. One line: what is wrong, where, and what would be right."""

    def __init__(self, message: str):
        super().__init__(printable(message))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of a traceback."""
        return [f"mtkd_jax: {self}"]


pytree = jax.tree_util.register_dataclass  # for a frozen dataclass that jax maps over


# --- data ---------------------------------------------------------------------------------------------


class Images(Protocol):
    """Images [N,h,w,c] that are read when they are indexed, as far as they are used like an array.

    What has these is taken wherever an array of images is; `data.streams` reads them from files.
    """

    shape: tuple[int, ...]  # (N, h, w, c)
    dtype: np.dtype

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows as an array [n,h,w,c]."""
        ...

    def identity(self) -> bytes:
        """What differs where the images differ, found out without reading all of them."""
        ...


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What a source returns, on the host. Images are uint8 (0..255) or float32 (used as they are)."""

    name: str
    train_images: np.ndarray | Images  # [N,h,w,c]; arrays, or read when they are indexed
    train_labels: np.ndarray  # [N] int32; [N,L] of a task with L places an example, -1: no place there
    test_images: np.ndarray | Images
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    # [N] int32, such as one number for each aircraft or camera sequence.
    train_groups: np.ndarray | None = None
    test_groups: np.ndarray | None = None  # [n]: the same numbers mean the same groups
    val_rows: np.ndarray | None = None  # [v] rows of train_images that the publisher set aside to validate on
    notes: tuple[str, ...] = ()  # what a reader of the report must know, such as images that were skipped
    fit: str = ""  # how image files were brought to size, see images.read; "" where there were none
    train_names: tuple[str, ...] | None = None  # [N] what the images are called, such as "cat/1.png"
    test_names: tuple[str, ...] | None = None  # the same; None where they have no names
    train_teachers: np.ndarray | None = None  # [N,K] bool, who teaches what; or [N] int32, -1: nobody
    column_names: tuple[str, ...] = ()  # [c] what the channels are called, of a table's rows [N,1,1,c]
    task: str = "classes"  # the record in mtkd_jax/tasks/ that tells what a place is, and its metrics
    train_goals: Mapping[str, np.ndarray] | None = None  # {name: [N,L,d] float32}, further labels of places
    test_goals: Mapping[str, np.ndarray] | None = None
    grid: tuple[int, int] | None = None  # (rows, columns) of L places that stand row by row over an image
    token_names: tuple[str, ...] = ()  # what the numbers of sources are, from data.tokens.RESERVED on
    token_unit: str = ""  # what a token of a source is, of data.tokens.UNITS

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_dense(self) -> bool:
        """Whether an example has several places, each with a label of its own."""
        return self.train_labels.ndim == 2


@pytree
@dataclasses.dataclass(frozen=True)
class Examples:
    """Arrays that stay on the device and are gathered from inside the compiled step."""

    image: Array  # [N,h,w,c] uint8 or float32
    label: Array  # [N] int32; [N,L] of a dense task, -1 where there is no place
    labelled: Array  # [N] bool; False hides the label from every loss
    weight: Array | None = None  # [N] or [N,L] float32, how much the hard label counts; None: all alike
    given_logits: Array | None = None  # [N,K,C] float32, logits of teachers of whom there is nothing else
    speaks: Array | None = None  # [N,K] bool, which of all teachers teach an example; None: all of them
    row: Array | None = None  # [N] int32, of the data, where these are some of its examples
    goals: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # {name: [N,L,d]}, see DataSet


@pytree
@dataclasses.dataclass(frozen=True)
class Mixed:
    """The hard labels of the images that a batch is mixed with, and how much its own count beside them."""

    share: Array  # [B] float32 in [0.5, 1], of the own label
    label: Array  # [B] int32
    labelled: Array  # [B] bool
    weight: Array | None  # [B] float32


@pytree
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch after the stimulus: images are float32 in [0,1] (or whatever a float source holds).

    Of a dense task all but images and `given_logits` have a row for each of the B * L places: so [B] reads
    below.
    """

    image: Array  # [B,h,w,c]
    label: Array  # [B] int32
    index: Array  # [B] int32, the row in the data; of a place row * L + place
    labelled: Array  # [B] bool
    weight: Array | None = None  # [B] float32, of the hard label; None: all alike
    mixed: Mixed | None = None  # the labels of the images that are mixed in; see data.mixing
    views: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # further images, by name
    given_logits: Array | None = None  # [B,K,C], see Examples
    given_image: Array | None = None  # [B,h,w,c] that those are of: the data's own, before the stimulus
    speaks: Array | None = None  # [B,K] bool, see Examples
    valid: Array | None = None  # [B] bool, of a dense task: False where there is no place. None: all are
    goals: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # {name: [B,d]}, see DataSet


# --- networks -----------------------------------------------------------------------------------------


@pytree
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What every network returns. A tap nobody reads costs nothing under jit.

    One head: `logits` is that head. H heads: `logits` = log mean_h softmax(heads), so that softmax(logits)
    is the mean prediction; cross-entropy, metrics and export read `logits`. A network of a dense task has an
    axis of places behind that of the batch, [B,L,C] and [H,B,L,C]; seams see B * L places in one axis.
    """

    logits: Array  # [B,C] float32
    heads: Array  # [H,B,C] float32, H >= 1
    embedding: Array  # [B,D] float32, what the heads read; None of a teacher whose logits alone are known
    features: Mapping[str, Array]  # {"stage1": [B,h,w,d], ...}
    beside: Mapping[str, Array] = dataclasses.field(
        default_factory=dict
    )  # further predictions of places, {name: [B,L,d]}

    @property
    def exported(self) -> Array:
        """What an exported network returns: logits, and behind them in the last axis `beside`, by name."""
        if not self.beside:
            return self.logits
        return jax.numpy.concatenate([self.logits, *(self.beside[name] for name in sorted(self.beside))], -1)


@runtime_checkable
class Classifier(Protocol):
    """What learns from rows and says probabilities, as classifiers of scikit-learn do: a teacher."""

    def fit(self, rows: np.ndarray, labels: np.ndarray) -> Any:
        """Learn from rows [N,D] float64 and labels [N] int32; sets `classes_`, the labels that there were."""
        ...

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities [n,c] of rows [n,D], one for each of `classes_`."""
        ...


class TeacherOutputs(NamedTuple):
    """What K frozen teachers say of one batch. Only logits stack: architectures differ in the rest."""

    logits: Array  # [K,B,C] float32
    embedding: tuple[Array, ...]  # K x [B,D_k]
    features: tuple[Mapping[str, Array], ...]  # K x {name: [B,h,w,d]}
    beside: Mapping[str, Array] = {}  # {name: [K,B,d]}, asked for by "beside" in a recipe's needs


class Task(NamedTuple):
    """What data and stage ask of a network; the first argument of every `models` function."""

    num_classes: int
    num_heads: int
    mean: tuple[float, ...]  # per channel, of the training images scaled as in Batch
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """The only seam to Flax: two pure functions over plain dicts. Hashable, so a jit key.

    `module(image, train)` is a Linen module that returns `Outputs`. It may have `stages`, names in order of
    depth, the last one "heads"; the first part of the path of each of its variables is a stage's name, or
    begins with it and "_", as "stage3_block2" does; else the module's own `stage_of(name)` says which it is.
    And it may have a method `calibrate`: training images [n,h,w,c] as the network is given them -> {path of a
    variable: value}, what is computed and not drawn. And `head_scale`, where its logits are that factor
    times what its linear heads say.
    """

    name: str
    module: Any  # None of a teacher that is no network here: what it would cost is not known
    convolutional: bool = False  # decides the loop over members on a CPU: `map` instead of `vmap`
    pretrained: str = ""  # published weights, or a file: where the body's come from instead of being drawn
    trainable: str = ""  # the first stage that is trained, those before are frozen; "" = all are trained

    @property
    def is_network(self) -> bool:
        """Whether it is a network of ours, which has weights and a cost."""
        return self.module is not None

    @property
    def can_be_asked(self) -> bool:
        """Whether it says something of any image, and not of the data's alone."""
        return True

    @property
    def deployed(self) -> Model:
        """What is evaluated and exported of it: itself; of several that share a stem, the network of one."""
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """Names in order of depth; () where the module says none."""
        return tuple(getattr(self.module, "stages", ()))

    @property
    def frozen_stages(self) -> tuple[str, ...]:
        """Those before `trainable`."""
        return self.stages[: self.stages.index(self.trainable)] if self.trainable else ()

    @property
    def head_scale(self) -> float:
        """Factor between what its linear heads say and its logits; 1 where the module says none."""
        return getattr(self.module, "head_scale", 1.0)

    def stage_of(self, name: str) -> str:
        """The stage of what has this name in the variables; "" where it is none's."""
        if hasattr(self.module, "stage_of"):  # where layers are called otherwise
            return self.module.stage_of(name)
        return next((s for s in self.stages if name == s or name.startswith(f"{s}_")), "")

    def init(self, key: Array, image: Array) -> dict[str, PyTree]:
        """Variables {"params": ..., "batch_stats": ... if any} for images [B,h,w,c]."""
        return self.module.init({"params": key}, image, train=False)

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """Outputs and the new non-parameter state ({} for networks without any). `key` feeds dropout.

        Training keeps frozen stages as they are by `models.stages.still`.
        """
        state = {name: value for name, value in variables.items() if name != "params"}
        if not train:
            return self.module.apply(variables, image, train=False), state
        rngs = {} if key is None else {"dropout": key}
        return self.module.apply(variables, image, train=True, mutable=list(state), rngs=rngs)

    def answer(self, variables: PyTree, image: Array, given_logits: Array | None) -> Outputs:
        """Its outputs as a frozen teacher; `given_logits` [B,K,C] are of the teachers that are files."""
        return self.apply(variables, image)[0]


# --- populations --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Population:
    """M trained networks of ONE architecture: every leaf of `variables` and `hyper` leads with M."""

    model: Model
    variables: PyTree
    hyper: Mapping[str, np.ndarray]  # {name: [M]}
    names: tuple[str, ...]

    @property
    def num_members(self) -> int:
        return len(self.names)


Ensemble = tuple[Population, ...]  # teachers of several architectures, fused across


@pytree
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one step carries for one member; a population stacks it on a leading axis M."""

    params: PyTree
    aux: PyTree  # parameters of the method, not of the network (regressors, projections); {} by default
    model_state: PyTree  # batch statistics; {} without any
    opt_state: PyTree  # of (params, aux)
    mem: PyTree  # what `after` remembers (averages, buffers); {} by default
    key: Array  # the member's own; used as fold_in(key, step), never split
    average: PyTree = dataclasses.field(default_factory=dict)  # of the weights, with train.ema_decay
    frozen: PyTree = dataclasses.field(
        default_factory=dict
    )  # variables of frozen stages, where members differ


# --- results ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that the report tells of every network: one of the user's own.

    `compute` is a pure function on the host of logits [N,C] and labels [N], NumPy both: a value an example
    [N], whose mean is told, or one number for all of them.
    """

    name: str  # the heading of its column
    compute: Callable[[np.ndarray, np.ndarray], Any]
    higher_is_better: bool
    unit: str = ""  # behind the name, such as "%"
    digits: int = 3  # behind the point
    of_places: bool = False  # it reads the order of the logits alone: so that rules of places have it, too


# --- methods ------------------------------------------------------------------------------------------


@pytree
@dataclasses.dataclass(frozen=True)
class Targets:
    """What the student is to match: Q distributions and how much each weighs.

    A student with one head meets every target with that head; one with H = Q heads meets them in turn.
    """

    probs: Array  # [Q,B,C], rows sum to 1
    mass: Array  # [Q,B] >= 0; 0 switches a target off
    entropy: Array  # [Q,B] nats, of probs: known before the student, so not computed again for every member


@pytree
@dataclasses.dataclass(frozen=True)
class Peers:
    """What the members of one cohort say of the batch they share, the reader among them."""

    logits: Array  # [P,B,C], zeros for one that broke down
    place: Array  # [] int32, the reader's own row
    finite: Array  # [P] bool; False once a peer's logits are not finite
    told: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # {name: [P,...]}, see `Recipe.tell`


@pytree
@dataclasses.dataclass(frozen=True)
class Context:
    """All that a seam may read.

    What runs once for all members (teach, weigh, aim, unless the recipe says `reads_student`) sees `student`,
    `peers` and `state` as None, and of `hyper` the temperature and the recipe's own alone. `teacher` is None
    in training without teachers, `peers` without a cohort, and `targets` before `aim` has made them.
    """

    batch: Batch
    teacher: TeacherOutputs  # or None
    prepared: Mapping[str, Callable]  # what the plan fitted before this stage, by name: teachers -> logits
    hyper: Mapping[str, Array]  # scalars: alpha, temperature, ..., and the recipe's own by name
    key: Array
    step: Array  # [] int32, counted from 0
    progress: Array  # [] float32 in [0,1): step / steps of the stage
    student: Outputs = Absent
    peers: Peers = Absent
    state: TrainState = Absent
    targets: Targets = Absent
    steps_of_update: int = dataclasses.field(default=1, metadata={"static": True})  # see train.accumulate

    @property
    def aux(self) -> PyTree:
        """The method's own parameters."""
        return self.state.aux

    @property
    def update(self) -> Array:
        """The number [] int32 of the update that this step is of, counted from 0."""
        return self.step // self.steps_of_update

    @property
    def ends_update(self) -> Array:
        """Whether [] this step ends in an update: if not, parameters are after it what they were before."""
        return (self.step + 1) % self.steps_of_update == 0


class Networks(NamedTuple):
    """Networks a seam may ask about an image it has made itself."""

    teachers: Callable[[Array], TeacherOutputs]  # the frozen ones, differentiable in the image
    student: Callable[..., tuple[Outputs, PyTree]]  # (variables, image, *, train=False, key=None)


class Sharing(NamedTuple):
    """That peers are branches of one network: they share its stages up to and with `after`."""

    num_branches: int
    after: str  # a stage, or "most": see models.branched
    rescaled: bool = False  # the stem has the mean of the branches' gradients, not their sum


Augment = Callable[[Array, Array], Array]  # (key, images [B,h,w,c]) -> images, the configured augmentation
Corruption = Callable[[Array, Array, Array], Array]  # (key, image [h,w,c] in [0,1], strength 1 .. 5) -> image


class Recipe(NamedTuple):
    """A distillation method: the eight seams of the one training step (`engine.step`) and what they need.

    A method overrides one to three seams of `methods.seams.PLAIN` and inherits the rest. The step applies
    `stop_gradient` to stimulus, teach, weigh and aim, so that no method has to remember it. Recipes that
    differ only in name, weigh, aim, prepare, needs, hears_all and the values of `hyper` are trained as one
    population by one compiled program. Seams see the whole batch, also where the work is split over devices.
    """

    name: str
    stimulus: Callable[[Array, Batch, Augment, Networks], Batch]  # of a key: what the networks see
    view: Callable[[PyTree, TrainState, Mapping[str, Array], Array], PyTree]
    # (variables, state, hyper, key) -> variables to compute with
    tell: Callable[[Context, Networks], Mapping[str, Array]]  # what a peer tells the others beside its logits
    teach: Callable[[Context, Networks], TeacherOutputs | None]  # None: nobody teaches
    weigh: Callable[[Context], Array]  # w [K,B]; Absent where nobody teaches
    aim: Callable[[Context, Array], Targets]  # of w; the same
    term: Callable[[Context], Array]  # loss [B]
    # of the state after the optimiser, in every step; `Context.ends_update` says whether weights have changed
    after: Callable[[TrainState, Context], TrainState]
    init_mem: Callable[[PyTree, Outputs, int], PyTree]  # variables, student as shapes, N -> mem
    init_aux: Callable[[Array, Outputs, TeacherOutputs], PyTree]  # of a key; student and teachers as shapes
    trainable: Callable[[str], bool]  # of a path, such as "params/conv1/kernel"; False freezes statistics too
    deploy: Callable[[TrainState, Mapping[str, Array]], PyTree]  # (state, hyper) -> those to evaluate, export
    num_heads: Callable[[int], int]  # K -> H
    mutual: Callable[[Outputs], Array]  # [B] nats, what its members disagree about; 0 of who keeps none
    num_peers: int = 1  # members of a cohort that read each other's logits; 1 = none
    sharing: Sharing | None = None  # peers that are branches of one member, see methods.cohorts
    leader: int = 0  # the peer that is the student, which is evaluated and exported
    decoupled: bool = False  # init_mem is given variables that are drawn for it, not those that are trained
    reads_student: tuple[str, ...] = ()  # of teach, weigh, aim: who reads context.student, state or peers
    needs: tuple[str, ...] = ()  # feature names it reads, of student and teachers; "features" = all;
    #                              "beside" = what teachers predict of places beside logits
    hyper: tuple[tuple[str, float], ...] = ()  # its own numbers that only multiply or divide: traced
    alpha: float | None = None  # where the method weighs the hard labels itself: the only alpha it has
    temperature: float | None = None  # where its loss has none, or its own: all that the grid has of it
    min_teachers: int = 1
    # what the plan fits first: a network on "logits" or "embedding", or a rule by its name; "classifiers" are
    # there already, the linear layers that read the teachers' embeddings
    prepare: str = ""
    hears_all: bool = False  # reads what all teachers say, whatever they weigh: none of them may be silent
    # (state, hyper) -> variables of a network that it keeps of itself to learn from
    own_teacher: Callable[[TrainState, Mapping[str, Array]], PyTree] | None = None
    penalty: Callable[[TrainState, Mapping[str, Array]], Array] | None = None  # [] of weights and hyper
    # raises UserError for images [N,h,w,c] on the host that it cannot be given; None: any will do
    check_images: Callable[[np.ndarray | Images], None] | None = None

    @property
    def num_in_cohort(self) -> int:
        """How many learn together, whole networks or branches on one stem; 1 = alone."""
        return self.num_peers if self.sharing is None else self.sharing.num_branches


# --- trackers -----------------------------------------------------------------------------------------


class Point(NamedTuple):
    """One number of one validation, as trackers are told it."""

    stage: str
    epoch: int
    step: int  # of the stage
    member: str  # "" = the mean over all members whose number is finite
    name: str  # such as "val_nll"
    value: float  # finite
    wall: float  # seconds since 1970


class TrackedRun(NamedTuple):
    """What a tracker is told of the run whose points it is given."""

    folder: str
    id: str  # 64 hexadecimal digits: the same whenever the run is gone on with in its folder
    settings: Mapping[str, Any]  # every field of the configuration: {"train.epochs": 60, ...}


class Tracker(NamedTuple):
    """Somewhere else where the points of a run are written, besides its metrics.jsonl.

    `cut_back(stage, epoch)` drops what is written of a stage after an epoch: an interrupted run computes it
    again. A tracker that cannot (None) is not told again what it was told. Whatever any of the three raises
    is said once, and the run goes on without this tracker.
    """

    write: Callable[[Sequence[Point]], None]  # of one validation of one stage, the means among them
    cut_back: Callable[[str, int], None] | None = None
    close: Callable[[], None] = lambda: None
