"""Reference implementations of the RetinaNets of detectron2 and mmdetection, with R50-FPN or R101-FPN.

The names and shapes of the tensors are those of the published files. Anchors and decoding follow the definitions of the
two libraries. The code is new, and tests compare the importers with it.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATIOS = (0.5, 1.0, 2.0)
STRIDES = (8, 16, 32, 64, 128)
LIMIT = math.log(1000 / 16)
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class Reference(nn.Module):
    """A RetinaNet. `forward` maps RGB images (B, 3, H, W) in 0..255 to the class map and the box map of each level."""

    num_classes: int

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits (B, A, K), deltas (B, A, 4), anchors (A, 4) and boxes (B, A, 4), in the library's order."""
        maps = self(images)
        logits, deltas = (
            torch.cat([m.movedim(1, -1).reshape(len(m), -1, n) for m in levels], dim=1)
            for levels, n in zip(zip(*maps, strict=True), (self.num_classes, 4), strict=True)
        )
        anchors = torch.cat(
            [
                torch.tensor([[x * stride, y * stride] * 2 for y in range(m[0].shape[2]) for x in range(m[0].shape[3])])
                .view(-1, 1, 4)
                .add(torch.from_numpy(self.cell_anchors(stride)))
                .view(-1, 4)
                for stride, m in zip(STRIDES, maps, strict=True)
            ]
        )
        return logits, deltas, anchors.float(), decode(deltas, anchors).to(deltas.dtype)

    @torch.no_grad()
    def settle(self, images: Tensor, class_output: nn.Conv2d, box_output: nn.Conv2d) -> None:
        """Set random weights, so that each missing or exchanged weight changes the output.

        The features, scores and boxes have a useful scale in all layers.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                module.weight.uniform_(0.5, 1.0)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
        self.train()(images)
        maps = zip(*self.eval()(images), strict=True)
        for output, levels, std, mean in zip((class_output, box_output), maps, (1.5, 0.3), (-4.0, 0.0), strict=True):
            output.weight.mul_(std / torch.cat([m.flatten() for m in levels]).std())
            output.bias.normal_(mean=mean, std=0.2)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Return the decoded boxes in float64."""
    x1, y1, x2, y2 = anchors.double().unbind(-1)
    dx, dy, dw, dh = deltas.double().unbind(-1)
    width, height = (x2 - x1) * dw.clamp(-LIMIT, LIMIT).exp(), (y2 - y1) * dh.clamp(-LIMIT, LIMIT).exp()
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), dim=-1)


def boxes_around_origin(sides: list[tuple[float, float]]) -> np.ndarray:
    return np.array([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])


def top_down(laterals: list[Tensor]) -> list[Tensor]:
    """Return the merged levels, the finest level first."""
    merged = laterals[-1:]
    for lateral in laterals[-2::-1]:
        merged.insert(0, lateral + F.interpolate(merged[0], scale_factor=2, mode="nearest"))
    return merged


# ---- detectron2


