"""A metric: what the mistakes cost, where one class must not be missed."""

import numpy as np

from mtkd_jax.types import Metric


def cost(*, miss: float = 10.0, false_alarm: float = 1.0) -> Metric:
    """The mean cost of an example: `miss` for a missed last class, `false_alarm` for other mistakes."""

    def costs(logits, labels):  # [N,C], [N] -> [N]
        wrong = np.argmax(logits, axis=1) != labels
        return wrong * np.where(labels == logits.shape[1] - 1, miss, false_alarm)

    return Metric("cost", costs, higher_is_better=False, digits=2, of_places=True)
