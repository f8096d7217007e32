"""The text of the project: plain words, short sentences, and a golden file of all messages."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from messages import FILE, REPO, collect

# Words that readers did not understand at the first reading. They are banned in prose, and not as names in the code.
BANNED = (
    *("mend", "mends", "untold", "likewise", "drown", "drowns", "drowned", "lest", "whence", "thereof", "thereby"),
    *("says so", "say so", "said in words", "as it comes", "as they come", "at hand", "the very", "by heart"),
    *("no step either", "to be had", "let alone", "stands in for", "stand in for", "stands in", "of its own mind"),
    *("as good as", "so much so", "goes by", "in the place of", "comes to", "of their own", "of its own"),
)
PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b".replace(" ", r"\s+"), re.IGNORECASE)
MAX_WORDS = 35
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n\s*[-*] |\n\s*\w+: |:\n")  # also the end of an item of a list
CODE = re.compile(r"`[^`]*`|```.*?```|<!--.*?-->", re.DOTALL)


def python_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each comment, docstring and message of a file."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def prose() -> Iterator[tuple[str, str]]:
    """Yield each text of the project and its position. The texts of the tests are excluded, because they are data."""
    for path in sorted((*(REPO / "detector").rglob("*.py"), *(REPO / "tools").glob("*.py"))):
        yield from ((f"{path.relative_to(REPO)}:{line}", text) for line, text in python_prose(path))
    for path in sorted((REPO / "configs").rglob("*.yaml")):
        yield str(path.relative_to(REPO)), path.read_text(encoding="utf-8")
    guides = [REPO / folder / "README.md" for folder in ("configs", "detector", "tools", "tools/benchmarks")]
    for path in (*sorted(REPO.glob("*.md")), *guides):
        yield str(path.relative_to(REPO)), CODE.sub("X", path.read_text(encoding="utf-8"))


def test_no_text_has_a_banned_word():
    assert not [f"{position}: {match[0]}" for position, text in prose() for match in PATTERN.finditer(text)]


def test_the_readme_is_short():
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_sentences_are_short():
    """Check docstrings, comments and messages."""
    long = []
    for path in sorted((REPO / "detector").rglob("*.py")):
        for line, text in python_prose(path):
            for sentence in SENTENCE_END.split(text):
                if len(sentence.split()) > MAX_WORDS:
                    long.append(f"{path.relative_to(REPO)}:{line}: {' '.join(sentence.split())}")
    assert not long


def test_the_messages_are_the_reviewed_ones():
    """Review the difference as text, then write the file with `python tests/messages.py`."""
    assert FILE.read_text(encoding="utf-8") == collect()
