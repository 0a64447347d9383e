"""Cells of published tables, and the configuration that repeats one: network pair, recipe, method.

published.csv holds the facts: who published which number for what. What of it can be repeated here is decided
by the tables below, and what cannot is refused with the reason: no number stands for another network.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError

FILE = Path(__file__).with_name("published.csv")


class Cell(NamedTuple):
    """A published number."""

    cell: str  # its name here: source/data/networks/method
    paper: str  # "" where a code base published it alone
    year: str
    table: str
    data: str
    teacher: str
    student: str
    num_teachers: str
    method: str
    metric: str  # top1 or "top1 error", in percent
    published: str
    spread: str  # what stands behind its +-, or in its brackets
    recipe: str


class Network(NamedTuple):
    """A network as published for small images."""

    address: str
    params: int  # for 100 classes of colour images, as published
    slow: bool = False  # trained at a fifth of the learning rate, by RepDistiller's recipe
    skipped: int = 0  # first stages that methods of features leave out there
    note: str = ""  # where ours is not the published code to the letter


class Method(NamedTuple):
    """A published method in our words, where it is one mode with its numbers."""

    mode: str
    alpha: float
    temperature: float = 4.0
    note: str = ""  # where ours is not the published code to the letter
    num_teachers: int = 1  # 0: peers that learn together


NETWORKS = {  # as a table writes them, in lower case and without signs
    "resnet20": Network("resnet(depth=20)", 278_324),
    "resnet32": Network("resnet(depth=32)", 472_756),
    "resnet56": Network("resnet(depth=56)", 861_620),
    "resnet110": Network("resnet(depth=110)", 1_736_564),
    "resnet8x4": Network("resnet(depth=8, width=4)", 1_233_540),
    "resnet32x4": Network("resnet(depth=32, width=4)", 7_433_860),
    "wrn162": Network("wide_resnet(depth=16, width=2)", 703_284),
    "wrn401": Network("wide_resnet(depth=40, width=1)", 569_780),
    "wrn402": Network("wide_resnet(depth=40, width=2)", 2_255_156),
    "vgg8": Network("vgg(depth=8)", 3_965_028, skipped=1),
    "vgg13": Network("vgg(depth=13)", 9_462_180, skipped=1),
    "mobilenetv2": Network("mobilenet_v2(width=0.5)", 812_836, slow=True),
    "shufflenetv2": Network("shufflenet_v2(width=1.0)", 1_355_528, slow=True),
}
NETWORKS_OF_RECIPE = {  # recipe -> those that are others under the same name, or that no other has
    "PCL": {  # as in the public code of OKDDip, which the reproduction that is quoted takes over
        "resnet110": Network("resnet(depth=110, bottleneck=True)", 1_170_868),
        "vgg16": Network(
            "vgg(depth=16, dense=512)",
            15_299_748,
            note="embeddings are read behind the dense layers of VGG-16, not before them",
        ),
        "densenet4012": Network(
            "densenet(blocks=(6, 6, 6), growth=12, stem='plain')",
            188_092,
            note="each branch has the last transition of DenseNet-40-12 as its own",
        ),
        "wrn208": Network("resnet(depth=20, width=8, bottleneck=True)", 6_871_220),
    }
}
BY_STAGE = ("AT", "NST", "VID")  # stages are paired by position there, and by name here
_ONE_STAGE = "one stage; the regressor is a 1x1 convolution without BatchNorm"
_DKD = "logits.dkd(target_weight=99.0, nontarget_weight={:g}, warmup={:g})"
METHODS = {  # (recipe, method) -> in our words; alpha is the weight of the hard labels
    ("R1", "KD"): Method("output_avg", 0.1),
    ("R1", "FitNet"): Method(
        "features.hints(student='stage{student}', teacher='stage{teacher}')", 1.0, note=_ONE_STAGE
    ),
    ("R1", "AT"): Method("features.attention_transfer(weight=1000.0)", 1.0),
    ("R1", "PKT"): Method("features.pkt(weight=468.75)", 1.0),
    ("R1", "SP"): Method(
        "relations.sp(weight=3000.0)",
        1.0,
        note="similarities are those of the embeddings, not of the last map",
    ),
    ("R1", "RKD"): Method("relations.rkd(weight=50.0, distances=0.5)", 1.0),
    ("R1", "NST"): Method("features.nst(weight=50.0)", 1.0),
    ("R1", "VID"): Method(
        "features.vid(weight=1.0)",
        1.0,
        note="each regressor is one 1x1 convolution, not three with ReLU between",
    ),
    ("PCL", "PCL"): Method("online.pcl(shared='most')", 1.0, 3.0, num_teachers=0),
    ("PCL", "ONE"): Method(
        "online.one", 1.0, 3.0, note="three branches, as ONE itself was published", num_teachers=0
    ),
}
# hard + soft is written 0.99 (hard + soft / 99 * 99): alpha = 0.99, and both weights 99 times as large.
DKD = {  # pair -> weight of the other classes (Zhao et al. 2022)
    ("resnet56", "resnet20"): Method(_DKD.format(2 * 99, 20 / 240), 0.99),
    ("resnet32x4", "resnet8x4"): Method(_DKD.format(8 * 99, 20 / 240), 0.99),
}
ALONE = ("teacher alone", "student alone")
SOURCES = {
    "CIFAR-10": ("cifar10", "data/cifar-10-python.tar.gz"),
    "CIFAR-100": ("cifar100", "data/cifar-100-python.tar.gz"),
}


def cells() -> dict[str, Cell]:
    """{name: cell} of all published numbers."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return {row["cell"]: Cell(**row) for row in csv.DictReader(file)}


