"""Which examples are seen and in what order: splits, subsets and orders on the host, batches on the device.

Everything is a pure function of its arguments. A `key` on the host is a tuple of whole numbers, such as
(seed, stage, member, epoch); the same words give the same numbers on every machine.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.data.checks import check_alike
from mtkd_jax.types import Absent, Array, Batch, DataSet, Examples, Images, UserError

AnyArray = TypeVar("AnyArray", Array, np.ndarray)  # what of the device and what of the host remains so
Key = tuple[int, ...]
MOST_LOOKED_AT = 10_000  # images that are read for the channels' mean and deviation


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Rows of `dataset.train_images`, sorted: three disjoint lists that hold every row between them."""

    dataset: DataSet
    train: np.ndarray  # [n] int32, the labelled training examples
    pool: np.ndarray  # [u] int32, cut away by num_train: their labels are hidden from everyone
    val: np.ndarray  # [v] int32
    other: np.ndarray | None = None  # [o,h,w,c] images of another source, which have no label


# --- splits -------------------------------------------------------------------------------------------


def split(dataset: DataSet, *, num_train: int, val_fraction: float, seed: int, how: str = "grouped") -> Split:
    """Cut the training set into validation, labelled training examples and the pool of hidden labels.

    Validation comes first, so it does not depend on `num_train`: the rows the data itself sets aside, or
    about `val_fraction` of all. Where the data names groups and `how` is "grouped", no group is in both
    validation and training, as none may be in both test and training; "random" draws images one by one and
    leaves a note. Then come `num_train` examples (0 = all that are left); the rest is the pool. All cuts are
    stratified and hold every class. With one seed, a smaller `num_train` gives a subset of a larger one.
    Raises `UserError` where that cannot be.
    """
    labels, groups = strata(dataset.train_labels), dataset.train_groups
    num_classes, total = dataset.num_classes, len(labels)
    if not 0 < val_fraction < 1:
        raise UserError(f"config.data.val_fraction = {val_fraction}: must lie strictly between 0 and 1")
    if dataset.val_rows is not None:
        val = dataset.val_rows
    elif groups is not None and how == "grouped":
        val = _cut_groups(labels, groups, val_fraction, seed)
    else:
        val = _cut_val(labels, num_classes, val_fraction, seed)
    rest = np.setdiff1d(np.arange(total), val).astype(np.int32)
    for rows, part in ((val, "validation"), (rest, "training")):
        if lost := sorted(set(range(num_classes)) - held(dataset.train_labels, rows)):
            raise UserError(_why_lost(dataset, lost[0], part, val_fraction, how))
    if num_train != 0 and not num_classes <= num_train <= len(rest):
        raise UserError(
            f"config.data.num_train = {num_train}: must be 0 (all) or {num_classes} (one a class) to "
            f"{len(rest)} ({total} training examples less {len(val)} for validation)"
        )
    train, pool = _cut(rest, labels, num_train or len(rest), _rng((seed, 1)))
    if lost := sorted(set(range(num_classes)) - held(dataset.train_labels, train)):
        raise UserError(
            f"config.data.num_train = {num_train}: holds no example of class {lost[0]} "
            f"({dataset.class_names[lost[0]]}); must be larger"
        )
    notes = _shared_groups(dataset, val, rest, how)
    return Split(
        dataclasses.replace(dataset, notes=(*dataset.notes, *notes)), train=train, pool=pool, val=val
    )


def _why_lost(dataset: DataSet, label: int, part: str, val_fraction: float, how: str) -> str:
    """What leaves one of two parts without an example of a class, and what would be right."""
    name, number = dataset.class_names[label], int(holds(dataset.train_labels, label).sum())
    lost = f"no example of class {label} ({name}) for {part}"
    if dataset.val_rows is not None:
        return (
            f"{dataset.name}: the validation set that the data brings leaves {lost}; must hold some, not all"
        )
    if number == 1:
        return (
            f"{dataset.name}: class {label} ({name}) has 1 training example; must have 2, one to validate on"
        )
    mend = "must leave one for each"
    if dataset.train_groups is not None and how == "grouped":
        mend = "groups stay whole: must be larger, or the class in more groups, or data.split random"
    return f"config.data.val_fraction = {val_fraction}: leaves {lost}, of {number}; {mend}"


