"""The ids of a COCO dictionary, and the classes that its categories define."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import UserError
from detector.data.checks.findings import Findings
from detector.data.formats.numbers import MAX_ID, as_integer

Entry = dict[str, Any]
Describe = Callable[[int], str]


def unique_ids(entries: list[Entry], section: str, source: Path) -> list[int]:
    """Return the ids of the entries, integers from 0 to MAX_ID (the range that the scorers support).

    Args:
        entries: the entries of a section.
        section: the name of the section, for messages.
        source: the annotation file, for messages.

    Raises:
        UserError: an id is missing, malformed, repeated or out of range.
    """
    ids: dict[int, None] = {}
    for index, entry in enumerate(entries):
        value = as_integer(entry.get("id"))
        if value is None:
            problem = f"is {entry['id']!r}" if "id" in entry else "is missing"
            raise UserError(f"{source}: {section}[{index}].id {problem}", "write an integer")
        if value in ids:
            raise UserError(f"{source}: id {value} occurs twice in '{section}'", "give each entry a different id")
        if not 0 <= value <= MAX_ID:
            problem = "negative" if value < 0 else "too large"
            raise UserError(f"{source}: id {value} in '{section}' is {problem}", "number the entries from 1")
        ids[value] = None
    return list(ids)


def positions(annotations: list[Entry], key: str, ids: list[int]) -> np.ndarray:
    """Return the positions in `ids` of the ids that annotations refer to.

    Args:
        annotations: N annotations.
        key: the key of the id in an annotation.
        ids: the known ids.

    Returns:
        (N,) int64, -1 where `ids` does not contain the id.
    """
    position: dict[int | None, int] = {value: index for index, value in enumerate(ids)}
    return np.array([position.get(as_integer(annotation.get(key)), -1) for annotation in annotations], np.int64)


def classes_of(
    categories: list[Entry],
    annotations: list[Entry],
    classes: Sequence[str] | None,
    source: Path,
    findings: Findings,
    valid: np.ndarray,
    describe: Describe,
) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """Map the categories of a COCO dictionary to classes.

    Args:
        categories: the entries of the section `categories`.
        annotations: N entries of the section `annotations`.
        classes: the class names in label order. None takes the categories, sorted by id.
        source: the annotation file, for messages.
        findings: receives the problems of categories and annotations.
        valid: (N,) bool. The function sets it to false for annotations without a class.
        describe: returns the location of annotation i as text.

    Returns:
        The labels (N,) int64, the class names, and the category ids of the classes. A class without a category gets an
        unused id.

    Raises:
        UserError: a category has a malformed id or name, or two categories have the same name.
    """
    ids = unique_ids(categories, "categories", source)
    used = positions(annotations, "category_id", ids)
    names = []
    for index, category in enumerate(categories):
        name = category.get("name")
        if not isinstance(name, str | int) or isinstance(name, bool):
            problem = f"is {name!r}" if "name" in category else "is missing"
            raise UserError(f"{source}: categories[{index}].name {problem}", "write the name as text")
        names.append(str(name))
    roots = _roots(categories, names, set(used.tolist()), classes or ())
    findings.add("category_root", roots, lambda i: f"{source}: category {ids[i]}, '{names[i]}'")
    id_of: dict[str, int] = {}
    for index, name in enumerate(names):
        if index not in roots and id_of.setdefault(name, ids[index]) != ids[index]:
            raise UserError(f"{source}: two categories are named '{name}'", "give each category a different name")
    class_names = tuple(sorted(id_of, key=id_of.__getitem__) if classes is None else classes)
    _note_similar_names(class_names, source, findings)

    findings.add(
        "category_unknown",
        np.flatnonzero(valid & (used < 0)),
        lambda i: (
            f"{describe(i)} has category_id {annotations[i].get('category_id')!r}, which 'categories' does not list"
        ),
    )
    valid &= used >= 0
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(name, -1) for name in names], dtype=np.int64)[used]
    findings.add(
        "class_unknown",
        np.flatnonzero(valid & (labels < 0)),
        lambda i: f"{describe(i)}: category '{names[used[i]]}' is not one of the classes {', '.join(class_names)}",
    )
    valid &= labels >= 0

    next_id = max(ids) + 1
    missing = [name for name in class_names if name not in id_of]
    id_of |= {name: next_id + offset for offset, name in enumerate(missing)}
    return labels, class_names, tuple(id_of[name] for name in class_names)


def _roots(categories: list[Entry], names: list[str], used: set[int], classes: Sequence[str]) -> list[int]:
    """Return the positions of the categories without objects that are not classes.

    A category is not a class if it repeats the name of another category, or if it is the supercategory of all others.
    Roboflow adds a supercategory with the name of the project. A supercategory in `classes` remains a class.
    """
    unused = [index for index in range(len(names)) if index not in used]

    def is_root(index: int) -> bool:
        others = [other for other in range(len(names)) if other != index]
        repeats = any(names[other] == names[index] and other not in roots for other in others)
        is_above = bool(others) and all(categories[o].get("supercategory") == names[index] for o in others)
        return repeats or (is_above and names[index] not in classes)

    roots: list[int] = []
    for index in unused:
        if is_root(index):
            roots.append(index)
    return roots


def _note_similar_names(class_names: Sequence[str], source: Path, findings: Findings) -> None:
    first: dict[str, str] = {}
    pairs = [
        f"{source}: '{first[key]}' and '{name}'"
        for name in class_names
        if first.setdefault(key := " ".join(name.split()).casefold(), name) != name
    ]
    findings.add("class_alike", range(len(pairs)), pairs.__getitem__)
