"""Registries of the parts of the detector. A registry maps names to parts and their schemas.

A config chooses a class or function by its registered name: `{type: NAME, parameter: value, ...}`, or only `NAME`.
The user sets the keyword-only parameters. Their annotations and defaults in the signature are the schema. The program
sets the positional parameters by their names: `num_classes`, `class_counts`, `labels_by_image` and so on (see
`Part.build`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, create_model, field_validator
from pydantic_core import CoreSchema, core_schema

from detector.core.errors import UserError
from detector.core.validation import InvalidValues, did_you_mean, expand_home, parse

T = TypeVar("T")
Owner = TypeVar("Owner", bound=Callable[..., Any])
# The validation context in which the modules of `imports` are not imported. Their parts stay unchecked.
FOR_INFERENCE = "for inference"


@dataclass(frozen=True, slots=True)
class _Entry:
    owner: Callable[..., Any]
    schema: type[BaseModel]


class Registry(Generic[T]):
    """The parts of one kind by name, for example `Registry("classification loss")`."""

    def __init__(self, noun: str):
        self.noun = noun
        self._entries: dict[str, _Entry] = {}

    def register(self, name: str) -> Callable[[Owner], Owner]:
        """Return a decorator that registers a class or function under this name.

        The decorator raises ValueError where the name belongs to another definition. It replaces an earlier execution
        of the same definition, as after a failed import or a reload.
        """

        def add(owner: Owner) -> Owner:
            known = self._entries.get(name)
            if known is not None and not _is_same_definition(known.owner, owner):
                raise ValueError(f"{self.noun} {name!r} is already registered by {known.owner!r}")
            fields: dict[str, Any] = {
                parameter.name: (
                    parameter.annotation,
                    ... if parameter.default is parameter.empty else parameter.default,
                )
                for parameter in inspect.signature(owner, eval_str=True).parameters.values()
                if parameter.kind is parameter.KEYWORD_ONLY
            }
            validators: dict[str, Any] = {"home": field_validator("*", mode="after")(expand_home)}
            schema = create_model(name, __config__=ConfigDict(extra="forbid"), __validators__=validators, **fields)
            self._entries[name] = _Entry(owner, schema)
            return owner

        return add

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> Callable[..., T]:
        """Return the class or function of that name. Raises UserError with the known names for an unknown name."""
        if name not in self._entries:
            raise UserError(f"there is no {self.noun} {name!r}", self._choices(name))
        return self._entries[name].owner

    def parameters(self, name: str) -> dict[str, Any]:
        """Return the types of a part's parameters by name, in the order of its signature."""
        return {key: info.annotation for key, info in self._entries[name].schema.model_fields.items()}

    def build(self, name: str, /, *injected: Any, **parameters: Any) -> T:
        """Construct a part.

        Args:
            name: the name that the part is registered under.
            injected: the positional arguments of the constructor.
            parameters: the keyword-only arguments of the constructor. The schema of the part checks them first.

        Raises:
            UserError: the name is unknown, or the schema refuses a parameter.
        """
        return self.get(name)(*injected, **self._checked(name, parameters))

    def build_with(self, known: Mapping[str, Any], name: str, parameters: Mapping[str, Any]) -> T:
        """Construct a part from values that the program knows and from its parameters (see `Part.build`).

        Args:
            known: the values that the program knows, by the names that constructors use.
            name: the name that the part is registered under.
            parameters: the keyword-only arguments of the constructor.

        Raises:
            TypeError: the constructor has a positional parameter that is not in `known`.
            UserError: the name is unknown, or the schema refuses a parameter.
        """
        owner = self.get(name)
        injected = {}
        for key, parameter in inspect.signature(owner).parameters.items():
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                if key not in known:
                    raise TypeError(f"{self.noun} {name!r} needs {key!r}, but can only get {', '.join(known)}")
                injected[key] = known[key]
        filled = {key: known.get(key) if value is None else value for key, value in parameters.items()}
        return owner(**injected, **self._checked(name, filled))

    def _checked(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(parse(self._entries[name].schema, dict(parameters)))
        except InvalidValues as error:
            raise UserError(error.line(name)) from None

    def resolve(self, spec: Any) -> "Part[T]":
        """Return the part that a spec `{type: NAME, ...}` or `NAME` chooses, with the defaults of all parameters.

        Raises:
            InvalidValues: the spec is wrong.
        """
        name, parameters = _split(spec)
        if name is None:
            raise InvalidValues({("type",): f"the key is missing; {self._choices()}"})
        if not isinstance(name, str) or name not in self._entries:
            raise InvalidValues({("type",): f"there is no {self.noun} {name!r}; {self._choices(name)}"})
        return Part(name, parse(self._entries[name].schema, parameters).model_dump(mode="json"), self)

    def _choices(self, name: Any = None) -> str:
        """Return the known names, after the name that is most similar to `name`."""
        names = self.names()
        hint = did_you_mean(name, names).removeprefix("; ") if isinstance(name, str) else ""
        return f"{hint} known: {', '.join(names) or 'none'}".lstrip()


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part that a config chooses: `type` is its name in the registry, and `parameters` are its values in YAML."""

    type: str
    parameters: dict[str, Any]
    registry: Registry[T] = field(repr=False, compare=False)

    def build(self, known: Mapping[str, Any] | None = None) -> T:
        """Construct the part.

        Args:
            known: the values that the program knows, by the names that constructors use. Each positional parameter of
                the constructor gets the value of its name. A keyword-only parameter that is null in the config also
                gets the value of its name.

        Raises:
            TypeError: the constructor has a positional parameter that is not in `known`.
            UserError: the part is not registered.
        """
        return self.registry.build_with(known or {}, self.type, self.parameters)

    def with_parameters(self, **changed: Any) -> "Part[T]":
        """Return the part with some parameters changed."""
        return replace(self, parameters=self.parameters | changed)

    @property
    def is_registered(self) -> bool:
        """Whether the registry has this part."""
        return self.type in self.registry

    def to_dict(self) -> dict[str, Any]:
        """Return the spec `{type: NAME, parameter: value, ...}`."""
        return {"type": self.type, **self.parameters}


@dataclass(frozen=True)
class ChosenFrom:
    """An annotation for a field of a config. `Annotated[Part[T], ChosenFrom(REGISTRY)]` accepts the spec of a part.

    Attributes:
        registry: the registry of the part.
        default: the type of a spec that has no type.
        is_optional: whether the field also accepts null.
    """

    registry: Registry[Any]
    default: str | None = None
    is_optional: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            lambda spec, info: self.resolve(spec, info.context),
            serialization=core_schema.plain_serializer_function_ser_schema(self.to_plain),
        )

    def to_plain(self, part: Any) -> Any:
        """Return the spec of a part as plain values, or None for None."""
        return None if part is None else part.to_dict()

    def resolve(self, spec: Any, context: Any) -> Any:
        """Return the part that a spec chooses.

        Args:
            spec: `{type: NAME, ...}`, `NAME`, a part, or None.
            context: the validation context, for example FOR_INFERENCE.

        Raises:
            InvalidValues: the spec is wrong.
        """
        if spec is None and self.is_optional:
            return None
        if isinstance(spec, Part):
            return spec
        if self.default is not None and isinstance(spec, dict):
            spec = {"type": self.default} | spec
        name, parameters = _split(spec)
        if context == FOR_INFERENCE and isinstance(name, str) and name not in self.registry:
            return Part(name, parameters, self.registry)
        return self.registry.resolve(spec)


def _split(spec: Any) -> tuple[Any, dict[str, Any]]:
    """Return the type, or None, and the parameters of a spec `{type: NAME, ...}` or `NAME`."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, dict):
        raise InvalidValues({(): f"{spec!r} is wrong: should be a mapping with a type, or only the type"})
    return spec.get("type"), {key: value for key, value in spec.items() if key != "type"}


def _is_same_definition(first: Callable[..., Any], second: Callable[..., Any]) -> bool:
    return all(getattr(first, name) == getattr(second, name) for name in ("__module__", "__qualname__"))
