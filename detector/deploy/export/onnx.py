"""ONNX files. Each value of the metadata is a JSON text in the metadata of the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detector.deploy.export.base import EXPORTERS, Exporter
from detector.deploy.export.graphs import SUPPRESS, Graph


@EXPORTERS.register("onnx")
class OnnxExporter(Exporter):
    """An exporter that writes ONNX files. The ONNX operator NonMaxSuppression suppresses boxes."""

    suffix = ".onnx"
    requires = ("onnx", "onnxscript")
    extra = "onnx"

    def write(self, graph: Graph, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the file."""
        onnx = torch.onnx.export(
            graph.program(),
            dynamo=True,
            verbose=False,
            output_names=graph.outputs,
            dynamic_shapes=graph.batch_dimensions(),  # for the name of the dimension
            custom_translation_table={SUPPRESS: suppress_in_onnx},
        )
        assert onnx is not None
        onnx.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
        onnx.save(path, external_data=False)


def suppress_in_onnx(
    boxes: Any, scores: Any, labels: Any, num_classes: int, score_threshold: float, nms_iou: float
) -> Any:
    """Set the scores of suppressed boxes to 0, with ONNX operators.

    The result is that of `detector.deploy.export.graphs.suppress`.

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
    from onnxscript import opset18

    op: Any = opset18  # onnxscript accepts Python numbers, but its type hints do not

    classes = op.Constant(value_ints=list(range(num_classes)))
    is_of_class = op.Equal(op.Unsqueeze(labels, [1]), op.Unsqueeze(classes, [0, 2]))  # (B, K, C)
    by_class = op.Where(is_of_class, op.Unsqueeze(scores, [1]), -1.0)
    selected = op.NonMaxSuppression(boxes, by_class, 2**63 - 1, nms_iou, score_threshold)  # rows (image, class, column)
    zeros, ones = op.Expand(0.0, op.Shape(scores)), op.Expand(1.0, op.Shape(selected, end=1))
    is_selected = op.Equal(op.ScatterND(zeros, op.Gather(selected, [0, 2], axis=1), ones), 1.0)
    return op.Where(is_selected, scores, 0.0)  # a product would keep NaN
