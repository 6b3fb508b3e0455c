"""A folder of images: class subfolders, or flat with the class in the file name, or without labels."""

from __future__ import annotations

import re
from typing import Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from pipeline.errors import UsageError
from pipeline.sources.classes import Classes, read_classes
from pipeline.sources.files import IMAGE_SUFFIXES, absolute, list_files, locate
from pipeline.sources.selection import Selection
from pipeline.sources.table import assemble, single_labels

_CHUNK = 65_536


class FolderSource(Selection):
    """Images below ``root``, at any depth.

    ``label_pattern``: a regular expression searched in the relative path; its group 1 is the class. Without it the
    class is the first folder of the path, and images that lie in ``root`` itself have none (then none may have one).
    ``classes``: the class names in label order, as a list or a file; without it the classes found, sorted.
    ``labelled: false`` takes the images without labels, whatever the folders.
    """

    kind: Literal["folder"]
    root: str
    label_pattern: str | None = None
    classes: str | list[str] | None = None
    labelled: bool = True

    @model_validator(mode="after")
    def _pattern_has_a_group(self) -> Self:
        if self.label_pattern is not None:
            try:
                groups = re.compile(self.label_pattern).groups
            except re.error as error:
                raise ValueError(f"label_pattern is no regular expression: {error}") from None
            if groups < 1:
                raise ValueError("label_pattern needs a group around the class, e.g. '^(n[0-9]+)_'")
            if not self.labelled:
                raise ValueError("label_pattern and labelled: false exclude each other")
        return self


def folder_table(source: FolderSource) -> pa.Table:
    """The key table, unselected. Raises UsageError as the module's sources do."""
    root = absolute(source.root)
    keys = list_files(root, IMAGE_SUFFIXES, "the image folder")
    if len(keys) == 0:
        raise UsageError("no images", where=root, cure=f"put images there ({' '.join(IMAGE_SUFFIXES)}) or correct root")
    given = read_classes(source.classes) if source.classes is not None else None
    columns = {"key": keys, "uri": locate(root, keys)}
    spelt = _spelt_classes(source, root, keys)
    if spelt is None:
        return assemble(columns, where=root, classes=given.names if given else None)
    known = given or found_classes(spelt)
    label = known.look_up(spelt, root, keys)
    return assemble(columns | {"label": label, "labels": single_labels(label)}, where=root, classes=known.names)


def found_classes(spelt: pa.Array) -> Classes:
    """The classes that occur, sorted."""
    names = sorted(pc.drop_null(spelt).unique().to_pylist())
    return Classes(names, "", {name: i for i, name in enumerate(names)})


def first_folder(keys: pa.Array) -> pa.Array:
    """The first folder of each path; null where a path has none."""
    return pc.struct_field(pc.extract_regex(keys, r"(?s)^(?P<top>[^/]+)/"), "top")


def _spelt_classes(source: FolderSource, root: str, keys: pa.Array) -> pa.Array | None:
    if not source.labelled:
        return None
    if source.label_pattern is not None:
        return _by_pattern(re.compile(source.label_pattern), root, keys)
    tops = first_folder(keys)
    if tops.null_count == len(keys):
        return None
    if tops.null_count:
        stray = keys[pc.index(pc.is_null(tops), True).as_py()].as_py()
        raise UsageError(
            f"{tops.null_count} images lie beside the class folders, e.g. {stray!r}",
            where=root,
            cure="move them into class folders, set label_pattern, or labelled: false for images without labels",
        )
    return tops


def _by_pattern(pattern: re.Pattern[str], root: str, keys: pa.Array) -> pa.Array:
    chunks = []
    for start in range(0, len(keys), _CHUNK):
        matches = [pattern.search(key) for key in keys[start : start + _CHUNK].to_pylist()]
        spelt = pa.array([match.group(1) if match else None for match in matches], pa.string())
        if spelt.null_count:
            stray = keys[start + pc.index(pc.is_null(spelt), True).as_py()].as_py()
            raise UsageError(
                f"label_pattern {pattern.pattern!r} finds no class in {stray!r}",
                where=root,
                cure="the pattern is searched in the path below root; its group 1 is the class",
            )
        chunks.append(spelt)
    return pa.chunked_array(chunks).combine_chunks()
