"""The validation set of a run, as its config names it."""

from detector.build import build_dataset
from detector.config import data_part, make_config, with_parts
from detector.core.errors import UserError
from detector.core.files import read_json
from detector.data.dataset import DetectionDataset
from detector.lab.report.sources import Source
from detector.old_versions import upgrade_config


def read_validation_set(source: Source) -> DetectionDataset:
    """Read the annotations of the validation split of a run.

    Raises:
        UserError: the folder is no run of a training, or its data are not on this machine.
    """
    if source.files.get("config.yaml") != source.folder / "config.yaml" or source.metrics is None:
        raise UserError("the folder has no config.yaml or no metrics.json")
    config = make_config(upgrade_config(source.config)[0], for_inference=True)
    class_names = tuple(source.metrics.per_class)
    try:
        return build_dataset(with_parts(config, data_part(config, "val")), "val", class_names or None)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None


def read_detections(source: Source, dataset: DetectionDataset) -> list[dict]:
    """Read the detections of a run.

    Raises:
        UserError: there are none, or they are of other images or classes than the validation set.
    """
    file = source.folder / "detections.json"
    if not file.is_file():
        raise UserError("the folder has no detections.json")
    try:
        detections = read_json(file)
        images, categories = ({result[key] for result in detections} for key in ("image_id", "category_id"))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: no COCO results ({error})") from None
    if not images <= {record.image_id for record in dataset.records} or not categories <= set(dataset.category_ids):
        raise UserError(f"{file}: its images are not those of the validation split")
    return detections
