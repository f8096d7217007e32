"""The examples of detector/README.md, extracted verbatim."""

import re
from pathlib import Path

GUIDE = (Path(__file__).parents[1] / "detector" / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"```python\n# (my_\w+)\.py\n(.*?)```", GUIDE, re.DOTALL))  # module: source
CONFIGS = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)


def write_examples(folder: Path) -> None:
    """Write each example to a separate module."""
    for name, source in EXAMPLES.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
