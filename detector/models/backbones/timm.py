"""The backbones of the library timm."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from detector.core.errors import UserError
from detector.core.validation import did_you_mean
from detector.models.backbones.base import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone, PixelValues
from detector.models.weights.files import first_line, load_contents, load_safetensors, state_of


@BACKBONES.register("timm")
class TimmBackbone(Backbone):
    """Any convolutional model of timm with feature maps (`features_only`). The extra `timm` installs the library.

    The name of published weights is their tag: `model.weights=fb_in22k_ft_in1k`. A file of weights holds a timm model
    of the same name, written by timm or by `torch.save`.

    Args:
        min_stride: the lowest stride of the maps.
        max_stride: the highest stride of the maps.
        name: the name of the model in timm, with or without the tag of its weights: `convnext_tiny`, or
            `convnext_tiny.fb_in22k_ft_in1k`. The pixel statistics are those of the tag.

    Raises:
        UserError: timm is not installed or does not know the model, or the model has no maps of these strides.
    """

    def __init__(self, min_stride: int, max_stride: int, *, name: str):
        super().__init__()
        timm = _timm()
        self.name, _, self.tag = name.partition(".")
        if not timm.is_model(self.name) or (self.tag and self.tag not in self._tags()):
            known = self._tags() if timm.is_model(self.name) else timm.list_models()
            hint = did_you_mean(self.tag if self.tag else self.name, known)
            raise UserError(
                f"model.backbone.name: timm {timm.__version__} has no model {name!r}{hint}", "set model.backbone.name"
            )
        try:
            with torch.device("meta"):
                strides = _strides(self._create())
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise UserError(
                f"model.backbone.name: timm's {name} has no feature maps ({first_line(error)})",
                "choose another model.backbone.name",
            ) from None
        indices = tuple(i for i, stride in enumerate(strides) if min_stride <= stride <= max_stride)
        if not indices:
            raise UserError(
                f"model.backbone.name: timm's {name} has maps of strides {', '.join(map(str, strides))}, but none from "
                f"{min_stride} to {max_stride}",
                "set model.levels, or choose another model.backbone.name",
            )
        self.options = {"out_indices": indices}
        self.net = self._create(**self.options)
        self.strides = tuple(_strides(self.net))
        self.out_channels = tuple(_information(self.net).channels())
        self.pixel_mean, self.pixel_std = self._pixel_statistics(self.tag)
        self._freeze_unused()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of normalized images. See `Backbone.forward`."""
        return self.net(images)

    def load(self, weights: str | Path) -> None:
        """Load published weights by their tag, or a file with the tensors of a timm model of this name."""
        self.net.load_state_dict(self._from_file(weights) if isinstance(weights, Path) else self._published(weights))

    def _published(self, tag: str) -> dict[str, Tensor]:
        if tag not in self._tags():
            raise UserError(
                f"model.weights: '{tag}' is neither a file nor a tag of timm's {self.name}",
                f"give a file, or one of its tags: {', '.join(self._tags()) or 'none'}",
            )
        if self._pixel_statistics(tag) != (self.pixel_mean, self.pixel_std):
            raise UserError(
                f"model.weights: timm's {self.name}.{tag} needs images with another pixel mean and standard deviation",
                f"set model.backbone.name={self.name}.{tag}",
            )
        try:
            return self._create(pretrained=True, pretrained_cfg=tag, **self.options).state_dict()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.weights: cannot download timm's {self.name}.{tag} ({first_line(error)})",
                f"set model.weights to the path of model.safetensors of https://huggingface.co/timm/{self.name}.{tag}",
            ) from error

    def _from_file(self, file: Path) -> dict[str, Tensor]:
        state = load_safetensors(file) if file.suffix == ".safetensors" else state_of(load_contents(file))
        # in a model with `features_only`, timm joins the names of nested stages with "_"
        tensors = {name.replace("_", "."): value for name, value in state.items()}
        model_state = self.net.state_dict()
        for name, value in model_state.items():
            loaded = tensors.get(name.replace("_", "."))
            if not isinstance(loaded, Tensor) or loaded.shape != value.shape:
                raise UserError(
                    f"model.weights: {file} does not fit timm's {self.name} (no values of the right shape for {name})",
                    "give weights of this model, or set model.backbone.name to the model of the weights",
                )
        return {name: tensors[name.replace("_", ".")] for name in model_state}

    def _create(self, **options: Any) -> nn.Module:
        return _timm().create_model(self.name, features_only=True, **options)

    def _freeze_unused(self) -> None:
        """Freeze the parameters that no map depends on.

        timm keeps some stages above the highest map, and distributed training waits for a gradient of each trainable
        parameter.
        """
        with torch.device("meta"), torch.enable_grad():
            twin = self._create(**self.options)
            config = _timm().get_pretrained_cfg(self.name)
            size = (3, 224, 224) if config is None else config.input_size
            total = torch.stack([x.sum() for x in twin(torch.zeros(1, *size))]).sum()
            gradients = torch.autograd.grad(total, list(twin.parameters()), allow_unused=True)
        for parameter, gradient in zip(self.net.parameters(), gradients, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)

    def _tags(self) -> list[str]:
        """Return the tags of the published weights."""
        return [name.partition(".")[2] for name in _timm().list_pretrained(f"{self.name}.*")]

    def _pixel_statistics(self, tag: str) -> tuple[PixelValues, PixelValues]:
        """Return the mean and the standard deviation of the pixels for a tag. The tag "" is timm's default tag."""
        config = _timm().get_pretrained_cfg(f"{self.name}.{tag}" if tag else self.name)
        if config is None:
            return IMAGENET_MEAN, IMAGENET_STD
        (r, g, b), (of_r, of_g, of_b) = config.mean, config.std
        return (255 * r, 255 * g, 255 * b), (255 * of_r, 255 * of_g, 255 * of_b)


def _information(net: nn.Module) -> Any:
    """Return timm's information about the maps of a network."""
    return net.feature_info


def _strides(net: nn.Module) -> list[int]:
    return _information(net).reduction()


def _timm() -> ModuleType:
    """Import timm.

    Raises:
        UserError: timm is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise UserError(
            "model.backbone: timm is not installed",
            "run uv sync --extra timm, or pip install 'imbalance-detector[timm]'",
        )
    import timm

    return timm