def strata(labels: np.ndarray) -> np.ndarray:
    """A label [N] for each example, by which cuts and draws are in proportion.

    Of labels [N] these themselves; of labels of places [N,L] the class in the fewest places of the data among
    those that an example holds, and 0 where it holds none.
    """
    if labels.ndim == 1:
        return labels
    counts = np.bincount(labels[labels >= 0], minlength=1)
    rank = np.argsort(np.argsort(counts, kind="stable"), kind="stable")  # 0: the rarest class
    ranks = np.where(labels >= 0, rank[labels], len(counts)).min(axis=1)
    rarest = np.argsort(rank, kind="stable")
    return np.append(rarest, 0)[ranks].astype(np.int32)


def held(labels: np.ndarray, rows: np.ndarray) -> set[int]:
    """The classes that rows of labels [N] or [N,L] hold."""
    return set(np.unique(labels[rows]).tolist()) - {-1}


def holds(labels: np.ndarray, label: int) -> np.ndarray:
    """Which examples [N] are of a class; of labels of places [N,L], which hold it."""
    found = labels == label
    return found if labels.ndim == 1 else found.any(axis=1)


def _cut_val(labels: np.ndarray, num_classes: int, val_fraction: float, seed: int) -> np.ndarray:
    """Validation rows drawn one by one, each class in proportion."""
    num_val = round(val_fraction * len(labels))
    if num_val < num_classes:
        raise UserError(
            f"config.data.val_fraction = {val_fraction}: gives {num_val} validation examples of "
            f"{len(labels)}, must be at least one for each of {num_classes} classes"
        )
    return _cut(np.arange(len(labels)), labels, num_val, _rng((seed, 0)))[0]


