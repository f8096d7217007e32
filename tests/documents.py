"""The code blocks of the Markdown guides."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^(?:<!-- not run here: (?P<reason>.+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, and the reason why no test runs it (empty where a test does)."""

    language: str
    text: str
    reason: str

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of each shell command of the block. `#` begins a comment."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(document: str) -> list[Block]:
    """Return the code blocks of a Markdown file of the repository that name their language."""
    text = (REPO / document).read_text(encoding="utf-8")
    return [Block(match["language"], match["text"], match["reason"] or "") for match in BLOCK.finditer(text)]
