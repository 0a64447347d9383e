"""Suite `arithmetic`: what bounds a large population on large machines, by formula; nothing is measured.

256 teachers of WRN-28-10 on data of ImageNet's size, in images of 32x32 and 64x64 pixels (Chrabaszcz et al.
2017, arXiv 1707.08819), on machines as their makers' data sheets have them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtkd_jax.addresses import build_model
from mtkd_jax.benchmark import work
from mtkd_jax.benchmark.networks import NETWORKS, NUM_CLASSES
from mtkd_jax.engine import forecast
from mtkd_jax.report.rendering import Sheet
from mtkd_jax.types import Task

NUM_TEACHERS, NUM_IMAGES, CLASSES = 256, 1_281_167, 1000
SIZES = (32, 64)  # pixels on a side
BATCH = 128  # of one member
SHARE = 0.4  # of a chip's rate that training is taken to reach
NUM_EPOCHS = 40
COPIES = 4  # of the weights, in float32: themselves, momentum, gradient, the best so far
TOP = 16  # logits kept of an image: a float16 and the number of its class in 2 bytes each
GIB, GB = 2**30, 1e9


class Cluster(NamedTuple):
    """Chips as their data sheet has them."""

    name: str
    chips: int
    flops: float  # a second, dense, bfloat16, of one chip
    memory: float  # bytes of one chip
    bandwidth: float  # bytes a second of it
    chips_of_host: int


CLUSTERS = (
    Cluster("TPU v5e-256", 256, 197e12, 16 * GIB, 819e9, 4),
    Cluster("8 x H200", 8, 989e12, 141e9, 4.8e12, 8),
)


def sheets() -> list[tuple[str, Sheet]]:
    """Training and input, for each cluster and size of images; and the logits."""
    columns = [f"{cluster.name}, {size}x{size}" for cluster in CLUSTERS for size in SIZES]
    each = [_training(cluster, size) for cluster in CLUSTERS for size in SIZES]
    training = [[row, *(one[row] for one in each)] for row in each[0]]
    logits = []
    for name, num_bytes in logit_bytes().items():
        of_one = num_bytes * NUM_IMAGES / GB
        logits.append([name, f"{NUM_TEACHERS * of_one:,.0f}", f"{of_one:,.1f}"])
    title = f"{NUM_TEACHERS} teachers of WRN-28-10, {NUM_IMAGES:,} images, batches of {BATCH}"
    return [
        (title, (["", *columns], training)),
        ("logits of all training images, GB", (["", "all teachers", "their mean alone"], logits)),
    ]


def notes() -> list[str]:
    """What was assumed, and what follows."""
    chips = "; ".join(
        f"{c.name}: {c.chips} chips of {c.flops / 1e12:.0f} TFLOP/s in bfloat16, {c.memory / GB:.0f} GB at "
        f"{c.bandwidth / GB:,.0f} GB/s, {c.chips_of_host} to a host"
        for c in CLUSTERS
    )
    return [
        f"By formula and data sheet, not measured: {chips}. Training is taken to reach {SHARE:.0%} of the "
        "rate.",
        "Members exchange nothing (the suite scale asserts it): teachers fill as many chips as there are of "
        "them, and more chips than teachers split batches.",
        "Arithmetic bounds it: a step reads and writes the state and what the backward pass keeps, which "
        "takes the share of its time that the table gives. Where more is kept than a chip holds, a batch is "
        "split over chips (runtime.data_shards) or an update made of several (train.accumulate).",
        "Images from a host: what its teachers read, each in batches of its own. Kept on the chip as uint8 "
        "the set takes the GB that the table gives, once for all teachers there, and the host reads nothing.",
        f"Top {TOP}: the largest logits of an image in float16 with the numbers of their classes; what is "
        "kept of teachers today has all classes.",
    ]


def logit_bytes() -> dict[str, int]:
    """Of one image and teacher."""
    return {"float32": 4 * CLASSES, "float16": 2 * CLASSES, f"top {TOP}": 4 * TOP}


def flops(size: int) -> float:
    """Of training on one image.

    >>> round(flops(32) / 1e9, 1)
    31.5
    """
    network = NETWORKS["wrn28_10"]._replace(shape=(size, size, 3), batch_size=1)
    return work.of_training(network) + 3 * 2 * 640 * (CLASSES - NUM_CLASSES)


def _training(cluster: Cluster, size: int) -> dict[str, str]:
    rate = SHARE * cluster.flops / flops(size)  # images a second of one chip
    members = -(-NUM_TEACHERS // cluster.chips)  # of a chip
    state, kept = _bytes_of_member(size)
    seconds = NUM_TEACHERS * NUM_IMAGES / (rate * cluster.chips)
    of_step, moved = BATCH / rate, 2 * (state + kept) / cluster.bandwidth
    image = size * size * 3
    return {
        "GFLOP an image": f"{flops(size) / 1e9:,.1f}",
        "images a second and chip": f"{rate:,.0f}",
        f"hours for {NUM_EPOCHS} epochs": f"{NUM_EPOCHS * seconds / 3600:,.0f}",
        "teachers on a chip": f"{members}",
        "GB of state on a chip": f"{members * state / GB:.1f}",
        "GB kept for one backward pass": f"{kept / GB:.1f}",
        "GB of a chip": f"{cluster.memory / GB:.0f}",
        "share of a step for memory's rate": f"{moved / of_step:.0%}",
        "MB/s of images from a host": f"{rate * cluster.chips_of_host * image / 1e6:,.0f}",
        "GB of the whole set on a chip": f"{NUM_IMAGES * image / GB:.1f}",
    }


def _bytes_of_member(size: int) -> tuple[float, float]:
    """(state, what a backward pass keeps of the forward one) of one teacher."""
    task = Task(CLASSES, 1, (0.5,) * 3, (0.25,) * 3)
    model = build_model("wide_resnet(depth=28, width=10, dtype='bfloat16')", task, "arithmetic")
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return COPIES * 4 * num_params, forecast.kept_bytes(model, (BATCH, size, size, 3))
