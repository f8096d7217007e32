"""Registries: schemas from signatures, specs of parts, and the messages for wrong specs."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from detector.core.errors import UserError
from detector.core.registry import Registry
from detector.core.validation import (
    InvalidValues,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
)
from detector.data.dataset import DATASETS
from detector.data.pipeline.samplers import IMAGE_SAMPLERS
from detector.geometry.assignment.base import ASSIGNERS
from detector.losses.base import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.samplers import ANCHOR_SAMPLERS

INF, NAN = float("inf"), float("nan")
RICH = {"type": "rich", "folder": "a"}


class Focal:
    def __init__(self, *, alpha: UnitFloat = 0.25, gamma: NonNegativeFloat = 2.0):
        self.alpha, self.gamma = alpha, gamma


class Rich:
    """A part with each kind of annotation that a part may use."""

    def __init__(
        self,
        num_classes: int,
        class_counts: list[int] | None = None,
        *,
        folder: Path,
        sides: tuple[int, ...] = (1, 2),
        size: PositiveInt | tuple[PositiveInt, PositiveInt] = 8,
        mode: Literal["sum", "mean"] = "sum",
        names: list[str] | None = None,
        scale: Annotated[float, Field(gt=1)] = 2.0,
        flag: bool = False,
    ):
        self.injected = (num_classes, class_counts)
        self.values = {"folder": folder, "sides": sides, "size": size, "mode": mode, "names": names}
        self.values |= {"scale": scale, "flag": flag}


@pytest.fixture
def registry() -> Registry:
    registry = Registry("classification loss")
    registry.register("focal")(Focal)
    registry.register("rich")(Rich)

    @registry.register("ghm_c")
    def ghm(*, bins: PositiveInt = 30) -> str:
        return f"ghm of {bins}"

    return registry


def test_register_returns_the_owner_and_get_returns_it_by_name(registry):
    assert registry.register("again")(Focal) is Focal
    assert registry.get("again") is Focal
    assert registry.names() == ["again", "focal", "ghm_c", "rich"]


def test_a_name_belongs_to_a_single_definition(registry):
    with pytest.raises(ValueError, match=r"'focal'.*\.Focal"):
        registry.register("focal")(Rich)
    assert registry.get("focal") is Focal


@pytest.mark.parametrize("spec", ["focal", {"type": "focal"}])
def test_resolve_adds_the_defaults(registry, spec):
    assert registry.resolve(spec).to_dict() == {"type": "focal", "alpha": 0.25, "gamma": 2.0}


def test_resolve_does_not_change_its_input(registry):
    spec = {"type": "focal", "gamma": 1}
    assert registry.resolve(spec).parameters["gamma"] == 1.0
    assert spec == {"type": "focal", "gamma": 1}


def test_a_part_without_parameters_has_an_empty_schema(registry):
    class Plain:
        pass

    class Open:  # some modules of torch have this signature
        def __init__(self, *args, **kwargs):
            self.given = (args, kwargs)

    registry.register("plain")(Plain)
    registry.register("open")(Open)
    assert registry.resolve("plain").to_dict() == {"type": "plain"}
    assert isinstance(registry.build("plain"), Plain)
    assert registry.build("open").given == ((), {})
    for name in ("plain", "open"):
        with pytest.raises(InvalidValues) as error:
            registry.resolve({"type": name, "a": 1})
        assert error.value.problems.keys() == {("a",)}


def test_annotations_that_are_texts_are_evaluated(registry):
    @registry.register("late")
    def late(*, bins: "PositiveInt" = 3) -> int:
        return bins

    assert registry.build("late", bins=4) == 4
    with pytest.raises(UserError):
        registry.build("late", bins=0)


@pytest.mark.parametrize(
    ("spec", "key", "facts"),
    [
        ({"type": "focl"}, "l.c.type", ("'focl'", "'focal'?", "focal, ghm_c, rich")),
        ("zip", "l.c.type", ("'zip'", "focal, ghm_c, rich")),
        ({"type": ["focal"]}, "l.c.type", ("['focal']", "focal, ghm_c, rich")),
        ({"gamma": 1}, "l.c.type", ("focal, ghm_c, rich",)),
        (3, "l.c", ("3",)),
        (None, "l.c", ("None",)),
        ({"type": "focal", "gama": 1}, "l.c.gama", ("'gamma'?",)),
        ({"type": "focal", "zzz": 1}, "l.c.zzz", ("alpha, gamma",)),
        ({"type": "focal", "gamma": -1}, "l.c.gamma", ("-1", "0")),
        ({"type": "focal", "gamma": "1"}, "l.c.gamma", ("'1'",)),
        ({"type": "focal", "gamma": NAN}, "l.c.gamma", ("nan",)),
        ({"type": "focal", "alpha": 2, "gamma": -1, "x": 0}, "l.c.alpha", ("2", "(and 2 more)")),
        ({"type": "rich"}, "l.c.folder", ()),
        (RICH | {"flag": "no"}, "l.c.flag", ("'no'",)),
        (RICH | {"mode": "max"}, "l.c.mode", ("'max'", "'sum'", "'mean'")),
        (RICH | {"sides": [1, 2.5]}, "l.c.sides.1", ("2.5",)),
        (RICH | {"size": "x"}, "l.c.size", ("'x'", "integer", "array")),
        (RICH | {"size": [1, 0]}, "l.c.size.1", ("0",)),
        (RICH | {"size": {"b": 1}}, "l.c.size", ("{'b': 1}", "integer", "array")),
        (RICH | {"num_classes": 3}, "l.c.num_classes", ("folder, sides, size, mode, names, scale, flag",)),
    ],
)
def test_the_line_for_a_wrong_spec_names_the_key_the_value_and_the_choices(registry, spec, key, facts):
    with pytest.raises(InvalidValues) as error:
        registry.resolve(spec)
    where, _, message = error.value.line("l.c").partition(": ")
    assert where == key and all(fact in message for fact in facts)


def test_validated_values_survive_yaml_and_build_converts_them(registry):
    spec = {"type": "rich", "folder": "a/b", "sides": [3], "size": [4, 5], "names": ["no"], "scale": 3, "flag": True}
    resolved = registry.resolve(spec).to_dict()
    assert resolved == {**spec, "mode": "sum"}
    assert all(type(value) in (str, int, float, bool, list) for value in resolved.values())
    assert registry.resolve(yaml.safe_load(yaml.safe_dump(resolved))).to_dict() == resolved

    built = registry.build("rich", 7, [1, 2], **{key: value for key, value in resolved.items() if key != "type"})
    assert built.injected == (7, [1, 2])
    expected = {"folder": Path("a/b"), "sides": (3,), "size": (4, 5), "mode": "sum", "names": ["no"]}
    assert built.values == expected | {"scale": 3.0, "flag": True}
    assert isinstance(built.values["folder"], Path) and isinstance(built.values["scale"], float)


def test_build_accepts_python_values(registry):
    built = registry.build("rich", 7, folder=Path("c"), size=(1, 2))
    assert (built.values["folder"], built.values["size"], built.values["sides"]) == (Path("c"), (1, 2), (1, 2))
    assert registry.build("ghm_c", bins=10) == "ghm of 10"
    assert registry.build("focal", gamma=1).gamma == 1.0


def test_build_refuses_an_unknown_name_and_a_wrong_parameter(registry):
    with pytest.raises(UserError) as error:
        registry.build("focal", gama=1)
    assert error.value.problem.startswith("focal.gama: ") and "'gamma'?" in str(error.value)
    for find in (registry.build, registry.get):
        with pytest.raises(UserError) as error:
            find("ghm")
        assert "'ghm'" in error.value.problem
        assert "'ghm_c'?" in error.value.remedy and "focal, ghm_c, rich" in error.value.remedy


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (UnitFloat, [0, 1, 0.5], [-0.1, 1.1, INF]),
        (PositiveFloat, [1, 1e-9], [0, -1, INF]),
        (NonNegativeFloat, [0, 0.0, 3], [-1e-9, INF]),
        (PositiveInt, [1, 10**12], [0, -1, 1.5, 1.0]),
        (NonNegativeInt, [0, 1], [-1, 0.0]),
    ],
)
def test_number_types(kind, good, bad):
    adapter = TypeAdapter(kind)
    for value in good:
        assert adapter.validate_python(value) == value
    for value in [*bad, "1", True, False, None, NAN]:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_each_registry_has_the_noun_of_its_parts():
    nouns = [
        registry.noun
        for registry in (CLASSIFICATION_LOSSES, BOX_LOSSES, ASSIGNERS, DATASETS, ANCHOR_SAMPLERS, IMAGE_SAMPLERS)
    ]
    assert nouns == ["classification loss", "box loss", "assigner", "data set", "anchor sampler", "image sampler"]
