"""Train one-stage object detectors; see, measure and repair foreground/background imbalance.

`from detector import Detector`: a trained model that takes images and gives boxes.
"""

__all__ = ["Detector"]


def __getattr__(name: str) -> object:
    """`Detector`, imported when it is asked for (PEP 562): the package itself must not wait for torch."""
    if name != "Detector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from detector.predict import Detector

    return Detector
