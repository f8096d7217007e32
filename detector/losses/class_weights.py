"""The weights of classes, from the number of their objects."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detector.core.validation import NonNegativeInt, PositiveFloat, UnitFloat

Alpha = UnitFloat | list[UnitFloat] | None
ClassWeights = list[PositiveFloat] | Literal["inverse_frequency", "effective_number"] | None
ClassCounts = list[NonNegativeInt] | None


def make_class_weights(rule: ClassWeights, counts: Sequence[int] | None, beta: float) -> Tensor | None:
    """Return the weights of the classes, (K,) fp64, or None where the rule is None.

    `inverse_frequency`: w_k is proportional to 1 / n_k. `effective_number`: w_k is proportional to
    (1 - beta) / (1 - beta^n_k), the inverse of the effective number of samples (Cui et al. 2019, "Class-Balanced Loss
    Based on Effective Number of Samples", section 3). Both rules scale the weights to the mean 1 over the classes with
    objects.

    Args:
        rule: the K weights, the name of a rule, or None.
        counts: n_k, the number of objects of each class. A count of 0 is replaced by 1.
        beta: the beta of `effective_number`. 0 gives all classes the same weight. 1 gives the inverse frequency.

    Raises:
        ValueError: the rule needs counts, and there are none.
    """
    if rule is None:
        return None
    if not isinstance(rule, str):
        return torch.tensor(rule, dtype=torch.float64)
    if counts is None:
        raise ValueError(f"class_weights={rule}: class_counts is missing; give the number of objects of each class")
    n = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    weights = 1 / n if rule == "inverse_frequency" or beta == 1 else (1 - beta) / (1 - beta**n)
    occurs = torch.tensor(counts) > 0
    return weights / (weights[occurs] if occurs.any() else weights).mean()
