"""The graphs that a file can contain: the model (`RawGraph`), or the model with post-processing (`DetectionGraph`).

In a graph, non-maximum suppression is the operator `detector::suppress`. Each exporter replaces this operator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision import ops

from detector.geometry.boxes import clip, is_empty
from detector.models.detector import DetectionModel
from detector.models.postprocess import best_of_levels

BATCH = Dim("batch", min=1)
EXAMPLE_BATCH = 2  # torch.export makes a batch of 1 a constant


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, score_threshold: float, nms_iou: float
) -> Tensor:
    """Set the scores of suppressed boxes to 0.

    A box is suppressed if its score is not above the threshold. It is also suppressed if its IoU with a better box of
    the same image and class is above `nms_iou`.

    Args:
        boxes: (B, C, 4), xyxy in pixels.
        scores: (B, C).
        labels: (B, C) int64, 0..num_classes - 1.
        num_classes: the number of classes.
        score_threshold: the highest score that is suppressed.
        nms_iou: the highest permitted IoU.

    Returns:
        The scores (B, C).
    """
    image, column = (scores > score_threshold).nonzero(as_tuple=True)
    group = image * num_classes + labels[image, column]
    # the offset separates the classes and images; in fp32 it would cause errors of parts of a pixel
    offset_boxes = boxes[image, column].double() + (group * (boxes.amax().double() + 1))[:, None]
    # torchvision declares at least two results to torch.export: two added empty boxes are always results
    selected = ops.nms(F.pad(offset_boxes, (0, 0, 0, 2)), F.pad(scores[image, column].double(), (0, 2)), nms_iou)
    selected = selected[selected < column.shape[0]]
    position = image * scores.shape[1] + column
    is_selected = torch.zeros_like(scores, dtype=torch.bool).flatten().scatter(0, position[selected], True)
    return scores.where(is_selected.view_as(scores), 0)  # a product would keep NaN


# The operator exists until the file is written, because ONNX has an operator for suppression by image and class.
suppress_op = torch.library.custom_op("detector::suppress", suppress, mutates_args=())
suppress_op.register_fake(lambda boxes, scores, *_: torch.empty_like(scores))
SUPPRESS = torch.ops.detector.suppress.default


class Graph(nn.Module):
    """A model that is traced for images (B, 3, H, W), uint8 RGB, with any B and fixed H and W.

    Attributes:
        inputs: the names of the arguments of `forward`.
        outputs: the names of the results of `forward`.
        model: the model.
        image_size: H and W in pixels.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, model: DetectionModel, image_size: tuple[int, int]):
        super().__init__()
        self.model = model
        self.image_size = image_size

    def example(self) -> tuple[Tensor, ...]:
        """Return example arguments of `forward`."""
        raise NotImplementedError

    def batch_dimensions(self) -> tuple[dict[int, Dim], ...]:
        """Return the variable dimensions of each argument, in the format of torch.export."""
        return ({0: BATCH},) * len(self.inputs)

    def program(self) -> ExportedProgram:
        """Return the traced graph. It can contain the operator `detector::suppress`."""
        return torch.export.export(self, self.example(), dynamic_shapes=self.batch_dimensions())


class RawGraph(Graph):
    """The model: images -> logits (B, A, K), deltas (B, A, R), anchors (A, 4).

    The logits are `Predictions.ranking_logits`. The deltas are the raw boxes. The box coder of the model decodes them.
    The anchors are the priors.
    """

    inputs = ("images",)
    outputs = ("logits", "deltas", "anchors")

    def example(self) -> tuple[Tensor, ...]:
        """Return an empty batch."""
        return (torch.zeros(EXAMPLE_BATCH, 3, *self.image_size, dtype=torch.uint8),)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits, deltas and anchors."""
        predictions = self.model(images)
        return predictions.ranking_logits, predictions.raw, predictions.priors.boxes


class DetectionGraph(Graph):
    """The model with post-processing: images, sizes -> boxes (B, N, 4), scores (B, N), labels (B, N).

    `sizes` (B, 2) int64 are the height and width of each image without its padding. The boxes are xyxy in pixels of
    `images`. The labels are int64. The rows are sorted by descending score. N is `max_detections`, or the number of
    candidates if that is smaller. Unused rows have score 0, label -1 and box 0.

    The rule is that of `detector.models.postprocess`, with two exceptions. The order of equal scores is not defined. A
    box that contains NaN is not detected. The graph of a model that is `nms_free` has no non-maximum suppression.

    Args:
        model: the model.
        image_size: H and W in pixels.
        score_threshold: see `EvaluationSettings`.
        nms_iou: see `EvaluationSettings`.
        candidates_per_level: see `EvaluationSettings`.
        max_detections: see `EvaluationSettings`.
    """

    inputs = ("images", "sizes")
    outputs = ("boxes", "scores", "labels")

    def __init__(
        self,
        model: DetectionModel,
        image_size: tuple[int, int],
        *,
        score_threshold: float,
        nms_iou: float,
        candidates_per_level: int,
        max_detections: int,
    ):
        super().__init__(model, image_size)
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates_per_level = candidates_per_level
        self.max_detections = max_detections

    def example(self) -> tuple[Tensor, ...]:
        """Return an empty batch and its sizes."""
        images = torch.zeros(EXAMPLE_BATCH, 3, *self.image_size, dtype=torch.uint8)
        return images, torch.full((EXAMPLE_BATCH, 2), self.model.size_divisor)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes, scores and labels."""
        predictions = self.model(images)
        scores, candidates = best_of_levels(predictions, self.candidates_per_level, torch.topk)
        num_classes = predictions.logits.shape[2]
        anchor, labels = candidates // num_classes, candidates % num_classes
        raw = predictions.raw.gather(1, anchor[..., None].expand(-1, -1, predictions.raw.shape[2]))
        boxes = predictions.coder.decode(raw, predictions.priors.boxes[anchor])
        sizes = sizes.to(boxes.dtype)
        boxes = clip(boxes, sizes[:, :1], sizes[:, 1:]).nan_to_num(0)  # NaN becomes a box without area
        scores = scores.masked_fill(is_empty(boxes), 0)
        if predictions.nms_free:
            scores = scores.where(scores > self.score_threshold, 0)
        else:
            scores = suppress_op(boxes, scores, labels, num_classes, self.score_threshold, self.nms_iou)
        scores, best = scores.topk(min(self.max_detections, scores.shape[1]), dim=1)
        is_detected = scores > 0
        labels = labels.gather(1, best).where(is_detected, -1)
        boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4)).where(is_detected[..., None], 0)
        return boxes, scores, labels
