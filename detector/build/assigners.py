"""The function that builds the assigner of a config."""

from detector.build.data import facts
from detector.build.model import outline
from detector.config import Config
from detector.core.errors import UserError
from detector.data.dataset import DetectionDataset
from detector.geometry.assignment import Assigner


def build_assigner(config: Config, dataset: DetectionDataset) -> Assigner:
    """Return the rule for the predictions of the model: the assigner of the config, or its one-to-one rule.

    Args:
        config: the config. A model with `model.head.one_to_one` has the one-to-one rule.
        dataset: the data set.

    Raises:
        UserError: the model has a one-to-one head, but the assigner has no one-to-one rule.
    """
    rule = config.assigner.build(facts(dataset))
    if outline(config).head.one_to_one is None:
        return rule
    one_to_one = rule.one_to_one()
    if one_to_one is None:
        raise UserError(
            f"assigner: {config.assigner.type} has no rule for model.head.one_to_one",
            "set assigner=task_aligned, or set model.head.one_to_one=false",
        )
    return one_to_one
