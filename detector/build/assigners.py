"""The functions that build the assigners of a config."""

from detector.build.data import facts
from detector.build.model import outline
from detector.config import Config
from detector.core.errors import UserError
from detector.data.dataset import DetectionDataset
from detector.geometry.assignment import ASSIGNERS, Assigner


def build_assigner(config: Config, dataset: DetectionDataset) -> Assigner:
    """Return the rule for the predictions of the model: the assigner of the config, or its one-to-one rule.

    Args:
        config: the config. A head with `one_to_one` has the one-to-one rule.
        dataset: the data set.

    Raises:
        UserError: the head has `one_to_one`, but the assigner has no one-to-one rule.
    """
    rule = config.assigner.build(facts(dataset))
    if outline(config).head.one_to_one is None:
        return rule
    one_to_one = rule.one_to_one()
    if one_to_one is None:
        names = [name for name in ASSIGNERS.names() if _has_one_to_one(name)]
        raise UserError(
            f"assigner: {config.assigner.type} has no rule for model.head.one_to_one",
            f"set {' or '.join(f'assigner={name}' for name in names)}, or set model.head.one_to_one=false",
        )
    return one_to_one


def build_dense_assigner(config: Config, dataset: DetectionDataset) -> Assigner | None:
    """Return the rule for the dense branch of a head with `one_to_one`, or None for any other head.

    Args:
        config: the config.
        dataset: the data set.
    """
    return None if outline(config).head.one_to_one is None else config.assigner.build(facts(dataset))


def _has_one_to_one(name: str) -> bool:
    return getattr(ASSIGNERS.get(name), "one_to_one", Assigner.one_to_one) is not Assigner.one_to_one
