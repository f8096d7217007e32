"""The backbones of the library timm."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detector.core.errors import UserError
from detector.core.validation import NonNegativeInt, did_you_mean
from detector.models.backbones.base import (
    BACKBONES,
    IMAGENET,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    PixelValues,
    frozen_batch_norm_is_random,
)
from detector.models.backbones.convolutions import compute_slow_gradients_in_fp32, is_depthwise
from detector.models.weights.efficientnet_lite import PACKAGE_MODEL, load_package
from detector.models.weights.files import first_line, load_contents, load_safetensors, state_of

Norm = Literal["model", "frozen"]


@BACKBONES.register("timm")
class TimmBackbone(Backbone):
    """Any convolutional model of timm with feature maps (`features_only`). The extra `timm` installs the library.

    The name of published weights is their tag: `model.weights=fb_in22k_ft_in1k`. `imagenet` is the tag in `name`, or
    timm's default tag. For tf_efficientnet_lite0, `imagenet` is the file in the package of the extra `pretrained`. A
    file of weights holds a timm model of the same name, written by timm or by `torch.save`.

    Args:
        min_stride: the lowest stride of the maps.
        max_stride: the highest stride of the maps.
        name: the name of the model in timm, with or without the tag of its weights: `convnext_tiny`, or
            `convnext_tiny.fb_in22k_ft_in1k`. The pixel statistics are those of the tag.
        norm: `model` trains the norms of the model. `frozen` uses the statistics of the weights in the batch norms,
            and does not train their scales and shifts.
        trainable_stages: the number of stages that train, counted from the last of five stages. They end at the maps
            of strides 2, 4, 8, 16 and 32. Frozen stages are not in the autograd graph, and their batch norms use the
            statistics of the weights.

    Raises:
        UserError: timm is not installed or does not know the model, the model has no maps of these strides, or it has
            no batch norms to freeze.
    """

    def __init__(
        self,
        min_stride: int,
        max_stride: int,
        *,
        name: str,
        norm: Norm = "model",
        trainable_stages: Annotated[NonNegativeInt, Field(le=5)] = 5,
    ):
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
        self.is_depthwise = any(map(is_depthwise, self.net.modules()))
        compute_slow_gradients_in_fp32(self.net)
        self.strides = tuple(_strides(self.net))
        self.out_channels = tuple(_information(self.net).channels())
        self.pixel_mean, self.pixel_std = self._pixel_statistics(self.tag)
        frozen = tuple(i for i, stride in enumerate(strides) if stride <= 2 ** (5 - trainable_stages))
        self.frozen_norms = self._freeze(frozen, norm)
        self.train()

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the mode of the modules. Frozen batch norms always use their statistics.

        Args:
            mode: true is training, false is evaluation.
        """
        super().train(mode)
        for module in self.frozen_norms:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of normalized images. See `Backbone.forward`."""
        return self.net(images)

    def load(self, weights: str | Path) -> None:
        """Load published weights by their tag, `imagenet`, or a file with the tensors of a timm model of this name."""
        if isinstance(weights, Path):
            state = self._from_file(weights)
        elif weights == IMAGENET and self.name == PACKAGE_MODEL:
            state = load_package(self.net.state_dict())
        else:
            state = self._published(self._imagenet_tag() if weights == IMAGENET else weights)
        self.net.load_state_dict(state)

    def check_trainable(self) -> None:
        """Check that frozen batch norms have loaded statistics. Without them they normalize nothing.

        Raises:
            UserError: they have their initial statistics.
        """
        if frozen_batch_norm_is_random(nn.ModuleList(self.frozen_norms).state_dict()):
            raise UserError(
                "model.backbone: frozen batch norms need pretrained weights",
                "set model.weights=imagenet; to train from scratch, set model.backbone.norm=model and "
                "model.backbone.trainable_stages=5",
            )

    def _imagenet_tag(self) -> str:
        return self.tag or getattr(_timm().get_pretrained_cfg(self.name), "tag", IMAGENET)

    def _published(self, tag: str) -> dict[str, Tensor]:
        if tag not in self._tags():
            raise UserError(
                f"model.weights: {tag!r} is neither a file nor a tag of timm's {self.name}",
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
            url = f"https://huggingface.co/timm/{self.name}.{tag}"
            raise UserError(
                f"model.weights: cannot download timm's {self.name}.{tag} ({first_line(error)})",
                f"set model.weights to the path of model.safetensors of {url}, or train without: model.weights=null",
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

    def _freeze(self, indices: tuple[int, ...], norm: Norm) -> list[nn.Module]:
        """Freeze the stages of some maps, the norms, and the parameters that no map of the backbone depends on.

        timm keeps some stages above the highest map, and distributed training waits for a gradient of each trainable
        parameter.

        Args:
            indices: the numbers of timm's maps whose stages are frozen.
            norm: `frozen` freezes all batch norms.

        Returns:
            The batch norms of the frozen stages, or all batch norms.
        """
        norms = {name: module for name, module in self.net.named_modules() if isinstance(module, nn.BatchNorm2d)}
        frozen = self._parameters_of(indices) if indices else set()
        if norm == "frozen":
            if not norms:
                raise UserError(
                    f"model.backbone.norm: timm's {self.name} has no batch norms to freeze",
                    "set model.backbone.norm=model",
                )
            frozen |= {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
        trainable = self._parameters_of(self.options["out_indices"]) - frozen
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in trainable)
        return [module for name, module in norms.items() if f"{name}.weight" in frozen]

    def _parameters_of(self, indices: tuple[int, ...]) -> set[str]:
        """Return the names of the parameters that some maps of timm depend on."""
        with torch.device("meta"), torch.enable_grad():
            twin = self._create(out_indices=indices)
            config = _timm().get_pretrained_cfg(self.name)
            size = (3, 224, 224) if config is None else config.input_size
            total = torch.stack([x.sum() for x in twin(torch.zeros(1, *size))]).sum()
            names, parameters = zip(*twin.named_parameters(), strict=True)
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}

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
            "run uv sync --extra pretrained, or pip install 'imbalance-detector[pretrained]'",
        )
    import timm

    return timm
