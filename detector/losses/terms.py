"""The terms of a loss: named numbers whose sum is the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

ONE_TO_MANY = "one_to_many_"  # the prefix of the terms of the one-to-many head


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss terms of a batch.

    Attributes:
        weighted: 0-dim tensors by name. Their sum is the loss.
        parts: detached 0-dim tensors by name: `cls_fg` and `cls_bg`, whose sum is the term `cls`.
    """

    weighted: dict[str, Tensor]
    parts: dict[str, Tensor]

    def total(self) -> Tensor:
        """Return the sum of the terms."""
        return torch.stack(list(self.weighted.values())).sum()

    def detach(self) -> "LossTerms":
        """Return the same terms, detached from the graph."""
        return LossTerms({name: term.detach() for name, term in self.weighted.items()}, self.parts)

    def __truediv__(self, divisor: Tensor) -> "LossTerms":
        """Return all terms and parts divided by a number."""
        return LossTerms(*({name: x / divisor for name, x in group.items()} for group in (self.weighted, self.parts)))

    def with_one_to_many(self, terms: "LossTerms", weight: float) -> "LossTerms":
        """Return the terms of both heads of a model with `one_to_one`.

        Args:
            terms: the terms of the one-to-many head. Their names get the prefix `one_to_many_`.
            weight: the factor w of these terms. The factor of the terms of the one-to-one head is 1 - w.
        """
        return LossTerms(
            _weighted_sum(self.weighted, terms.weighted, weight), _weighted_sum(self.parts, terms.parts, weight)
        )


def _weighted_sum(one_to_one: dict[str, Tensor], one_to_many: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Return the summands of (1 - weight) * one_to_one + weight * one_to_many by name."""
    summands = {name: term * (1 - weight) for name, term in one_to_one.items()}
    return summands | {ONE_TO_MANY + name: term * weight for name, term in one_to_many.items()}
