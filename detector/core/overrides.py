"""Functions that read the overrides `key.path=value` of the command line.

A path or a text is read verbatim, and any other value as YAML. The schema of the config decides.
"""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from detector.core.errors import UserError
from detector.core.registry import ChosenFrom
from detector.core.strict_yaml import read_yaml

NULL = ("", "null", "Null", "NULL")


def read_overrides(overrides: Sequence[str], schema: type[BaseModel]) -> dict[str, Any]:
    """Return the values of overrides as nested mappings.

    The type of a part and its parameters may have any order. The later of two overrides of the same key is used.

    Args:
        overrides: texts `key.path=value`.
        schema: the schema of the config.

    Raises:
        UserError: a text is not an override, or a value is not YAML.
    """
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.split(".")
        if not equals or not all(keys):
            raise UserError(f"override {override!r}: the text is not key.path=value", "write key.path=value")
        values = _read(text, f"override {override!r}", _types(schema, keys))
        changes = merge(changes, nested({key: values}))
    return changes


def nested(value_by_key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of keys `key.path` as nested mappings. A later key has priority."""
    values: dict[str, Any] = {}
    for key, value in value_by_key.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        values = merge(values, value)
    return values


def merge(base: Any, update: Any) -> Any:
    """Return `base` with the values of `update`, merged mapping by mapping.

    A mapping with another `type` replaces the complete mapping of `base`, because another part has other parameters.

    Args:
        base: a value of a config. It is not changed.
        update: the value that has priority.
    """
    if not isinstance(update, dict):
        return update
    if isinstance(base, str):
        base = {"type": base}  # the short form of a part
    if not isinstance(base, dict) or ("type" in base and "type" in update and base["type"] != update["type"]):
        return update
    return base | {key: merge(base[key], value) if key in base else value for key, value in update.items()}


def _read(text: str, source: str, kinds: set[Any]) -> Any:
    """Return the value of a key that accepts the types `kinds`.

    A path or text is read verbatim, so it needs no quotes. Where the key also accepts null, `null` and an empty text
    are null.
    """
    is_text = kinds & {Path, str} and kinds <= {Path, str, type(None)}
    is_null = text in NULL and type(None) in kinds
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text if is_text and not is_null and not is_quoted else read_yaml(text, source)


def _types(schema: type[BaseModel], keys: list[str]) -> set[Any]:
    """Return the types that the key accepts.

    For a parameter of a part, these are the types in all parts that have the parameter. An unknown key gives an empty
    set.
    """
    field = schema.model_fields.get(keys[0])
    if field is None:
        return set()
    if len(keys) == 1:
        return _members(field.annotation)
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return _types(field.annotation, keys[1:])
    for registry in (item.registry for item in field.metadata if isinstance(item, ChosenFrom) and len(keys) == 2):
        if keys[1] == "type":
            return {str}
        parameters = (registry.parameters(name) for name in registry.names())
        return {kind for known in parameters if keys[1] in known for kind in _members(known[keys[1]])}
    return set()


def _members(annotation: Any) -> set[Any]:
    """Return the types in a union, without their constraints. A literal of texts gives the type of a text."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for member in get_args(annotation) for kind in _members(member)}
    if get_origin(annotation) is Literal and all(isinstance(value, str) for value in get_args(annotation)):
        return {str}
    return {annotation}
