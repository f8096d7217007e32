"""Backbones of the library timm."""

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
    """Any convolutional model of timm that gives feature maps (`features_only`); the extra `timm` installs the library.

    name: the model's name in timm, with the tag of its weights or without it: `convnext_tiny`,
        `convnext_tiny.fb_in22k_ft_in1k`. The pixel statistics are those of the tag.

    Published weights go by their tag: `model.weights=fb_in22k_ft_in1k`. A file of weights holds a timm model of that
    name, as timm or `torch.save` wrote it.
    """

    def __init__(self, min_stride: int, max_stride: int, *, name: str):
        super().__init__()
        timm = _timm()
        self.name, _, self.tag = name.partition(".")
        if not timm.is_model(self.name) or (self.tag and self.tag not in self._tags()):
            known = self._tags() if timm.is_model(self.name) else timm.list_models()
            hint = did_you_mean(self.tag if self.tag else self.name, known)
            raise UserError(f"model.backbone.name: timm {timm.__version__} has no model {name!r}{hint}")
        try:
            with torch.device("meta"):
                strides = _strides(self._create())
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise UserError(f"model.backbone.name: timm's {name} gives no feature maps ({first_line(error)})") from None
        indices = tuple(i for i, stride in enumerate(strides) if min_stride <= stride <= max_stride)
        if not indices:
            raise UserError(
                f"model.backbone.name: timm's {name} has maps of the strides {', '.join(map(str, strides))}, none from "
                f"{min_stride} to {max_stride}",
                "set model.levels, or another backbone",
            )
        self.options = {"out_indices": indices}
        self.net = self._create(**self.options)
        self.strides = tuple(_strides(self.net))
        self.out_channels = tuple(_information(self.net).channels())
        self.pixel_mean, self.pixel_std = self._pixel_statistics(self.tag)
        self._freeze_unused()

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.net(images)

    def load(self, weights: str | Path) -> None:
        """Load published weights by their tag, or a file with the tensors of a timm model of this name."""
        self.net.load_state_dict(self._from_file(weights) if isinstance(weights, Path) else self._published(weights))

    def _published(self, tag: str) -> dict[str, Tensor]:
        if tag not in self._tags():
            known = ", ".join(self._tags()) or "none"
            raise UserError(f"model.weights: '{tag}' is neither a file nor a tag of timm's {self.name}: {known}")
        if self._pixel_statistics(tag) != (self.pixel_mean, self.pixel_std):
            raise UserError(
                f"model.weights: timm's {self.name}.{tag} needs another mean and deviation of the pixels",
                f"set model.backbone.name={self.name}.{tag}",
            )
        try:
            return self._create(pretrained=True, pretrained_cfg=tag, **self.options).state_dict()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.weights: cannot download timm's {self.name}.{tag} ({first_line(error)})",
                f"give the path of model.safetensors of https://huggingface.co/timm/{self.name}.{tag}",
            ) from error

    def _from_file(self, file: Path) -> dict[str, Tensor]:
        state = load_safetensors(file) if file.suffix == ".safetensors" else state_of(load_contents(file))
        # timm joins the names of nested stages by _ where a model gives features alone
        tensors = {name.replace("_", "."): value for name, value in state.items()}
        own = self.net.state_dict()
        for name, value in own.items():
            theirs = tensors.get(name.replace("_", "."))
            if not isinstance(theirs, Tensor) or theirs.shape != value.shape:
                raise UserError(
                    f"model.weights: {file} does not fit timm's {self.name} (no fitting values for {name})",
                    "give weights of that model, or set model.backbone.name to theirs",
                )
        return {name: tensors[name.replace("_", ".")] for name in own}

    def _create(self, **options: Any) -> nn.Module:
        return _timm().create_model(self.name, features_only=True, **options)

    def _freeze_unused(self) -> None:
        """Freeze the parameters that no map depends on. timm keeps some stages above the highest map; distributed
        training waits for a gradient of each trainable parameter."""
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
        """Return the mean and the deviation of the pixels for the weights of a tag; "" is timm's default tag."""
        config = _timm().get_pretrained_cfg(f"{self.name}.{tag}" if tag else self.name)
        if config is None:
            return IMAGENET_MEAN, IMAGENET_STD
        (r, g, b), (of_r, of_g, of_b) = config.mean, config.std
        return (255 * r, 255 * g, 255 * b), (255 * of_r, 255 * of_g, 255 * of_b)


def _information(net: nn.Module) -> Any:
    """Return timm's information on the maps of a network."""
    return net.feature_info


def _strides(net: nn.Module) -> list[int]:
    return _information(net).reduction()


def _timm() -> ModuleType:
    """Import timm. Raises UserError where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise UserError(
            "model.backbone: timm is not installed", "uv sync --extra timm, or pip install 'imbalance-detector[timm]'"
        )
    import timm

    return timm
