"""Teachers of whom nothing is known but their logits: no network, one array of logits."""

from __future__ import annotations

import dataclasses

from mtkd_jax.types import Absent, Array, Model, Outputs, PyTree, UserError


@dataclasses.dataclass(frozen=True)
class Given(Model):
    """A frozen teacher that looks up what it says of an example; it cannot be asked about other images.

    Its variables are {"train": [N,C], "test": [n,C]} (K of them stacked, as ever), its logits on the images
    of the data as they are; where it teaches {"place": []} int32, its column in `Examples.given_logits`.
    """

    @property
    def can_be_asked(self) -> bool:
        return False

    def answer(self, variables: PyTree, image: Array, given_logits: Array | None) -> Outputs:
        """Its logits [B,C], of `given_logits` [B,K,C]; UserError where the images are not the data's."""
        if given_logits is None:
            raise UserError(
                f"asks the teachers about images that it makes, and {self.name} know only the data's"
            )
        logits = given_logits[:, variables["place"]]
        return Outputs(logits, logits[None], Absent, {})
