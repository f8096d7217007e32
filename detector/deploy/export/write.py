"""Export a trained detector. The graph, its checks and its metadata are equal for all formats."""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from detector.build import evaluation_side
from detector.config import import_modules
from detector.core.errors import UserError
from detector.core.files import replacing, utf8_path
from detector.core.structures import PADDING_COLOR
from detector.data.pipeline.buckets import round_up
from detector.deploy.export.base import EXPORTERS, Exporter
from detector.deploy.export.graphs import DetectionGraph, Graph, RawGraph
from detector.deploy.predict import Detector
from detector.engine.views import PLAIN, make_views


def export(
    detector: Detector, path: Path, *, size: tuple[int, int] | None = None, nms: bool = False
) -> tuple[int, int]:
    """Write a file with the model in fp32 and its metadata.

    The metadata are class_names, category_ids, image_size, level_sizes (the number of priors of each level),
    padding_colour, and the settings of the post-processing: score_threshold, nms_iou, candidates_per_level and
    max_detections. nms_iou is None for a model that needs no non-maximum suppression. `coder` is the name of the class
    of the box coder (see `detector.geometry.coders`), and reg_max is its largest distance, or None.

    Args:
        detector: the trained detector.
        path: the file to write. Its suffix chooses the exporter.
        size: the height and width of the images in pixels. The default is a square with the image side of evaluations.
        nms: whether the graph contains the post-processing of the config.

    Returns:
        The height and width of the images.

    Raises:
        UserError: the suffix does not select a single exporter, or a package is missing. The model does not accept
            images of this size. `nms` is set, but the config has test-time augmentation.
    """
    exporter = _exporter_for(path, detector.config.imports)
    graph, metadata = _prepare(detector, size, nms)
    with _quiet(), replacing(path) as temporary, utf8_path(temporary) as name:
        exporter.write(graph, Path(name), metadata)
    return graph.image_size


def _exporter_for(path: Path, imports: Sequence[str]) -> Exporter:
    """Return the exporter of the suffix of `path`.

    The modules of `imports` are imported only if no shipped exporter has the suffix. Therefore a shipped format does
    not need the modules of the training.
    """
    if not _names_for(path):
        import_modules(imports)
    names = _names_for(path)
    if not names:
        known = ", ".join(_suffix(name) for name in EXPORTERS.names())
        raise UserError(
            f"{path}: no exporter writes '{path.suffix}' (known: {known})",
            "choose another suffix, or name the module that registers the exporter: imports=[MODULE]",
        )
    if len(names) > 1:
        raise UserError(
            f"{path}: the exporters {', '.join(names)} have the same suffix '{path.suffix}'", "change a suffix"
        )
    exporter = EXPORTERS.build(names[0])
    for package in exporter.requires:
        if importlib.util.find_spec(package) is None:
            extra = exporter.extra
            remedy = f"uv sync --extra {extra}, or pip install 'imbalance-detector[{extra}]'" if extra else "install it"
            raise UserError(f"{path}: the exporter {names[0]} requires {package}, which is not installed", remedy)
    return exporter


def _names_for(path: Path) -> list[str]:
    return [name for name in EXPORTERS.names() if path.name.endswith(_suffix(name))]


def _suffix(name: str) -> str:
    exporter: Any = EXPORTERS.get(name)
    return exporter.suffix


def _prepare(detector: Detector, size: tuple[int, int] | None, nms: bool) -> tuple[Graph, dict[str, Any]]:
    """Check the settings, and return the graph and its metadata."""
    model = copy.deepcopy(detector.model).to("cpu").to(memory_format=torch.contiguous_format).requires_grad_(False)
    height, width = size or [evaluation_side(detector.config)] * 2
    divisor = model.size_divisor
    padded_height, padded_width = round_up((height, width), divisor).tolist()
    image_size = (padded_height, padded_width)
    if size is not None and (size != image_size or min(size) <= 0):
        good = " ".join(str(max(side, divisor)) for side in image_size)
        raise UserError(f"size {height} {width}: both sides must be positive multiples of {divisor}", f"give {good}")
    evaluation = detector.config.evaluation
    if nms and make_views(evaluation.flip, evaluation.scales) != [PLAIN]:
        raise UserError(
            "evaluation.flip, evaluation.scales: an exported file has no test-time augmentation",
            "set evaluation.flip=false and evaluation.scales=[1.0], or export without nms",
        )
    # the model caches the anchors, so they become a constant of the graph, and the image size is fixed
    level_sizes = model.priors(image_size, torch.device("cpu")).level_sizes
    rule = evaluation.postprocessing
    metadata = {
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "image_size": image_size,
        "level_sizes": level_sizes,
        "coder": type(model.coder).__name__,
        "reg_max": getattr(model.coder, "reg_max", None),
        "padding_colour": PADDING_COLOR,
        **rule,
        "nms_iou": None if model.nms_free else rule["nms_iou"],
    }
    return DetectionGraph(model, image_size, **rule) if nms else RawGraph(model, image_size), metadata


@contextmanager
def _quiet() -> Generator[None]:
    """As a context: suppress the warnings and log lines of the libraries that write the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
