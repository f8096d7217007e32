"""ONNX files. Each value of the metadata is a JSON text in the model's metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detector.deploy.export.base import EXPORTERS, Exporter
from detector.deploy.export.graphs import SUPPRESS, Graph


@EXPORTERS.register("onnx")
class OnnxExporter(Exporter):
    """The suppression is ONNX's operator NonMaxSuppression."""

    suffix = ".onnx"
    requires = ("onnx", "onnxscript")
    extra = "onnx"

    def write(self, graph: Graph, path: Path, metadata: Mapping[str, Any]) -> None:
        onnx = torch.onnx.export(
            graph.program(),
            dynamo=True,
            verbose=False,
            output_names=graph.outputs,
            dynamic_shapes=graph.batch_dimensions(),  # for the dimension's name
            custom_translation_table={SUPPRESS: suppress_in_onnx},
        )
        assert onnx is not None
        onnx.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
        onnx.save(path, external_data=False)


def suppress_in_onnx(
    boxes: Any, scores: Any, labels: Any, num_classes: int, score_threshold: float, nms_iou: float
) -> Any:
    """`detector.deploy.export.graphs.suppress` with the operators of ONNX."""
    from onnxscript import opset18

    op: Any = opset18  # its types know no plain numbers, which it takes

    classes = op.Constant(value_ints=list(range(num_classes)))
    is_of_class = op.Equal(op.Unsqueeze(labels, [1]), op.Unsqueeze(classes, [0, 2]))  # B K C
    by_class = op.Where(is_of_class, op.Unsqueeze(scores, [1]), -1.0)
    selected = op.NonMaxSuppression(boxes, by_class, 2**63 - 1, nms_iou, score_threshold)  # image, class, column
    ones = op.Expand(1.0, op.Shape(selected, end=1))
    return op.Mul(scores, op.ScatterND(op.Mul(scores, 0.0), op.Gather(selected, [0, 2], axis=1), ones))