def _cut_groups(labels: np.ndarray, groups: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """Validation rows of whole groups."""
    try:
        return part_of_groups(labels, groups, val_fraction, seed)
    except ValueError as error:
        raise UserError(
            f"config.data.val_fraction = {val_fraction}: no validation set of whole groups can be cut "
            f"({error}); must be larger, or data.split random"
        ) from error


def part_of_groups(
    labels: Sequence | np.ndarray, groups: Sequence | np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Rows of whole groups, about `fraction` of all, each class in proportion as far as groups allow; sorted.

    Groups are dealt into round(1 / fraction) parts, two at least. Of those that leave every class to the
    others it is the first that holds every class itself, or else the first. Raises ValueError, which says
    why, where there is none.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels, num_parts, num_groups = np.asarray(labels), max(2, round(1 / fraction)), len(set(groups))
    if num_groups < num_parts:
        raise ValueError(f"{num_groups} groups for {num_parts} parts")
    dealt = StratifiedGroupKFold(num_parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of classes with few groups
        parts = [part for _, part in dealt.split(labels, labels, groups)]
    num_classes = len(np.unique(labels))
    leaving = [part for part in parts if len(np.unique(np.delete(labels, part))) == num_classes]
    if not leaving:
        raise ValueError("every part of the groups takes a class away from training")
    holding = [part for part in leaving if len(np.unique(labels[part])) == num_classes]
    return np.sort((holding or leaving)[0]).astype(np.int32)


def _shared_groups(dataset: DataSet, val: np.ndarray, rest: np.ndarray, how: str) -> tuple[str, ...]:
    """Notes on groups that stand on both sides of a cut; UserError where they must not."""
    groups, of_test, notes = dataset.train_groups, dataset.test_groups, []
    if groups is None or of_test is None:  # given for both parts or for neither
        return ()
    for part, theirs in (("validation", groups[val]), ("test", of_test)):
        shared = np.intersect1d(groups[rest], theirs)
        if len(shared) and how == "grouped":
            raise UserError(
                f"{dataset.name}: {len(shared)} groups are in both training and {part}, the first is group "
                f"{shared[0]}; move each to one side, or set data.split to random"
            )
        if len(shared):
            notes.append(
                f"{len(shared)} groups have images in both training and {part} (data.split is random): the "
                f"numbers on {part} say little about groups that were never seen."
            )
    return tuple(notes)


def _cut(rows: np.ndarray, labels: np.ndarray, num: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """`num` of the rows, each class in proportion and at least once; and the others. Both sorted."""
    rows = rng.permutation(rows)
    _, kind, sizes = np.unique(labels[rows], return_inverse=True, return_counts=True)
    by_class = np.argsort(kind, kind="stable")
    place = np.empty(len(rows))
    place[by_class] = np.concatenate([np.arange(size) for size in sizes])  # 0, 1, ... within its class
    # Webster's rule deals out seats by (place + 1/2) / size; but the first of every class has a seat.
    first = np.argsort(np.where(place == 0, -1, (place + 0.5) / sizes[kind]), kind="stable")
    return tuple(np.sort(part).astype(np.int32) for part in (rows[first[:num]], rows[first[num:]]))


def with_other(split: Split, found: DataSet, where: str) -> Split:
    """The split beside the training images of another source, whose labels nobody looks at.

    Raises `UserError`, which begins with `where`, unless they are like those of the data and both are held
    in memory.
    """
    check_alike(found.train_images, split.dataset, where)
    if not isinstance(found.train_images, np.ndarray) or streamed(split) is not None:
        raise UserError(
            f"{where} and {split.dataset.name}: one is read as it is needed; with other images both must be "
            'held in memory, stream="never"'
        )
    return dataclasses.replace(split, other=found.train_images)


def subset(indices: np.ndarray, labels: np.ndarray, fraction: float, key: Key) -> np.ndarray:
    """Keep each index with probability `fraction` in (0,1]: the random training set of one ensemble member.

    `labels` [N] are those of all rows. A draw that misses one of the classes of `indices` is drawn again.
    Raises `UserError` when 100 draws in a row miss one. Source: Zuchniak 2023, arXiv 2302.07215.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"config.teachers.subset_fraction = {fraction}: must lie in (0,1]")
    return _complete(
        lambda rng: indices[rng.random(len(indices)) < fraction],
        indices,
        labels,
        key,
        f"config.teachers.subset_fraction = {fraction}: 100 random subsets of {len(indices)} "
        "training examples each missed a class; must be larger, or data.num_train must be",
    )


def bootstrap(indices: np.ndarray, labels: np.ndarray, key: Key) -> np.ndarray:
    """As many draws with replacement as there are indices, sorted (bagging: Breiman 1996).

    A draw that misses one of the classes of `indices` is drawn again. Raises `UserError` as `subset` does.
    """
    return _complete(
        lambda rng: np.sort(rng.choice(indices, len(indices))),
        indices,
        labels,
        key,
        f"bootstrap: 100 bootstrap samples of {len(indices)} training examples each missed a class; "
        "data.num_train must be larger",
    )


def all_but_one_part(
    indices: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, part: int, num_parts: int, seed: int
) -> np.ndarray:
    """The indices without one of `num_parts` equal parts, each class in proportion; sorted.

    Of `groups` [N], such as aircraft or camera sequences, each is in one part alone. Raises `UserError` where
    parts cannot be dealt so that every class is left.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    own, theirs = labels[indices], None if groups is None else groups[indices]
    units = np.bincount(own) if theirs is None else [len(set(theirs))]
    if num_parts > max(units):
        what = "examples of a class" if theirs is None else "groups"
        raise UserError(
            f"config.teachers.folds: {num_parts} parts cannot be dealt of {max(units)} {what}; must be fewer "
            "teachers"
        )
    dealt = (StratifiedKFold if theirs is None else StratifiedGroupKFold)(
        num_parts, shuffle=True, random_state=seed
    )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of classes with few examples
        left, _ = list(dealt.split(own, own, theirs))[part]
    if lost := sorted({*own.tolist()} - {*own[left].tolist()}):
        raise UserError(
            f"config.teachers.folds: teacher {part} would never see class {lost[0]}, all of which is in the "
            "part it leaves out; must be more examples, or other teachers"
        )
    return np.sort(indices[left])


def _complete(
    draw: Callable[[np.random.Generator], np.ndarray],
    indices: np.ndarray,
    labels: np.ndarray,
    key: Key,
    message: str,
) -> np.ndarray:
    """The first of 100 draws that holds every class."""
    wanted = held(labels, indices)
    for attempt in range(100):
        drawn = draw(_rng((*key, attempt)))
        if held(labels, drawn) == wanted:
            return drawn
    raise UserError(message)


# --- orders -------------------------------------------------------------------------------------------


def epoch_order(
    indices: np.ndarray, *, num_steps: int, batch_size: int, key: Key, labels: np.ndarray | None = None
) -> np.ndarray:
    """Full batches [num_steps,B] int32 in a shuffled order, each index floor or ceil of its share of times.

    Where the steps ask for more than there is, the order goes on with a fresh permutation. With `labels`, [N]
    of all rows, every class is drawn floor or ceil of num_steps * B / C times, whatever it has, and each of
    its indices floor or ceil of its share of these.

    >>> sorted(epoch_order(np.arange(6), num_steps=3, batch_size=2, key=(0,)).ravel().tolist())
    [0, 1, 2, 3, 4, 5]
    """
    num, rng = num_steps * batch_size, _rng(key)
    order = _shuffled(indices, num, rng) if labels is None else _balanced(indices, labels, num, rng)
    return order.reshape(num_steps, batch_size)


def mixed_order(
    labelled: np.ndarray,
    unlabelled: np.ndarray,
    *,
    num_steps: int,
    batch_size: int,
    labelled_per_batch: int,
    key: Key,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Batches [num_steps,B] int32 with `labelled_per_batch` labelled indices each, the others unlabelled.

    Each of the two lists is in the order of `epoch_order`, at its own pace; `labels` balances the labelled
    ones alone, for the others have none. Labelled indices come first in a batch. Raises `UserError` when
    there is nothing unlabelled or no place for it in a batch.
    """
    if len(unlabelled) == 0:
        raise UserError(
            "config.students.transfer = 'unlabelled': no image is without a label; data.num_train "
            "must cut some away"
        )
    if not 0 <= labelled_per_batch < batch_size:
        raise UserError(
            f"config.students.labelled_fraction: gives {labelled_per_batch} labelled images, must give "
            f"0..{batch_size - 1}, for a batch of {batch_size} with unlabelled ones"
        )
    rest = batch_size - labelled_per_batch
    return np.concatenate(
        [
            epoch_order(
                labelled, num_steps=num_steps, batch_size=labelled_per_batch, key=(*key, 0), labels=labels
            ),
            epoch_order(unlabelled, num_steps=num_steps, batch_size=rest, key=(*key, 1)),
        ],
        axis=1,
    )


def _shuffled(indices: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    rounds = max(1, -(-num // len(indices)))
    return np.concatenate([rng.permutation(indices) for _ in range(rounds)])[:num].astype(np.int32)


def _balanced(indices: np.ndarray, labels: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    kinds = labels[indices]
    classes = rng.permutation(np.unique(kinds))  # by lot, who is drawn once more than the others
    shares = num // len(classes) + (np.arange(len(classes)) < num % len(classes))
    drawn = [_shuffled(indices[kinds == one], share, rng) for one, share in zip(classes, shares)]
    return rng.permutation(np.concatenate(drawn))


def _rng(key: Key) -> np.random.Generator:
    # The length goes in too: SeedSequence pads with zeros, so that (3,) and (3, 0) would be the same.
    return np.random.default_rng(np.random.SeedSequence((len(key), *key)))


# --- arrays for the device ----------------------------------------------------------------------------


def class_weights(split: Split) -> np.ndarray:
    """[N] float32: n / (C n_c) for the n_c labelled training examples of class c, 0 for all other rows.

    Their mean over the n labelled examples is 1, and every class has the same sum, n / C. Of labels of places
    [N,L] the same of places.
    """
    labels = split.dataset.train_labels
    own = labels[split.train]
    is_there = own >= 0
    of_class = is_there.sum() / (split.dataset.num_classes * np.bincount(own[is_there]))
    weights = np.zeros(labels.shape, np.float32)
    weights[split.train] = np.where(is_there, of_class[own], 0.0)
    return weights


def examples(split: Split, *, weighted: bool = False) -> Examples:
    """All training images as device arrays; only `split.train` is labelled, every other label reads 0.

    The labels of validation and pool are overwritten, not only masked: no mistake further on can leak them.
    Of images that are read when they are asked for there are two blank ones, to tell their shape: see
    `window`. `weighted` gives the hard labels their `class_weights`.
    """
    dataset, images = split.dataset, split.dataset.train_images
    labelled = np.zeros(len(dataset.train_labels), bool)
    labelled[split.train] = True

    def shown(array: np.ndarray, hidden: np.ndarray | np.float32) -> Array:
        return jnp.asarray(np.where(labelled.reshape(-1, *(1,) * (array.ndim - 1)), array, hidden))

    if streamed(split) is not None:
        images = np.zeros((2, *images.shape[1:]), images.dtype)
    return Examples(
        image=jnp.asarray(images),
        label=shown(dataset.train_labels, np.minimum(dataset.train_labels, 0)),  # -1: no place, is no label
        labelled=jnp.asarray(labelled),
        weight=jnp.asarray(class_weights(split)) if weighted else None,
        goals={name: shown(goal, np.float32(0)) for name, goal in (dataset.train_goals or {}).items()},
    )


def flat(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Values [n,L,...] of places as [P,...] of those that have a label; values of examples as they are."""
    return values if labels.ndim == 1 else values[labels >= 0]


def flat_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same of logits that lead with members, [M,n,L,C] as [M,P,C]."""
    return logits if labels.ndim == 1 else logits[:, labels >= 0]


def with_other_images(examples: Examples, other: np.ndarray) -> Examples:
    """The examples, and after them other images [o,h,w,c] without a label, of which all teachers speak."""

    def longer(field: Array, filled: bool | int | float) -> Array:
        further = np.full((len(other), *field.shape[1:]), filled, field.dtype)
        return jnp.concatenate([jnp.asarray(field), further])

    return dataclasses.replace(
        examples,
        image=jnp.concatenate([examples.image, jnp.asarray(other)]),
        label=longer(examples.label, 0),
        labelled=longer(examples.labelled, False),
        weight=None if examples.weight is None else longer(examples.weight, 0.0),
        speaks=None if examples.speaks is None else longer(examples.speaks, True),
    )


def speakers(dataset: DataSet, num_teachers: int) -> np.ndarray | None:
    """[N,K] bool, which of K teachers teach which training images; None where all teach all of them.

    Raises UserError where the data speaks of another number of teachers.
    """
    given = dataset.train_teachers
    if given is None:
        return None
    if given.ndim == 1:
        if given.max() >= num_teachers:
            raise UserError(
                f"{dataset.name}: train_teachers: names teacher {given.max()}; there are {num_teachers}, "
                f"the last is {num_teachers - 1}"
            )
        return given[:, None] == np.arange(num_teachers)
    if given.shape[1] != num_teachers:
        raise UserError(
            f"{dataset.name}: train_teachers: has a column for each of {given.shape[1]} teachers; there are "
            f"{num_teachers}"
        )
    return given


def streamed(split: Split) -> Images | None:
    """The training images if they are read when they are asked for; None if they are an array."""
    images = split.dataset.train_images
    return None if isinstance(images, np.ndarray) else images


def rows_of(indices: np.ndarray) -> np.ndarray:
    """The rows that indices of any shape point to, sorted, each once."""
    return np.unique(indices)


def window(examples: Examples, images: np.ndarray, indices: np.ndarray) -> tuple[Examples, np.ndarray]:
    """Examples of `rows_of(indices)` alone, whose `images` these are, and the indices within them.

    Filled up to one size for all indices of one shape, so that one compiled program serves them.
    """
    rows, local = np.unique(indices, return_inverse=True)
    missing = min(indices.size, len(examples.label)) - len(rows)
    of_rows = jax.tree.map(
        lambda leaf: np.asarray(leaf)[np.pad(rows, (0, missing))], dataclasses.replace(examples, image=Absent)
    )
    filled = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    found = dataclasses.replace(of_rows, image=filled, row=np.pad(rows, (0, missing)).astype(np.int32))
    return jax.tree.map(jnp.asarray, found), local.reshape(indices.shape).astype(np.int32)


def validation_set(split: Split) -> tuple[Array, Array]:
    """Images [V,h,w,c] (as stored: see `scale`) and labels [V]."""
    data, rows = split.dataset, split.val
    return jnp.asarray(data.train_images[rows]), jnp.asarray(data.train_labels[rows])


def example_image(split: Split) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one image [1,h,w,c] as networks see it."""
    return jax.eval_shape(scale, split.dataset.train_images[:1])


def evenly(rows: AnyArray, most: int) -> AnyArray:
    """At most so many of the rows, evenly spaced; all of them where they are no more.

    >>> evenly(np.arange(7), 3), evenly(np.arange(2), 3)
    (array([0, 3, 6]), array([0, 1]))
    """
    return rows[:: -(-len(rows) // most)]


def scale(images: AnyArray) -> AnyArray:
    """Images as a network sees them: uint8 as float32 in [0,1], floats as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def gather(examples: Examples, indices: Array) -> Batch:
    """The rows `indices` [B] int32 as a scaled `Batch`; pure, for use inside the compiled step."""
    image = scale(examples.image[indices])
    return Batch(
        image=image,
        label=examples.label[indices],
        index=indices if examples.row is None else examples.row[indices],
        labelled=examples.labelled[indices],
        weight=None if examples.weight is None else examples.weight[indices],
        # On the host where they come from files, which may be larger than what a device holds.
        given_logits=None if examples.given_logits is None else jnp.asarray(examples.given_logits)[indices],
        given_image=None if examples.given_logits is None else image,
        speaks=None if examples.speaks is None else jnp.asarray(examples.speaks)[indices],
        goals={name: goal[indices] for name, goal in examples.goals.items()},
    )


@lru_cache(maxsize=4)
def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the labelled training images, scaled as in `Batch`.

    Of images that are read when they are asked for 10 000 are looked at, evenly spaced. The deviation is at
    least 1/255 of the channel's range, and 1 for a channel that never varies, so that dividing by it is
    always safe.
    """
    rows = split.train
    if streamed(split) is not None:
        rows = evenly(rows, MOST_LOOKED_AT)
    images = split.dataset.train_images[rows]
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    pixels = images.size / images.shape[-1]
    # einsum sums in float64 without a float64 copy of the images.
    mean = np.einsum("nhwc->c", images, dtype=np.float64) / pixels / unit
    square = np.einsum("nhwc,nhwc->c", images, images, dtype=np.float64) / pixels / unit**2
    width = (images.max(axis=(0, 1, 2)).astype(np.float64) - images.min(axis=(0, 1, 2))) / unit
    std = np.sqrt(np.maximum(square - mean**2, (width / 255) ** 2))
    return tuple(mean.tolist()), tuple(np.where(width == 0, 1.0, std).tolist())