class NormedConv(nn.Conv2d):
    """A convolution that has its norm as a child module."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Detectron2Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.shortcut = NormedConv(inputs, 4 * width, 1, stride) if inputs != 4 * width else None
        self.conv1 = NormedConv(inputs, width, 1, stride)
        self.conv2 = NormedConv(width, width, 3)
        self.conv3 = NormedConv(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (out + (x if self.shortcut is None else self.shortcut(x))).relu()


class Detectron2RetinaNet(Reference):
    def __init__(self, num_classes: int, backbone: str = "resnet50"):
        super().__init__()
        self.num_classes = num_classes
        bottom_up, inputs = nn.Module(), 64
        bottom_up.stem = nn.Module()
        bottom_up.stem.conv1 = NormedConv(3, 64, 7, 2)
        for i, count in enumerate(BLOCKS[backbone]):
            width = 64 * 2**i
            blocks = [Detectron2Block(inputs, width, 1 if i == 0 else 2)]
            blocks += [Detectron2Block(4 * width, width, 1) for _ in range(count - 1)]
            bottom_up.add_module(f"res{i + 2}", nn.Sequential(*blocks))
            inputs = 4 * width
        self.backbone = nn.Module()
        for level, channels in ((3, 512), (4, 1024), (5, 2048)):
            self.backbone.add_module(f"fpn_lateral{level}", nn.Conv2d(channels, 256, 1))
            self.backbone.add_module(f"fpn_output{level}", nn.Conv2d(256, 256, 3, padding=1))
        self.backbone.top_block = nn.Module()
        self.backbone.top_block.p6 = nn.Conv2d(2048, 256, 3, stride=2, padding=1)
        self.backbone.top_block.p7 = nn.Conv2d(256, 256, 3, stride=2, padding=1)
        self.backbone.bottom_up = bottom_up
        self.head = nn.Module()
        for name in ("cls_subnet", "bbox_subnet"):
            layers = [layer for _ in range(4) for layer in (nn.Conv2d(256, 256, 3, padding=1), nn.ReLU())]
            self.head.add_module(name, nn.Sequential(*layers))
        self.head.cls_score = nn.Conv2d(256, 9 * num_classes, 3, padding=1)
        self.head.bbox_pred = nn.Conv2d(256, 9 * 4, 3, padding=1)

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        net, pyramid, head = self.backbone.bottom_up, self.backbone, self.head
        x = images.flip(1) - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
        x = F.max_pool2d(net.stem.conv1(x).relu(), 3, 2, 1)
        c3 = net.res3(net.res2(x))
        c4 = net.res4(c3)
        c5 = net.res5(c4)
        merged = top_down([pyramid.fpn_lateral3(c3), pyramid.fpn_lateral4(c4), pyramid.fpn_lateral5(c5)])
        p3, p4, p5 = (getattr(pyramid, f"fpn_output{i}")(x) for i, x in enumerate(merged, start=3))
        p6 = pyramid.top_block.p6(c5)
        p7 = pyramid.top_block.p7(p6.relu())
        levels = (p3, p4, p5, p6, p7)
        return [(head.cls_score(head.cls_subnet(x)), head.bbox_pred(head.bbox_subnet(x))) for x in levels]

    def cell_anchors(self, stride: int) -> np.ndarray:
        """Return the anchors, size by size: w = sqrt(size^2 / ratio), h = ratio * w."""
        sizes = [4 * stride * 2 ** (i / 3) for i in range(3)]
        widths = [(math.sqrt(s**2 / r), r) for s in sizes for r in RATIOS]
        return boxes_around_origin([(w, r * w) for w, r in widths])

    def published_state(self) -> dict[str, Tensor]:
        """Return the published tensors. The norms are frozen, and so have no count of batches."""
        return {k: v for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")}


# ---- mmdetection


class ConvModule(nn.Module):
    def __init__(self, inputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 256, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MMDetBlock(nn.Module):
    """A bottleneck block in mmdetection's style pytorch, with the stride in the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if inputs != 4 * width:
            convolution = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(out)) + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class MMDetRetinaNet(Reference):
    def __init__(self, num_classes: int, backbone: str = "resnet50"):
        super().__init__()
        self.num_classes = num_classes
        self.backbone, inputs = nn.Module(), 64
        self.backbone.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.backbone.bn1 = nn.BatchNorm2d(64)
        for i, count in enumerate(BLOCKS[backbone]):
            width = 64 * 2**i
            blocks = [MMDetBlock(inputs, width, 1 if i == 0 else 2)]
            blocks += [MMDetBlock(4 * width, width, 1) for _ in range(count - 1)]
            self.backbone.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            inputs = 4 * width
        self.neck = nn.Module()
        self.neck.lateral_convs = nn.ModuleList(ConvModule(channels, 1) for channels in (512, 1024, 2048))
        extra = (ConvModule(2048, 3, 2), ConvModule(256, 3, 2))
        self.neck.fpn_convs = nn.ModuleList([*(ConvModule(256, 3) for _ in range(3)), *extra])
        self.bbox_head = nn.Module()
        self.bbox_head.cls_convs = nn.ModuleList(ConvModule(256, 3) for _ in range(4))
        self.bbox_head.reg_convs = nn.ModuleList(ConvModule(256, 3) for _ in range(4))
        self.bbox_head.retina_cls = nn.Conv2d(256, 9 * num_classes, 3, padding=1)
        self.bbox_head.retina_reg = nn.Conv2d(256, 9 * 4, 3, padding=1)

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        net, neck, head = self.backbone, self.neck, self.bbox_head
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        x = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        x = F.max_pool2d(net.bn1(net.conv1(x)).relu(), 3, 2, 1)
        features = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            features.append(x)
        merged = top_down([conv(x) for conv, x in zip(neck.lateral_convs, features[1:], strict=True)])
        levels = [conv(x) for conv, x in zip(neck.fpn_convs[:3], merged, strict=True)]
        levels.append(neck.fpn_convs[3](features[-1]))  # the input is C5
        levels.append(neck.fpn_convs[4](levels[-1]))  # there is no activation between the two
        maps = []
        for x in levels:
            classes = boxes = x
            for conv in head.cls_convs:
                classes = conv(classes).relu()
            for conv in head.reg_convs:
                boxes = conv(boxes).relu()
            maps.append((head.retina_cls(classes), head.retina_reg(boxes)))
        return maps

    def cell_anchors(self, stride: int) -> np.ndarray:
        """Return the anchors, ratio by ratio: w = stride * scale / sqrt(ratio), h = stride * scale * sqrt(ratio)."""
        sizes = [stride * 4 * 2 ** (i / 3) for i in range(3)]
        return boxes_around_origin([(s / math.sqrt(r), s * math.sqrt(r)) for r in RATIOS for s in sizes])
