"""Train one-stage object detectors, and measure and repair the imbalance of foreground and background.

`detector.train` trains the detector of a config, as the command `detector train` does.
`detector.Detector` is a trained model that finds boxes in images.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.deploy.predict import Detector
    from detector.training import train

__all__ = ["Detector", "train"]


def __getattr__(name: str) -> object:
    """Import `Detector` or `train` at the first access (PEP 562), so that `import detector` does not import torch."""
    if name == "Detector":
        from detector.deploy.predict import Detector

        return Detector
    if name == "train":
        from detector.training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
