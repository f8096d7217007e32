"""Named parts whose keyword-only signature is their schema, and the messages that a wrong value gets.

A class or function registered under a name can be chosen in a config by `{type: NAME, parameter: value, ...}`, or by
`NAME` alone. Its keyword-only parameters are what the user may set: annotations are their types, defaults their
defaults. Its positional parameters (`num_classes`, say) are injected by whoever builds it.
"""

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic_core import ErrorDetails, to_json

from detector.core.errors import UserError
from detector.core.files import is_utf8

UnitFloat = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]

Owner = TypeVar("Owner", bound=Callable[..., Any])
Schema = TypeVar("Schema", bound=BaseModel)
KeyPath = tuple[str | int, ...]  # keys and list indices that lead to a value


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
        if isinstance(values, dict) and (item in values or item.isidentifier()):  # a key that is absent is a field's
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
    for key in path:
        schema = schema.model_fields[key].annotation
    return list(schema.model_fields)


@dataclass(frozen=True, slots=True)
class _Part:
    owner: Callable[..., Any]
    schema: type[BaseModel]
    declared: bool


def _is_same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


class Registry:
    """Parts of one kind by name, e.g. `Registry("classification loss")`."""

    def __init__(self, noun: str):
        self.noun = noun
        self._parts: dict[str, _Part] = {}

    def register(self, name: str) -> Callable[[Owner], Owner]:
        """Decorator: know a class or function by this name.

        A definition that is executed again replaces the earlier one (its module failed to import, or was reloaded).
        Raises ValueError where the name belongs to another definition.
        """
        return self._add(name, declared=False)

    def declare(self, name: str) -> Callable[[Owner], Owner]:
        """Decorator: know a signature by this name until the part itself is registered; see `detector.signatures`."""
        return self._add(name, declared=True)

    def _add(self, name: str, *, declared: bool) -> Callable[[Owner], Owner]:
        def add(owner: Owner) -> Owner:
            known = self._parts.get(name)
            if known is not None and not known.declared:
                if declared:
                    return owner
                if not _is_same_definition(known.owner, owner):
                    raise ValueError(f"{self.noun} {name!r} is already registered by {known.owner!r}")
            fields = {
                parameter.name: (
                    parameter.annotation,
                    ... if parameter.default is parameter.empty else parameter.default,
                )
                for parameter in inspect.signature(owner, eval_str=True).parameters.values()
                if parameter.kind is parameter.KEYWORD_ONLY
            }
            validators = {"home": field_validator("*", mode="after")(expand_home)}
            schema = create_model(name, __config__=ConfigDict(extra="forbid"), __validators__=validators, **fields)
            self._parts[name] = _Part(owner, schema, declared)
            return owner

        return add

    def names(self) -> list[str]:
        return sorted(self._parts)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def lacks(self, spec: Any) -> bool:
        """Whether a spec `{type: NAME, ...}` or `NAME` names a part that is not registered."""
        name = spec.get("type") if isinstance(spec, dict) else spec
        return isinstance(name, str) and name not in self

    def get(self, name: str) -> Callable[..., Any]:
        """The class or function of that name. Raises UserError, with the known names, where there is none."""
        if name not in self._parts:
            raise UserError(self._unknown(name))
        return self._parts[name].owner

    def parameters(self, name: str) -> dict[str, Any]:
        """The types of a part's parameters by name, in the order of its signature."""
        return {key: field.annotation for key, field in self._parts[name].schema.model_fields.items()}

    def build(self, name: str, /, *injected: Any, **parameters: Any) -> Any:
        """Construct a part from what it is injected with and the parameters, which its schema checks first.

        Raises UserError for an unknown name and for parameters that the schema refuses.
        """
        owner = self.get(name)
        try:
            checked = parse(self._parts[name].schema, parameters)
        except InvalidValues as error:
            raise UserError(error.line(name)) from None
        return owner(*injected, **dict(checked))

    def resolve(self, spec: dict[str, Any] | str) -> dict[str, Any]:
        """The spec `{type: NAME, ...}` or `NAME` with every default filled in, as plain values that YAML can hold.

        Raises InvalidValues.
        """
        if isinstance(spec, str):
            spec = {"type": spec}
        if not isinstance(spec, dict):
            raise InvalidValues({(): f"{spec!r} is wrong: should be a mapping with a type, or the type alone"})
        if "type" not in spec:
            raise InvalidValues({("type",): f"required, and missing; known: {', '.join(self.names())}"})
        name = spec["type"]
        if not isinstance(name, str) or name not in self._parts:
            raise InvalidValues({("type",): self._unknown(name)})
        parameters = {key: value for key, value in spec.items() if key != "type"}
        return {"type": name, **parse(self._parts[name].schema, parameters).model_dump(mode="json")}

    def _unknown(self, name: Any) -> str:
        names = self.names()
        hint = did_you_mean(name, names) if isinstance(name, str) else ""
        return f"no {self.noun} {name!r}{hint or ';'} known: {', '.join(names) or 'none'}"


CLASSIFICATION_LOSSES = Registry("classification loss")
BOX_LOSSES = Registry("box loss")
ASSIGNERS = Registry("assigner")
DATASETS = Registry("data set")
ANCHOR_SAMPLERS = Registry("anchor sampler")
IMAGE_SAMPLERS = Registry("image sampler")
