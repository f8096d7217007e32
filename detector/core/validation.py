"""Values checked against a schema, and the message that each wrong value gets."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, to_json

from detector.core.files import is_utf8

UnitFloat = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveFloats = Annotated[list[PositiveFloat], Field(min_length=1)]
Switch = Annotated[bool, Field(strict=True)]

Schema = TypeVar("Schema", bound=BaseModel)
KeyPath = tuple[str | int, ...]  # keys and list indices that lead to a value


class Settings(BaseModel):
    """A section of the config: keys that it does not know are refused, and `~` in a path is the home folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return expand_home(value)


class InvalidValues(ValueError):
    """Values that their schema refuses: `problems` maps the path of each wrong value to what is wrong with it.

    A ValueError, so that one raised while a field is validated joins the problems of the enclosing schema.
    """

    def __init__(self, problems: dict[KeyPath, str]):
        self.problems = problems
        super().__init__(self.line(""))

    def line(self, where: str) -> str:
        """The first problem as `where.key: what is wrong`, and the number of the others."""
        (path, text), *others = self.problems.items()
        key = ".".join(map(str, (where, *path) if where else path))
        return f"{key}: {text}" + (f" (and {len(others)} more)" if others else "")


def parse(schema: type[Schema], values: dict[str, Any], context: Any = None) -> Schema:
    """Validate values as a YAML file gives them: a list may become a tuple and a string a path, but no string or
    boolean becomes a number. Validators of the schema see `context`. Raises InvalidValues."""
    if where := _not_utf8(values, ()):
        raise InvalidValues({where: "is not UTF-8; rename the file or folder that it names"})
    try:
        # Strict JSON is exactly that reading; strict Python would refuse the lists and the strings as well.
        return schema.model_validate_json(to_json(values, inf_nan_mode="constants"), strict=True, context=context)
    except ValidationError as error:
        raise InvalidValues(_problems(error, schema, values)) from None


def in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds of a range. Raises ValueError where the lower bound is not first."""
    if bounds[0] > bounds[1]:
        raise ValueError("should be in order, the lower bound first")
    return bounds


def expand_home(value: Any) -> Any:
    """A path with the home folder for `~`; other values as they are."""
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'NAME'?`, or nothing where no known name is close."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _not_utf8(value: Any, path: KeyPath) -> KeyPath | None:
    """The place of a text with lone surrogates, as the names of files that are not UTF-8 have."""
    if isinstance(value, str):
        return None if is_utf8(value) else path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in items if (found := _not_utf8(item, (*path, key)))), None)


def _problems(error: ValidationError, schema: type[BaseModel], values: dict[str, Any]) -> dict[KeyPath, str]:
    problems: dict[KeyPath, str] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], values)
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, InvalidValues):
            problems |= {path + inner: text for inner, text in cause.problems.items()}
        elif path in problems:  # another member of a union refuses the same value
            problems[path] += ", or " + _reason(detail).removeprefix("should be ")
        else:
            problems[path] = _text(detail, path, schema)
    # Where one member of a union refuses the whole value and another a place inside it, the place says more.
    return {
        path: text
        for path, text in problems.items()
        if not any(len(path) < len(other) and other[: len(path)] == path for other in problems)
    }


def _path(location: KeyPath, values: Any) -> KeyPath:
    """pydantic's location without the union members it names between the keys."""
    path: KeyPath = ()
    for item in location:
        # a key that is absent is a field's
        if isinstance(values, dict) and (item in values or str(item).isidentifier()):
            path, values = (*path, item), values.get(item, {})
        elif isinstance(values, list | tuple) and isinstance(item, int):
            path, values = (*path, item), values[item] if item < len(values) else None
    return path


def _text(detail: ErrorDetails, path: KeyPath, schema: type[BaseModel]) -> str:
    if detail["type"] == "missing":
        return "required, and missing"
    if detail["type"] == "extra_forbidden":
        known = _keys(schema, path[:-1])
        return "unknown key" + (did_you_mean(str(path[-1]), known) or f"; known: {', '.join(known) or 'none'}")
    return f"{detail['input']!r} is wrong: {_reason(detail)}"


def _reason(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Input ").removeprefix("Value error, ")


def _keys(schema: type[BaseModel], path: KeyPath) -> list[str]:
    fields = schema.model_fields
    for key in path:
        annotation = fields[str(key)].annotation
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
    return list(fields)
