"""Programs of torch.export. The metadata is a JSON object in the extra file `METADATA` of the program."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detector.deploy.export.base import EXPORTERS, Exporter
from detector.deploy.export.graphs import SUPPRESS, Graph, suppress

METADATA = "metadata.json"


@EXPORTERS.register("torch_export")
class TorchExporter(Exporter):
    """An exporter that writes programs with only operators of PyTorch and torchvision."""

    suffix = ".pt2"

    def write(self, graph: Graph, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the file."""
        program = graph.program().run_decompositions({SUPPRESS: suppress})
        torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
