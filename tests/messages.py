"""The sentences that the program says: errors, warnings, log lines and findings, as templates from the source.

`python tests/messages.py` writes them to tests/messages.txt, where a reviewer reads them as text.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).parents[1]
FILE = REPO / "tests/messages.txt"
ERRORS = ("UserError", "InvalidValues", "ValueError", "TypeError")
LEVELS = ("info", "warning", "error")


def collect() -> str:
    """Return the messages of each file, one message a line."""
    lines = []
    for path in sorted((REPO / "detector").rglob("*.py")):
        messages = list(_messages(ast.parse(path.read_text(encoding="utf-8"))))
        if messages:
            lines += [f"{path.relative_to(REPO)}", *(f"  {message}" for message in messages), ""]
    return "\n".join(lines)


def _messages(tree: ast.Module) -> Iterator[str]:
    calls = sorted((node for node in ast.walk(tree) if isinstance(node, ast.Call)), key=lambda node: node.lineno)
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in ERRORS:
            texts = [text for argument in call.args if (text := _template(argument))]
            if any(" " in text for text in texts):
                yield f"error: {' | '.join(texts)}"
        elif name in LEVELS and call.args and (text := _template(call.args[0])) and " " in text:
            yield f"{name}: {text}"
        elif name == "Kind":  # of a finding in a data set
            yield "finding: " + " | ".join(text for argument in call.args if (text := _template(argument)))


def _template(node: ast.expr) -> str:
    """Return the text of an expression, with `{name}` for what the program fills in; empty where it has no text."""
    match node:
        case ast.Constant(value=str(text)):
            return text.replace("\n", "\\n")
        case ast.JoinedStr(values=values):
            return "".join(_template(value) if isinstance(value, ast.Constant) else _name(value) for value in values)
        case ast.IfExp(body=body, orelse=otherwise):
            return " / ".join(text for text in (_template(body), _template(otherwise)) if text)
        case ast.BinOp(left=left, right=right):
            return _template(left) + _template(right)
        case ast.Dict(values=values):
            return " / ".join(text for value in values if (text := _template(value)))
    return ""


def _name(value: ast.expr) -> str:
    """Return `{name}` for a variable or attribute in a text, and `{}` for another expression."""
    inner = value.value if isinstance(value, ast.FormattedValue) else value
    name = inner.id if isinstance(inner, ast.Name) else inner.attr if isinstance(inner, ast.Attribute) else ""
    return f"{{{name}}}"


if __name__ == "__main__":
    FILE.write_text(collect(), encoding="utf-8")
