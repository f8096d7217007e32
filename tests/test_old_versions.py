import copy

import pytest
import yaml

from detector.config import make_config, to_yaml
from detector.core.errors import UserError
from detector.old_versions import upgrade_config

# as version 0.1 wrote the sections into a checkpoint
DATA = {"train": {"type": "coco", "images": "a", "annotations": "b"}, "val": None, "split": 0.8}
AUGMENT = {"horizontal_flip": 0.5, "vertical_flip": 0.25, "scale": [0.5, 2.0], "translate": 0.0, "min_visibility": 0.1}
AUGMENT |= {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.1}
MODEL = {"backbone": "resnet18", "norm": "group", "trainable_stages": 5, "stride_in_1x1": False, "head_depth": 2}
MODEL |= {"head_norm": "none", "prior": 0.01, "anchor_sizes": [[8.0]], "anchor_ratios": [1.0], "levels": [3, 3]}
OLD = {"data": DATA | {"augment": AUGMENT}, "model": MODEL}


def test_an_upgraded_config_is_what_this_version_writes():
    """The resume comparison is between these two texts, so the types and all old keys must be there."""
    before = copy.deepcopy(OLD)
    upgraded, texts = upgrade_config(OLD)
    assert before == OLD and upgrade_config(upgraded) == (upgraded, [])
    assert len(texts) == 9
    written = yaml.safe_load(to_yaml(make_config(upgraded)))
    assert upgraded["data"]["transforms"] == written["data"]["transforms"]
    assert [part["type"] for part in written["data"]["transforms"]] == ["flip", "affine", "color"]
    assert upgraded["model"]["backbone"] == written["model"]["backbone"]
    assert upgraded["model"]["head"].items() <= written["model"]["head"].items() and "type" in upgraded["model"]["head"]


@pytest.mark.parametrize(
    ("augment", "types"),
    [({}, ["flip"]), ({"hue": 0.1}, ["flip", "color"]), ({"horizontal_flip": 0, "scale": [1, 1]}, []), (3, ["flip"])],
)
def test_a_config_with_the_old_key_is_refused_with_what_to_write(augment, types):
    with pytest.raises(UserError) as refused:
        make_config({"data": DATA | {"augment": augment}})
    key, _, value = str(refused.value).partition(": write data.transforms: ")
    assert key == "data.augment"
    transforms = make_config({"data": DATA | {"transforms": yaml.safe_load(value)}}).data.transforms
    assert [part.type for part in transforms] == types
