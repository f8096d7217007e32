"""YAML as configs and data sets are written: nothing in it can run, repeat itself or be read in two ways."""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from detector.core.errors import UserError


def read_yaml(text: str, source: str, *, as_text: bool = False) -> Any:
    """Read mappings, lists and scalars; with `as_text` every scalar is the text as written (`007`, `1.50`, `no`).
    Raises UserError that names `source`."""
    try:
        return yaml.load(text, Loader=TextLoader if as_text else Loader)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise UserError(f"{source}: line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a forbidden character; a number or nesting too long
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from None


class Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2 (1e-4 is a number; no, on and 2024-01-31 are text; 010 is ten), every key
    text and there once, and neither tags nor anchors."""

    yaml_implicit_resolvers: dict = {}  # of the class, as in yaml; none of version 1.1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key should be text", key_node.start_mark)
            if key_node.value in mapping:
                problem = f"duplicate key {key_node.value!r}; keep one"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            mapping[key_node.value] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(node.value)

    def fetch_tag(self) -> None:
        self._refuse("tags (!)")

    def fetch_anchor(self) -> None:
        self._refuse("anchors (&)")

    def fetch_alias(self) -> None:
        self._refuse("aliases (*)")

    def _refuse(self, what: str) -> None:
        problem = f"{what} have no place here; quote the text if it is meant as such"
        raise ScannerError(None, None, problem, self.get_mark())


class TextLoader(Loader):
    """The same, where every scalar is text."""

    yaml_implicit_resolvers: dict = {}


class Dumper(yaml.SafeDumper):
    """Quotes each text that either version of YAML would read as something else."""


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
    for _class in (Loader, Dumper):  # TextLoader keeps a table of its own, which is empty
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
