"""Functions that check values against a schema, and the messages for wrong values."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

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
KeyPath = tuple[str | int, ...]  # the keys and list indices that lead to a value


class Settings(BaseModel):
    """A section of the config. Unknown keys are errors, and `~` in a path is the home folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return expand_home(value)


class InvalidValues(ValueError):
    """Values that their schema refuses. `problems` maps the path of each wrong value to a message.

    The class is a ValueError. So an enclosing schema adds the problems of a field's validator to its problems.
    """

    def __init__(self, problems: dict[KeyPath, str]):
        self.problems = problems
        super().__init__(self.line(""))

    def line(self, where: str) -> str:
        """Return the first problem as `where.key: message`, and the number of the other problems."""
        (path, text), *others = self.problems.items()
        key = ".".join(map(str, (where, *path) if where else path))
        return f"{key}: {text}" + (f" (and {len(others)} more)" if others else "")


def parse(schema: type[Schema], values: dict[str, Any], context: Any = None) -> Schema:
    """Return the schema with these values.

    A list may become a tuple and a string a path, but no string or boolean becomes a number.

    Args:
        schema: the class of the result.
        values: the values, as in a YAML file.
        context: the context that the validators of the schema get.

    Raises:
        InvalidValues: the schema refuses a value, or a text is not UTF-8.
    """
    if where := _not_utf8(values, ()):
        raise InvalidValues({where: "the name is not UTF-8; rename the file or the folder"})
    try:
        # Strict JSON converts exactly these types. Strict Python would also refuse the lists and the strings.
        return schema.model_validate_json(to_json(values, inf_nan_mode="constants"), strict=True, context=context)
    except ValidationError as error:
        raise InvalidValues(_problems(error, schema, values)) from None


def in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds of a range. Raises ValueError where the first bound is above the second."""
    if bounds[0] > bounds[1]:
        raise ValueError("should be in order, the lower bound first")
    return bounds


def expand_home(value: Any) -> Any:
    """Return a path with the home folder in place of `~`, and any other value unchanged."""
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'NAME'?` with the known name that is most similar, or an empty text without such a name.

    Args:
        name: the unknown name.
        known: the known names.
    """
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _not_utf8(value: Any, path: KeyPath) -> KeyPath | None:
    """Return the key path of the first text with lone surrogates, which a file name has that is not UTF-8."""
    if isinstance(value, str):
        return None if is_utf8(value) else path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((inner for key, item in items if (inner := _not_utf8(item, (*path, key)))), None)


def _problems(error: ValidationError, schema: type[BaseModel], values: dict[str, Any]) -> dict[KeyPath, str]:
    problems: dict[KeyPath, str] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], values)
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, InvalidValues):
            problems |= {path + inner: text for inner, text in cause.problems.items()}
        elif path in problems:  # two members of a union refuse the same value
            problems[path] += ", or " + _reason(detail).removeprefix("should be ")
        else:
            problems[path] = _text(detail, path, schema)
    # One member of a union may refuse the complete value, and another only a key in it. The key is more precise.
    return {
        path: text
        for path, text in problems.items()
        if not any(len(path) < len(other) and other[: len(path)] == path for other in problems)
    }


def _path(location: KeyPath, values: Any) -> KeyPath:
    """Return pydantic's location without the names of union members, which pydantic puts between the keys."""
    path: KeyPath = ()
    for item in location:
        # an identifier that is not in the mapping is a missing field
        if isinstance(values, dict) and (item in values or str(item).isidentifier()):
            path, values = (*path, item), values.get(item, {})
        elif isinstance(values, list | tuple) and isinstance(item, int):
            path, values = (*path, item), values[item] if item < len(values) else None
    return path


def _text(detail: ErrorDetails, path: KeyPath, schema: type[BaseModel]) -> str:
    if detail["type"] == "missing":
        return "the key is missing"
    if detail["type"] == "extra_forbidden":
        known = _keys(schema, path[:-1])
        return "the key is unknown" + (did_you_mean(str(path[-1]), known) or f"; known: {', '.join(known) or 'none'}")
    return f"{detail['input']!r} is wrong: {_reason(detail)}"


def _reason(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Input ").removeprefix("Value error, ")


def _keys(schema: type[BaseModel], path: KeyPath) -> list[str]:
    fields = schema.model_fields
    for key in path:
        annotation = fields[str(key)].annotation
        members = get_args(annotation) or (annotation,)  # a section that may be null is a union
        sections = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        fields = sections[0].model_fields if sections else {}
    return list(fields)
