"""The instance annotations of COCO, and those of LVIS in the same format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.core.errors import UserError
from detector.data.checks.findings import Findings
from detector.data.dataset import DATASETS, DetectionDataset
from detector.data.formats.entries import parse_coco
from detector.data.formats.folders import Folder, list_unused


@DATASETS.register("coco")
class CocoDataset(DetectionDataset):
    """A COCO instances file and its images.

    Args:
        class_names: the class names in label order. None takes the categories of the file, sorted by id.
        findings: receives the problems of single entries.
        images: the folder that `file_name` is relative to.
        annotations: the instances file.

    Raises:
        UserError: the file is missing or malformed, or no image can be used.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        images: Path,
        annotations: Path,
    ):
        findings = findings or Findings()
        folder = Folder.read(images)
        dictionary = read_json(annotations)
        records, class_names, category_ids = parse_coco(dictionary, annotations, folder, class_names, findings)
        named = (folder.find(entry.get("file_name", "")) for entry in dictionary["images"])
        used = [annotations, *(folder.path(name) for name in named if name), *(record.path for record in records)]
        list_unused([folder], used, findings)
        super().__init__(records, class_names, category_ids)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object. Raises UserError."""
    try:
        dictionary = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror})", "check the path") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: the file is not valid JSON ({reason})", "correct or replace the file") from None
    if not isinstance(dictionary, dict):
        kind = type(dictionary).__name__
        raise UserError(
            f"{path}: the file contains a JSON {kind} instead of an object", "give an instances file in COCO format"
        )
    return dictionary
