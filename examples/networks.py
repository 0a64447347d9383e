"""A network, written in NNX as it would be without this package; the tool normalises and stacks it."""

from flax import nnx

from mtkd_jax import models
from mtkd_jax.types import Model


class Net(nnx.Module):
    def __init__(self, num_inputs, width, num_outputs, rngs):
        self.hidden = nnx.Linear(num_inputs, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(width, num_outputs, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.hidden(images.reshape(len(images), -1))))
        return self.out(self.dropout(x))


def narrow(task, *, pixels: int = 64, width: int = 16) -> Model:
    """One hidden layer with BatchNorm and dropout, of images with so many numbers."""

    def made(num_outputs, rngs):  # of num_outputs: so that methods with several heads can have them
        return Net(pixels, width, num_outputs, rngs)

    return models.nnx(made, task)
