"""Export a trained detector for other programs. The import of this package registers the shipped exporters."""

from detector.deploy.export.base import EXPORTERS, Exporter
from detector.deploy.export.onnx import OnnxExporter
from detector.deploy.export.torch_export import TorchExporter
from detector.deploy.export.write import export

__all__ = ["EXPORTERS", "Exporter", "OnnxExporter", "TorchExporter", "export"]