def find(name: str) -> Cell:
    """The cell of that name; UserError with the nearest one where there is none."""
    known = cells()
    if name not in known:
        raise UserError(f"there is no published cell {name!r}{hint(name, known)}; --list names all")
    return known[name]


def network(name: str, recipe: str = "") -> Network | None:
    """The network that a table of a recipe calls so; None where we lack it.

    >>> network("WRN-40-2").address, network("ResNet50")
    ('wide_resnet(depth=40, width=2)', None)
    >>> network("ResNet-110").address, network("ResNet-110", "PCL").address
    ('resnet(depth=110)', 'resnet(depth=110, bottleneck=True)')
    """
    known = NETWORKS | NETWORKS_OF_RECIPE.get(recipe, {})
    return known.get("".join(letter for letter in name.lower() if letter.isalnum()))


def method(cell: Cell) -> Method | None:
    """A cell's method in our words; None where we lack it, or do not know its numbers."""
    if cell.method == "DKD" and cell.recipe == "R1":
        return DKD.get((cell.teacher.lower(), cell.student.lower()))
    found, own = METHODS.get((cell.recipe, cell.method)), _networks(cell)
    if found is None or own.keys() != _named(cell).keys():
        return None
    hinted = {role: 2 + one.skipped for role, one in own.items()}
    notes = (found.note, *(one.note for one in own.values()))
    return found._replace(mode=found.mode.format(**hinted), note="; ".join(filter(None, notes)))


def lacking(cell: Cell) -> str:
    """Why a cell cannot be repeated here; "" where it can."""
    if cell.data not in SOURCES:
        return f"no source for {cell.data}"
    named, own = _named(cell), _networks(cell)
    unknown = dict.fromkeys(name for role, name in named.items() if role not in own)
    if unknown or not named:
        return f"no network {' and no '.join(unknown) or 'is named'}"
    if cell.recipe not in RECIPES:
        return f"its recipe ({cell.table}) is not known whole"
    ours = method(cell)
    if cell.method not in ALONE and (ours is None or cell.num_teachers != str(ours.num_teachers)):
        return f"no method {cell.method} with its published numbers"
    begun = dict.fromkeys(named[role] for role, one in own.items() if one.skipped)
    if cell.method in BY_STAGE and begun:
        return f"{cell.method} begins with stage 2 of {' and '.join(begun)} there, and with stage 1 here"
    return ""


