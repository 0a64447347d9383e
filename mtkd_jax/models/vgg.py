"""VGG networks for small images."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.resnet import Conv
from mtkd_jax.types import Array, Model, Outputs, Task

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # depth -> in each of the five stages; the depths count three dense layers of 2014
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
SMALL_ENOUGH = 4  # images with a side of 4 are halved no further: 32x32 ends as 4x4, and so does 64x64


class Vgg(nn.Module):
    """See `vgg`."""

    task: Task
    depth: int
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = layers.normalise(image, self.task.mean, self.task.std)
        features = {}
        for stage, channels in enumerate(WIDTHS, start=1):
            if stage > 1 and min(x.shape[1:3]) > SMALL_ENOUGH:
                x = layers.max_pool(x, 2)
            for number in range(1, CONVOLUTIONS[self.depth][stage - 1] + 1):
                x = Conv(channels, 3, 1, self.dtype, name=f"stage{stage}_conv{number}")(x)
                x = nn.relu(layers.batch_norm(x, train, name=f"stage{stage}_norm{number}"))
            features[f"stage{stage}"] = x
        embedding = x.mean(axis=(1, 2), dtype=jnp.float32)
        heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
        return layers.outputs(embedding, heads, features)


def vgg(task: Task, *, depth: int = 8, dtype: str = "float32") -> Model:
    """VGG with BatchNorm for small images: the vgg8, vgg11, vgg13, vgg16 and vgg19 of KD, one linear layer.

    Five stages of 3x3 convolutions with 64, 128, 256, 512 and 512 channels (Simonyan and Zisserman 2015,
    arXiv 1409.1556; vgg8 is RepDistiller's, Tian et al. 2020, arXiv 1910.10699). Before each but the first
    the image is halved, unless a side of it is at most 4: features "stage1" to "stage5" of 32x32 images,
    after their ReLU, are 32, 16, 8, 4 and 4 wide, those of 8x8 images 8, 4, 4, 4 and 4. The embedding [B,512]
    is the mean of the last over the image. For 100 classes of colour images vgg(depth=8) has 3 963 556
    parameters and vgg(depth=13) 9 459 236. Published counts are higher by 1 472 and 2 944: those networks
    hold a bias before each BatchNorm, which takes it out again. Raises UserError for another depth.

    >>> vgg(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), depth=13).name
    'vgg(depth=13)'
    """
    layers.check_argument(
        "vgg.depth", depth, depth in CONVOLUTIONS, f"one of {', '.join(map(str, CONVOLUTIONS))}"
    )
    layers.check_dtype("vgg.dtype", dtype)
    arguments = dict(depth=depth, dtype=dtype)
    return Model(layers.address_of(vgg, **arguments), Vgg(task, **arguments), convolutional=True)
