"""Leaky integrate-and-fire neurons in float64, one neuron and one step at a time."""

import numpy as np


def leaky(current, decay):
    """Spikes [T,...] of currents [T,...]."""
    spikes = np.zeros(current.shape)
    for neuron in np.ndindex(current.shape[1:]):
        potential = 0.0
        for step in range(len(current)):
            potential = decay * potential + float(current[(step, *neuron)])
            if potential >= 1.0:
                spikes[(step, *neuron)], potential = 1.0, 0.0
    return spikes


def network(params, image, task, time_steps, decay):
    """Logits [B,C] of a perceptron whose layers are "dense1", "dense2", ..., step by step."""
    x = ((image.astype(np.float64) - task.mean) / task.std).reshape(len(image), -1)
    names = sorted(name for name in params if name.startswith("dense"))
    potentials = {name: 0.0 for name in names}
    read = np.zeros((len(image), params["heads"]["bias"].shape[-1]))
    for _ in range(time_steps):
        entering = x
        for name in names:
            potentials[name] = (
                decay * potentials[name] + entering @ params[name]["kernel"] + params[name]["bias"]
            )
            entering = (potentials[name] >= 1.0).astype(np.float64)
            potentials[name] = potentials[name] * (1.0 - entering)
        read += entering @ params["heads"]["kernel"][0] + params["heads"]["bias"][0]
    return read / time_steps
