"""The files in the folders of a data set. The findings list each unused file with the reason."""

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
    """The files in a folder and its subfolders.

    Links are followed, since data sets are often shared by links. A link to a folder above itself is not followed. A
    hidden file (whose name begins with a dot) belongs to a data set only where annotations name the file. Hidden
    folders are left out.

    Attributes:
        root: the folder.
        names: the paths of the files relative to `root`, sorted, with `/` as the separator.
        broken: the paths of links whose target does not exist.
    """

    root: Path
    names: dict[str, None] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    _by_case: dict[str, list[str]] | None = None
    _by_stem: dict[str, list[str]] | None = None

    @classmethod
    def read(cls, root: Path) -> "Folder":
        """List `root` and all its subfolders. An unreadable folder has no files."""
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
        """Return the path of a file by its name in the folder."""
        return self.root / name

    def visible(self) -> list[str]:
        """Return the names of the files that are not hidden."""
        return [name for name in self.names if not os.path.basename(name).startswith(".")]

    def images(self) -> list[str]:
        """Return the names of the images in readable formats."""
        return [name for name in self.visible() if suffix(name) in SUFFIXES]

    def holds(self, written: str) -> bool:
        """Return whether the path in an annotation stays inside the folder in spite of `..` and absolute paths."""
        root = os.path.abspath(self.root)
        name = written.replace("\\", "/")
        path = os.path.normpath(os.path.join(root, name))
        return path.startswith(os.path.join(root, "")) and name[1:3] != ":/"

    def find(self, written: str) -> str | None:
        """Return the name of the file that an annotation means, or None where no file matches.

        The function tries the name as written, then with `/` as the separator, then the only file whose name differs
        in upper and lower case.
        """
        for text in (written, written.strip().replace("\\", "/")):
            name = os.path.normpath(os.path.relpath(text, os.path.abspath(self.root)) if os.path.isabs(text) else text)
            if name in self.names:
                return name
        if self._by_case is None:
            self._by_case = _grouped(self.names, str.lower)
        candidates = self._by_case.get(name.lower(), [])
        return candidates[0] if len(candidates) == 1 else None

    def images_with_stem(self, stem: str) -> list[str]:
        """Return the images whose path without suffix is `stem`, a path relative to the folder.

        Where no image has this path, the function returns the images of the same name in another folder. They must all
        be in the same folder, and this folder or the folder of `stem` must be `root`.
        """
        if self._by_stem is None:
            self._by_stem = _grouped(self.images(), lambda name: PurePosixPath(name).stem)
        same = self._by_stem.get(PurePosixPath(f"{stem}.x").stem, [])
        exact = [name for name in same if os.path.splitext(name)[0] == stem]
        if exact:
            return exact
        parents = {os.path.dirname(name) for name in same}
        return same if len(parents) == 1 and "" in (*parents, os.path.dirname(stem)) else []


def suffix(name: str) -> str:
    """Return the lower-case suffix of a file name, with its dot."""
    return os.path.splitext(name)[1].lower()


def list_unused(folders: Iterable[Folder], used: Iterable[Path], findings: Findings) -> None:
    """Report the unused files: images without annotations, unreadable formats, broken links and other files.

    Args:
        folders: the folders of the data set. A file in two of the folders counts once.
        used: the files that the data set uses.
        findings: receives the findings.
    """
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


def read_unicode(path: Path, role: str) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark (as the Windows shell writes lists).

    Args:
        path: the file.
        role: the name of the file in messages, for example "the split".

    Raises:
        UserError: the file cannot be read, or has another encoding.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a path with a null byte raises ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot read {role} ({reason})", "check the path") from None
    try:
        return decode(data)
    except UnicodeDecodeError:
        raise UserError(f"{path}: {role} is not UTF-8 text", "save the file as UTF-8") from None


def decode(data: bytes, errors: str = "strict") -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark, and remove the mark.

    Args:
        data: the bytes of the text.
        errors: as in `bytes.decode`.

    Raises:
        UnicodeDecodeError: the bytes have another encoding, and `errors` is "strict".
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return data.decode(encoding, errors).removeprefix("\ufeff")


def read_lines(path: Path, role: str) -> list[str]:
    """Read the lines of a text file that are not blank, without spaces at their ends.

    Args:
        path: the file.
        role: the name of the file in messages, for example "the split".

    Raises:
        UserError: as in `read_unicode`.
    """
    return [line.strip() for line in read_unicode(path, role).splitlines() if line.strip()]
