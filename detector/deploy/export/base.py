"""The contract of exporters, and their registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detector.core.registry import Registry
from detector.deploy.export.graphs import Graph


class Exporter:
    """The writer of a file format. Its constructor has no parameters.

    Attributes:
        suffix: the suffix of the files, with the dot. The suffix of `detector export --out` selects the exporter.
        requires: the packages that must be installed.
        extra: the extra of this project that installs these packages, or None.
    """

    suffix: str
    requires: tuple[str, ...] = ()
    extra: str | None = None

    def write(self, graph: Graph, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the file.

        Args:
            graph: the model on the CPU in fp32, with the post-processing if the user asked for it.
            path: the file to write. Its name is UTF-8.
            metadata: values that JSON can represent; see `detector.deploy.export.export`.
        """
        raise NotImplementedError


EXPORTERS: Registry[Exporter] = Registry("exporter")