def accuracy(cell: Cell) -> float:
    """What was published, as a share."""
    percent = float(cell.published)
    return (100 - percent if cell.metric == "top1 error" else percent) / 100


def build(cell: Cell, num_seeds: int, path: str = "") -> ConfigDict:
    """The configuration that repeats a cell with so many seeds, on the archive (or .npz) at `path`.

    The last weights count, as in most published tables: there is one validation, at the end, on 1000 images
    that training lacks, where the published runs have none. Beside a cohort, which has no teacher, one such
    network is trained alone. Raises UserError where a cell cannot be repeated.
    """
    why = lacking(cell)
    if why:
        raise UserError(f"{cell.cell}: cannot be repeated: {why}; --list says which can")
    config = configuration.default()
    config.data.source, archive = SOURCES[cell.data]
    config.data.path = path or archive
    if path.endswith(".npz"):
        config.data.source = "npz"
    config.data.val_fraction = 0.02
    config.data.augment.shift = 4
    config.data.augment.flip = True
    config.train.weight_decay = 5e-4
    config.fusion.rules = ("mean_probs",)
    RECIPES[cell.recipe](config)
    config.train.eval_every = config.train.epochs
    own, ours = _networks(cell), method(cell)
    if cell.method in ALONE or ours is None:  # of all others that can be repeated there is one
        (alone,) = own.values()
        config.model.name = alone.address
        config.train.learning_rate /= 5 if alone.slow else 1
        config.teachers.num_members = num_seeds
        config.students.modes = ()
        return config
    student = own["student"]
    config.teachers.models = (own.get("teacher", student).address,)
    config.teachers.num_members = 1
    config.teachers.learning_rates = (config.train.learning_rate,)
    if student.slow:
        config.train.learning_rate /= 5
    config.model.name = student.address
    config.students.modes = (ours.mode,)
    config.students.alphas = (ours.alpha,)
    config.students.temperatures = (ours.temperature,)
    config.students.num_seeds = num_seeds
    return config


def shrink(config: ConfigDict) -> None:
    """The same machinery in seconds: made-up images, smallest networks, one epoch; numbers mean nothing."""
    config.data.source = "synthetic(num_classes=4, num_train=120, num_test=60, size=8, channels=3)"
    config.data.path = ""
    config.data.val_fraction = 0.2
    config.train.batch_size = 16
    config.train.epochs = config.train.eval_every = 1
    config.model.name = "resnet(depth=8)"
    config.teachers.models = ("resnet(depth=8)",) if config.teachers.models else ()


def _named(cell: Cell) -> dict[str, str]:
    """{"teacher", "student": what the table calls it} of those networks that a cell has."""
    return {role: name for role, name in (("teacher", cell.teacher), ("student", cell.student)) if name}


def _networks(cell: Cell) -> dict[str, Network]:
    """{"teacher", "student": network} of those that a cell names and that we have."""
    found = {role: network(name, cell.recipe) for role, name in _named(cell).items()}
    return {role: one for role, one in found.items() if one is not None}


def _representation_distillation(config: ConfigDict) -> None:
    """R1 of RepDistiller, mdistiller and their kin: 240 epochs of SGD, a tenth at 150, 180 and 210."""
    config.train.optimizer = "sgd(nesterov=False)"
    config.train.batch_size = 64
    config.train.epochs = 240
    config.train.learning_rate = 0.05
    config.train.schedule = "steps"


def _peer_collaborative_learning(config: ConfigDict) -> None:
    """That of PCL: 300 epochs of SGD with Nesterov's momentum, a tenth of the rate at 150 and 225."""
    config.train.optimizer = "sgd"
    config.train.batch_size = 128
    config.train.epochs = 300
    config.train.learning_rate = 0.1
    config.train.schedule = "steps(at=(0.5, 0.75))"


RECIPES: dict[str, Callable[[ConfigDict], None]] = {
    "R1": _representation_distillation,
    "PCL": _peer_collaborative_learning,
}
