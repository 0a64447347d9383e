"""The teachers: K networks of each architecture trained at once, and what makes them differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import checkpoint, jobs, workdir
from mtkd_jax.config import build_model
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.jobs import Job, per_member
from mtkd_jax.methods.seams import SUPERVISED
from mtkd_jax.training import Fitted
from mtkd_jax.types import Model, Population, Task, UserError

STAGE_PREFIX = "teachers-"


def job(config: ConfigDict, split: Split, address: str) -> Job:
    """Training K members of the architecture `address` on the labelled examples, each in its own order.

    Member k has its own initial weights, data order and augmentation (from the seed, the architecture and
    k alone), its own Bernoulli(p) subset (Zuchniak 2023) or bootstrap sample, and its own learning rate,
    weight decay and label smoothing. Smaller subsets are wrapped to the steps of the largest one.
    """
    teachers, train = config.teachers, config.train
    num_members, stage = teachers.num_members, stage_name(address)
    seen = [examples_of(config, split, (config.seed, jobs.word(stage), k)) for k in range(num_members)]
    num_steps = max(1, max(map(len, seen)) // train.batch_size)

    def order(epoch: int) -> np.ndarray:
        orders = [
            loading.epoch_order(
                indices,
                num_steps=num_steps,
                batch_size=train.batch_size,
                key=(config.seed, jobs.word(stage), k, epoch),
            )
            for k, indices in enumerate(seen)
        ]
        return np.stack(orders, axis=1)

    return jobs.make(
        config,
        stage=stage,
        model=network(split, address),
        recipes=(SUPERVISED,),
        members=range(num_members),
        names=tuple(f"teacher {k}" for k in range(num_members)),
        hyper={
            "learning_rate": per_member(teachers.learning_rates, train.learning_rate, num_members),
            "weight_decay": per_member(teachers.weight_decays, train.weight_decay, num_members),
            "label_smoothing": per_member(teachers.label_smoothings, train.label_smoothing, num_members),
            "target": np.zeros(num_members, np.int32),
        },
        temperatures=(1.0,),
        order=order,
        examples=loading.examples(split),
        validation=loading.holdout(split, "val"),
        epochs=train.epochs,
        eval_every=train.eval_every,
        patience=teachers.patience,
        seeded_by=stage,
    )


def borrowed(config: ConfigDict, split: Split) -> tuple[dict[str, Fitted], tuple[str, ...]]:
    """Finished teachers of the run `teachers.from_run` by stage, and a note for the report; ({}, ()) without.

    Raises UserError unless that run had the same data and the same split: a teacher that has seen what is
    validation here would make every choice of this run worthless.
    """
    if not config.teachers.from_run:
        return {}, ()
    source = Path(config.teachers.from_run)
    their = workdir.read_config(source) if source.is_dir() else None
    if their is None:
        raise UserError(
            f"config.teachers.from_run: {source} holds no run; name the --workdir of a finished one"
        )
    ours, theirs = workdir.data_identity(split), workdir.read_data_identity(source)
    for name in ours:
        if ours[name] != theirs.get(name):
            raise UserError(
                f"config.teachers.from_run: {source} has another {name}: "
                f"{theirs.get(name)!r} there, {ours[name]!r} here; use the same data, num_train, "
                "val_fraction and seed"
            )
    addresses = tuple(their["teachers"]["models"]) or (their["model"]["name"],)
    found = {stage_name(address): _restored(source, address, split) for address in addresses}
    count = sum(fitted.population.num_members for fitted in found.values())
    return found, (f"The {count} teachers were trained by an earlier run, {source}.",)


def _restored(source: Path, address: str, split: Split) -> Fitted:
    folder = source / "checkpoints" / stage_name(address) / "finished"
    stored = checkpoint.restore(folder)
    if stored is None:
        raise UserError(f"config.teachers.from_run: {folder} holds no finished teachers; let that run finish")
    _, result, info = stored
    model = network(split, address)
    population = Population(model, result["variables"], {}, tuple(info["members"]))
    lost = tuple(name for name, alive in zip(population.names, result["alive"]) if not alive)
    return Fitted(population, np.asarray(result["val_nll"]), lost, info["seconds"])


def network(split: Split, address: str) -> Model:
    """The one-headed network of a teacher for this data."""
    mean, std = loading.channel_statistics(split)
    return build_model(address, Task(split.dataset.num_classes, 1, mean, std), "teachers.models")


def stage_name(address: str) -> str:
    """The stage, and so the checkpoint folder, of one architecture's teachers."""
    return f"{STAGE_PREFIX}{jobs.slug(address)}"


def examples_of(config: ConfigDict, split: Split, key: tuple[int, ...]) -> np.ndarray:
    """The training examples one teacher sees."""
    labels = split.dataset.train_labels
    if config.teachers.bootstrap:
        return loading.bootstrap(split.train, labels, key)
    if config.teachers.subset_fraction < 1:
        return loading.subset(split.train, labels, config.teachers.subset_fraction, key)
    return split.train
