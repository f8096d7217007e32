"""Train one-stage object detectors; see, measure and repair foreground/background imbalance.

`from detector import train`: trains the detector of a config, as `detector train` does.
`from detector import Detector`: a trained model that takes images and gives boxes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.deploy.predict import Detector
    from detector.training import train

__all__ = ["Detector", "train"]


def __getattr__(name: str) -> object:
    """Import `Detector` and `train` when they are asked for (PEP 562): the package itself must not wait for torch."""
    if name == "Detector":
        from detector.deploy.predict import Detector

        return Detector
    if name == "train":
        from detector.training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
