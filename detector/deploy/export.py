"""A trained detector as a file for other programs: ONNX, or a program of torch.export.

Images (B, 3, H, W) are uint8 RGB, with any B and the H and W of the export. What comes out is what the model says
(`RawGraph`) or, with post-processing in the graph, detections (`DetectionGraph`).
"""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision import ops

from detector.build import evaluation_side
from detector.core.errors import UserError
from detector.core.files import replacing, utf8_path
from detector.data.pipeline.buckets import round_up
from detector.data.pipeline.transforms import PADDING_COLOUR
from detector.deploy.predict import Detector
from detector.engine.views import PLAIN, make_views
from detector.geometry.boxes import clip, is_empty
from detector.models.detector import DetectionModel
from detector.models.postprocess import best_of_levels

METADATA = "metadata.json"  # inside a .pt2
BATCH = Dim("batch", min=1)
EXAMPLE_BATCH = 2  # of 1 torch.export would make a constant


def export(
    detector: Detector, path: Path, *, size: tuple[int, int] | None = None, nms: bool = False
) -> tuple[int, int]:
    """Write `path`, .onnx or .pt2 (torch.export), for images of `size` (height, width), by default a square of
    evaluation's side; `nms` puts the config's post-processing into the graph. All in fp32. Returns the size.

    With it come class_names, category_ids, image_size, level_sizes (anchors of each), padding_colour and the settings
    of post-processing: in ONNX's metadata, each as JSON; in a program's extra file METADATA, one JSON object.
    Raises UserError for another suffix, a size that does not suit the model or, for ONNX, a missing package.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: cannot export to '{path.suffix}'", "name it .onnx, or .pt2 for torch.export")
    if path.suffix == ".onnx":
        require("onnx", "onnxscript")
    model = copy.deepcopy(detector.model).to("cpu", memory_format=torch.contiguous_format).requires_grad_(False)
    height, width = size or [evaluation_side(detector.config)] * 2
    divisor = model.size_divisor
    rounded = tuple(round_up((height, width), divisor).tolist())
    if size is not None and (size != rounded or min(size) <= 0):
        good = " ".join(str(max(side, divisor)) for side in rounded)
        raise UserError(f"size {height} {width}: the model takes sides that are multiples of {divisor}", f"take {good}")
    # kept by the model, the anchors become a constant of the graph: the reason why the sides are fixed
    level_sizes = model.priors(rounded, torch.device("cpu")).level_sizes
    evaluation = detector.config.evaluation
    if nms and make_views(evaluation.flip, evaluation.scales) != [PLAIN]:
        raise UserError(
            "evaluation.flip, evaluation.scales: a file sees an image once", "set false and [1.0], or no nms"
        )
    rule = evaluation.postprocessing
    metadata = {
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "image_size": rounded,
        "level_sizes": level_sizes,
        "padding_colour": PADDING_COLOUR,
    } | rule
    graph = DetectionGraph(model, **rule) if nms else RawGraph(model)
    with _quiet(), replacing(path) as temporary, utf8_path(temporary) as name:
        example = torch.zeros(EXAMPLE_BATCH, 3, *rounded, dtype=torch.uint8), torch.full((EXAMPLE_BATCH, 2), divisor)
        example = example[: len(graph.inputs)]
        program = torch.export.export(graph, example, dynamic_shapes=({0: BATCH},) * len(example))
        WRITERS[path.suffix](program, graph, Path(name), metadata)
    return rounded


class RawGraph(nn.Module):
    """images -> logits (B, A, K), deltas (B, A, 4), anchors (A, 4); the model's box coder makes boxes of them."""

    inputs = ("images",)
    outputs = ("logits", "deltas", "anchors")

    def __init__(self, model: DetectionModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        said = self.model(images)
        return said.logits, said.raw, said.priors.boxes


class DetectionGraph(nn.Module):
    """images and their own sizes (B, 2) int64, (height, width) inside the padding -> boxes (B, N, 4) xyxy in pixels of
    `images`, scores (B, N), best first, labels (B, N) int64, by the rule of `postprocess`, but for equal scores, whose
    order is left to chance, and NaN, which finds nothing. N is max_detections, or the number of candidates where that
    is smaller; places left over have score 0, label -1 and box 0."""

    inputs = ("images", "sizes")
    outputs = ("boxes", "scores", "labels")

    def __init__(
        self,
        model: DetectionModel,
        *,
        score_threshold: float,
        nms_iou: float,
        candidates_per_level: int,
        max_detections: int,
    ):
        super().__init__()
        self.model = model
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates_per_level = candidates_per_level
        self.max_detections = max_detections

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        said = self.model(images)
        scores, candidates = best_of_levels(said, self.candidates_per_level, torch.topk)
        num_classes = said.logits.shape[2]
        anchor, labels = candidates // num_classes, candidates % num_classes
        raw = said.raw.gather(1, anchor[..., None].expand(-1, -1, said.raw.shape[2]))
        boxes = said.coder.decode(raw, said.priors.boxes[anchor])
        sizes = sizes.to(boxes.dtype)
        boxes = clip(boxes, sizes[:, :1], sizes[:, 1:]).nan_to_num(0)  # NaN becomes a box without area
        scores = scores.masked_fill(is_empty(boxes), 0)
        scores = suppress_op(boxes, scores, labels, num_classes, self.score_threshold, self.nms_iou)
        scores, best = scores.topk(min(self.max_detections, scores.shape[1]), dim=1)
        found = scores > 0
        labels = labels.gather(1, best).where(found, -1)
        boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4)).where(found[..., None], 0)
        return boxes, scores, labels


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, score_threshold: float, nms_iou: float
) -> Tensor:
    """boxes (B, C, 4), scores (B, C) and labels (B, C) -> the scores (B, C), 0 for those not above the threshold, and
    those that a better box of the same image and class overlaps by more than `nms_iou`."""
    image, column = (scores > score_threshold).nonzero(as_tuple=True)
    group = image * num_classes + labels[image, column]
    # each class of each image at a place of its own, far enough for fp32 to lose parts of a pixel
    places = boxes[image, column].double() + (group * (boxes.amax().double() + 1))[:, None]
    # two empty boxes, which nothing overlaps, are always kept: torchvision promises torch.export two at least
    kept = ops.nms(F.pad(places, (0, 0, 0, 2)), F.pad(scores[image, column].double(), (0, 2)), nms_iou)
    kept = kept[kept < column.shape[0]]
    position = image * scores.shape[1] + column
    return scores * torch.zeros_like(scores).flatten().scatter(0, position[kept], 1.0).view_as(scores)


