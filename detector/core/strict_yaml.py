"""A strict reader and writer of YAML. It refuses tags, anchors and duplicate keys, and it never executes code."""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from detector.core.errors import UserError


def read_yaml(text: str, source: str, *, as_text: bool = False) -> Any:
    """Return the mappings, lists and scalars of a YAML text.

    Args:
        text: the YAML text.
        source: the name of the text in error messages.
        as_text: read each scalar as its verbatim text (`007`, `1.50`, `no`).

    Raises:
        UserError: the text is not strict YAML.
    """
    try:
        return yaml.load(text, Loader=TextLoader if as_text else Loader)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise UserError(f"{source}: line {line}: {error.problem}", error.note or "correct the YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a forbidden character; a number or nesting too long
        raise UserError(f"{source}: {str(error).splitlines()[0]}", "correct the YAML") from None


class Loader(yaml.SafeLoader):
    """A loader of strict YAML.

    The scalars are those of version 1.2: 1e-4 is a number, 010 is ten, and no, on and 2024-01-31 are texts. Each key is
    a text and occurs once in its mapping. Tags and anchors are errors.
    """

    yaml_implicit_resolvers: dict = {}  # without the scalars of version 1.1, which the base class reads

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """Return a mapping whose keys are unique texts.

        Args:
            node: the node of the mapping.
            deep: construct the values immediately, as in the base class.

        Raises:
            ConstructorError: a key is not a text, or occurs twice.
        """
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is not a text", key_node.start_mark, "write a text")
            if key_node.value in mapping:
                problem = f"duplicate key {key_node.value!r}"
                raise ConstructorError(None, None, problem, key_node.start_mark, "remove one of the two keys")
            mapping[key_node.value] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Return a decimal integer. A leading zero does not make it octal."""
        return int(node.value)

    def fetch_tag(self) -> None:
        """Refuse a tag. Raises ScannerError."""
        self._refuse("a tag (!)")

    def fetch_anchor(self) -> None:
        """Refuse an anchor. Raises ScannerError."""
        self._refuse("an anchor (&)")

    def fetch_alias(self) -> None:
        """Refuse an alias. Raises ScannerError."""
        self._refuse("an alias (*)")

    def _refuse(self, syntax: str) -> None:
        error = ScannerError(None, None, f"{syntax} is not allowed", self.get_mark(), "put the text in quotes")
        raise error


class TextLoader(Loader):
    """A loader of strict YAML that reads each scalar as text."""

    yaml_implicit_resolvers: dict = {}


class Dumper(yaml.SafeDumper):
    """A dumper that quotes each text that version 1.1 or 1.2 of YAML would read as another type."""


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _class in (Loader, Dumper):  # the table of TextLoader stays empty
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
