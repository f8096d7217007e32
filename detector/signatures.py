"""The parts' schemas without the parts, read from their source: a config is checked before torch is imported."""

import __future__

import ast
import builtins
from functools import cache
from pathlib import Path

PACKAGES = ("geometry", "losses", "data/formats", "data/pipeline")  # whose modules register parts
SOURCES = ("typing", "pathlib", "collections.abc", "pydantic", "detector.core.registry")  # of what a signature may name


@cache
def declare_parts() -> None:
    """The registries know every part's keyword-only signature. Importing the parts replaces these declarations."""
    known: dict = {}
    for package in PACKAGES:
        for path in sorted((Path(__file__).parent / package).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in tree.body:
                kept = _kept(node, known)
                if kept is not None:
                    module = ast.fix_missing_locations(ast.Module([kept], []))
                    # annotations as text: only those of the parts that are declared are looked up
                    exec(compile(module, str(path), "exec", flags=__future__.annotations.compiler_flag), known)


def _kept(node: ast.stmt, known: dict) -> ast.stmt | None:
    """What of a module's statement makes signatures: imports, aliases of types, classes without their bodies."""
    if isinstance(node, ast.ImportFrom):
        return node if node.module in SOURCES else None
    if isinstance(node, ast.Assign):
        return node if _names(node.value) <= known.keys() | vars(builtins).keys() else None
    if isinstance(node, ast.ClassDef):
        return _signature(node, known)
    return None


def _signature(node: ast.ClassDef, known: dict) -> ast.ClassDef:
    """The class with its constants and its constructor's parameters; `register` in its decorators becomes `declare`."""
    decorators = [d for d in node.decorator_list if isinstance(d, ast.Call) and _names(d) <= known.keys()]
    for decorator in decorators:
        if isinstance(decorator.func, ast.Attribute) and decorator.func.attr == "register":
            decorator.func.attr = "declare"
    body: list[ast.stmt] = [ast.Pass()]
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant):
            body.append(item)
        elif isinstance(item, ast.FunctionDef) and item.name == "__init__":
            for argument in item.args.args:
                argument.annotation = None
            item.args.defaults = [ast.Constant(None) for _ in item.args.defaults]
            item.body, item.returns = [ast.Pass()], None
            body.append(item)
    bases = [base for base in node.bases if isinstance(base, ast.Name) and base.id in known]
    return ast.ClassDef(node.name, bases, [], body, decorators, type_params=[])


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