# An op of its own until the file is written: ONNX has one that knows images and classes.
suppress_op = torch.library.custom_op("detector::suppress", suppress, mutates_args=())
suppress_op.register_fake(lambda boxes, scores, *_: torch.empty_like(scores))
SUPPRESS = torch.ops.detector.suppress.default


def suppress_in_onnx(
    boxes: Any, scores: Any, labels: Any, num_classes: int, score_threshold: float, nms_iou: float
) -> Any:
    """`suppress` in ONNX's terms."""
    from onnxscript import opset18 as op

    classes = op.Constant(value_ints=list(range(num_classes)))
    own = op.Equal(op.Unsqueeze(labels, [1]), op.Unsqueeze(classes, [0, 2]))  # B K C
    by_class = op.Where(own, op.Unsqueeze(scores, [1]), -1.0)
    kept = op.NonMaxSuppression(boxes, by_class, 2**63 - 1, nms_iou, score_threshold)  # image, class, column
    ones = op.Expand(1.0, op.Shape(kept, end=1))
    return op.Mul(scores, op.ScatterND(op.Mul(scores, 0.0), op.Gather(kept, [0, 2], axis=1), ones))


def write_onnx(program: ExportedProgram, graph: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        output_names=graph.outputs,
        dynamic_shapes=({0: BATCH},) * len(graph.inputs),  # for its name
        custom_translation_table={SUPPRESS: suppress_in_onnx},
    )
    onnx.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(path, external_data=False)


def write_program(program: ExportedProgram, graph: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Made of PyTorch's and torchvision's operators alone."""
    program = program.run_decompositions({SUPPRESS: suppress})
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


WRITERS = {".onnx": write_onnx, ".pt2": write_program}


def require(*packages: str) -> None:
    """Raises UserError where one of the extra `onnx` is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{package} is not installed, which ONNX needs",
                "uv sync --extra onnx, or pip install 'imbalance-detector[onnx]'",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
