"""The files of a data set's folders: each file is used, or is listed with the reason why it is not."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from detector.core.errors import UserError
from detector.data.checks.findings import Findings
from detector.data.images import OTHER_SUFFIXES, SUFFIXES


@dataclass(slots=True)
class Folder:
    """The files below a folder, sorted, by their path relative to it with `/` as the separator.

    Links are followed, as data sets are often shared by links; a link that leads back to a folder above it is not.
    Hidden files (whose name begins with a dot) are part of a data set only where annotations name them; hidden folders
    are not. `broken` holds the links that lead nowhere.
    """

    root: Path
    names: dict[str, None] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    _by_case: dict[str, list[str]] | None = None
    _by_stem: dict[str, list[str]] | None = None

    @classmethod
    def read(cls, root: Path) -> "Folder":
        """Look through `root` and all folders below it. A folder that cannot be read has no files."""
        folder = cls(root)
        folder._walk("", (os.path.realpath(root),))
        return folder

    def _walk(self, prefix: str, above: tuple[str, ...]) -> None:
        try:
            with os.scandir(self.root / prefix) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError:
            return
        for entry in entries:
            name = prefix + entry.name
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder and not entry.name.startswith("."):
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if real not in above:
                    self._walk(f"{name}/", (*above, real))
            elif is_file:
                self.names[name] = None
            elif not is_folder:
                self.broken.append(name)

    def path(self, name: str) -> Path:
        return self.root / name

    def visible(self) -> list[str]:
        """The names of the files that are not hidden."""
        return [name for name in self.names if not os.path.basename(name).startswith(".")]

    def images(self) -> list[str]:
        """The names of the pictures that can be read."""
        return [name for name in self.visible() if suffix(name) in SUFFIXES]

    def holds(self, written: str) -> bool:
        """Whether a name in annotations stays in the folder, and neither `..` nor an absolute path leads out of it."""
        root = os.path.abspath(self.root)
        name = written.replace("\\", "/")
        path = os.path.normpath(os.path.join(root, name))
        return path.startswith(os.path.join(root, "")) and name[1:3] != ":/"

    def find(self, written: str) -> str | None:
        """The file that a name in annotations means: the name as it is written, else with `/` for Windows' separator,
        else the only file whose name differs in upper and lower case alone. None where there is none."""
        for text in (written, written.strip().replace("\\", "/")):
            name = os.path.normpath(os.path.relpath(text, os.path.abspath(self.root)) if os.path.isabs(text) else text)
            if name in self.names:
                return name
        if self._by_case is None:
            self._by_case = _grouped(self.names, str.lower)
        alike = self._by_case.get(name.lower(), [])
        return alike[0] if len(alike) == 1 else None

    def images_with_stem(self, stem: str) -> list[str]:
        """The pictures called `stem` (a relative path without suffix): at that place, else in the only other folder
        that has such pictures, where one of the two places is the folder itself."""
        if self._by_stem is None:
            self._by_stem = _grouped(self.images(), lambda name: PurePosixPath(name).stem)
        same = self._by_stem.get(PurePosixPath(f"{stem}.x").stem, [])
        exact = [name for name in same if os.path.splitext(name)[0] == stem]
        if exact:
            return exact
        places = {os.path.dirname(name) for name in same}
        return same if len(places) == 1 and "" in (*places, os.path.dirname(stem)) else []


def suffix(name: str) -> str:
    """The lower-case suffix of a file's name, with its dot."""
    return os.path.splitext(name)[1].lower()


def list_unused(folders: Iterable[Folder], used: Iterable[Path], findings: Findings) -> None:
    """Add the files of the folders that are not `used` to the findings, by the reason: pictures that the annotations do
    not name, pictures of a format that is not read, broken links, or no part of a data set. A file that lies in two of
    the folders counts once."""
    known = {os.path.abspath(path) for path in used}
    by_kind: dict[str, list[str]] = defaultdict(list)
    for path, is_broken in _all_files(folders):
        if path not in known:
            known.add(path)
            by_kind["link_broken" if is_broken else _reason(path)].append(path)
    for kind, paths in by_kind.items():
        findings.add(kind, range(len(paths)), paths.__getitem__)


def _all_files(folders: Iterable[Folder]) -> Iterator[tuple[str, bool]]:
    for folder in folders:
        root = os.path.abspath(folder.root)
        yield from ((os.path.join(root, name), False) for name in folder.visible())
        yield from ((os.path.join(root, name), True) for name in folder.broken)


def _reason(path: str) -> str:
    ending = suffix(path)
    return "image_unlisted" if ending in SUFFIXES else "image_format" if ending in OTHER_SUFFIXES else "file_other"


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def read_unicode(path: Path, what: str) -> str:
    """Read a text file in UTF-8, or in UTF-16 with its mark (as Windows' shell writes lists).

    Args:
        path: the file.
        what: what errors call the file, e.g. "the split".

    Raises:
        UserError: the file is missing or no such text.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError comes of a path with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot read {what} ({reason})", "check the path") from None
    try:
        return decode(data)
    except UnicodeDecodeError:
        raise UserError(f"{path}: {what} is not UTF-8 text", "save the file as UTF-8") from None


def decode(data: bytes, errors: str = "strict") -> str:
    """The text of UTF-8, or of UTF-16 with its mark, without the mark. Raises UnicodeDecodeError."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return data.decode(encoding, errors).removeprefix("\ufeff")


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of `read_unicode` that are not blank, without blanks at their ends."""
    return [line.strip() for line in read_unicode(path, what).splitlines() if line.strip()]
