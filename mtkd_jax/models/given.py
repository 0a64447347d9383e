"""Teachers of whom nothing is known but what they said: no network, one array of logits."""

from __future__ import annotations

import dataclasses

from mtkd_jax.types import Array, Model, Outputs, PyTree, UserError


@dataclasses.dataclass(frozen=True)
class Given(Model):
    """A frozen teacher that looks up what it says of an example; it cannot be asked about other images.

    Its variables are {"train": [N,C], "test": [n,C]} (K of them stacked, as ever), its logits on the images
    of the data as they are; where it teaches {"place": []} int32, its column in `Examples.said`.
    """

    @property
    def can_be_asked(self) -> bool:
        return False

    def answer(self, variables: PyTree, image: Array, said: Array | None) -> Outputs:
        """The logits [B,C] of a batch whose `said` is [B,K,C]; UserError where the images are others."""
        if said is None:
            raise UserError(
                f"asks the teachers about images that it makes, and {self.name} know only the data's"
            )
        logits = said[:, variables["place"]]
        return Outputs(logits, logits[None], None, {})
