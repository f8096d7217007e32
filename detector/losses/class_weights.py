"""Weights of classes from how often they occur."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detector.core.validation import NonNegativeInt, PositiveFloat, UnitFloat

Alpha = UnitFloat | list[UnitFloat] | None
ClassWeights = list[PositiveFloat] | Literal["inverse_frequency", "effective_number"] | None
ClassCounts = list[NonNegativeInt] | None


def make_class_weights(rule: ClassWeights, counts: Sequence[int] | None, beta: float) -> Tensor | None:
    """(K,) fp64, given or by a rule from the K counts of objects, then with mean 1 over the classes that occur; None
    where the rule is None.

    `inverse_frequency`: w_k proportional to 1 / n_k. `effective_number`: to (1 - beta) / (1 - beta^n_k), the inverse of
    the number of objects that still add something new (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number
    of Samples"); beta = 0 weighs all classes alike, beta -> 1 is inverse frequency. A count of 0 is taken as 1.
    Raises ValueError where a rule has no counts."""
    if rule is None:
        return None
    if not isinstance(rule, str):
        return torch.tensor(rule, dtype=torch.float64)
    if counts is None:
        raise ValueError(f"class_weights {rule!r} needs class_counts, the number of objects of each class")
    n = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    weights = 1 / n if rule == "inverse_frequency" or beta == 1 else (1 - beta) / (1 - beta**n)
    occurs = torch.tensor(counts) > 0
    return weights / (weights[occurs] if occurs.any() else weights).mean()
