"""A CSV or Parquet list: uri, label, optional x0,y0,x1,y1 with several rows for an image of several boxes."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from pydantic import Field, field_validator

from pipeline.errors import UsageError
from pipeline.sources.classes import Classes, read_classes
from pipeline.sources.files import MAX_TEXT_BYTES, absolute, locate, read, relative_to, require_images
from pipeline.sources.selection import Selection
from pipeline.sources.table import assemble, box_column, check_corners, nested

_CORNERS = ("x0", "y0", "x1", "y1")
_COLUMNS = ("uri", "label", *_CORNERS, "width", "height")
_INTEGER = r"^\s*[+-]?[0-9]{1,18}\s*$"


class ListSource(Selection):
    """A list at ``path`` (.csv, .csv.gz, .parquet).

    Relative uris start at ``root`` (default: the list's folder) and must stay inside it; absolute paths and URLs are
    taken as they are, their key is the part below ``root`` where they lie there, else the whole, without the query of a
    web address (a signature) unless that alone tells two images apart. The first row of an image gives its label;
    several rows with one uri are its boxes. ``columns`` maps our names to the file's (``{uri: image_id, label:
    class}``); ``suffix`` is put behind every uri (".JPEG"). ``images: false``: the list stands without images (box
    protocols that need no pixels), so none is looked for.
    """

    kind: Literal["list"]
    path: str
    root: str | None = None
    classes: str | list[str] | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    suffix: str = ""
    images: bool = True

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(value) - set(_COLUMNS)):
            raise ValueError(f"columns maps {', '.join(_COLUMNS)} to the file's names, not {', '.join(unknown)}")
        return value


def list_table(source: ListSource) -> pa.Table:
    """The key table, unselected. Raises UsageError naming file, row and field."""
    path = absolute(source.path)
    root = absolute(source.root) if source.root is not None else path.rpartition("/")[0] or "/"
    rows = _read(path, source.columns)
    first = 2 if ".csv" in path.rpartition("/")[2].lower() else 1  # the header is line 1 of a CSV
    named = {ours: source.columns.get(ours, ours) for ours in _COLUMNS}
    known = read_classes(source.classes) if source.classes is not None else None
    keys, uris = _keys_and_uris(rows["uri"], root, source.suffix, path, first)
    # One stable sort by key brings the rows of an image together in the order of the list.
    order = pc.sort_indices(keys)
    keys, uris = keys.take(order), uris.take(order)
    begins = np.ones(len(keys), bool)
    begins[1:] = np.asarray(pc.not_equal(keys[1:], keys[:-1]))
    firsts = pa.array(np.flatnonzero(begins))
    label = _labels(rows.get("label"), known, path, named["label"], first, len(keys)).take(order)
    columns: dict[str, Any] = {"key": keys.take(firsts), "uri": uris.take(firsts), "label": label.take(firsts)}
    group = np.cumsum(begins) - 1
    columns["labels"] = _distinct(label, group, len(firsts))
    for side in ("width", "height"):
        if side in rows:
            columns[side] = _integers(rows[side], path, named[side], first, 1).take(order).take(firsts)
    if all(corner in rows for corner in _CORNERS):
        corners, present = _corners(rows, named, path, first)
        line = np.asarray(order)
        corners, present = corners[line], present[line]
        columns["boxes"] = box_column(np.bincount(group[present], minlength=len(firsts)), corners[present])
        if label.null_count < len(label):  # else the boxes are of the image's one class, whatever it is
            columns["box_labels"] = nested(
                np.bincount(group[present], minlength=len(firsts)), label.filter(pa.array(present))
            )
        _refuse_repeats(keys, ~present & ~begins, order, path, first)
    else:
        _refuse_repeats(keys, ~begins, order, path, first)
    if source.images:
        require_images(columns["uri"], path, "correct the uris, set root, or images: false for a list without images")
    return assemble(columns, where=path, classes=known.names if known else None)


def _read(path: str, renamed: dict[str, str]) -> dict[str, pa.Array]:
    wanted = {renamed.get(name, name): name for name in _COLUMNS}
    lower = path.lower()
    try:
        if lower.endswith(".parquet"):
            table = pyarrow.parquet.read_table(io.BytesIO(read(path)))
            names = table.column_names
        elif lower.endswith((".csv", ".csv.gz")):
            content = read(path)
            if lower.endswith(".gz"):
                content = _unpacked(content, path)
            # Everything as text first: so a bad value can be told with its line, and "nan" is not silently a null.
            names = pyarrow.csv.open_csv(io.BytesIO(content)).schema.names
            convert = pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=[name for name in dict.fromkeys(names) if name in wanted],
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=True,
            )
            table = pyarrow.csv.read_csv(io.BytesIO(content), convert_options=convert)
        else:
            raise UsageError("is neither .csv, .csv.gz nor .parquet", where=path, cure="save the list as one of these")
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot be parsed: {text}", where=path, cure="save the list again") from error
    if len(set(names)) != len(names):
        raise UsageError("two columns have one name", where=path, cure="rename one")
    columns = {
        ours: table.column(theirs).combine_chunks() for theirs, ours in wanted.items() if theirs in table.schema.names
    }
    for ours in ("uri", *(corner for corner in _CORNERS if any(c in columns for c in _CORNERS))):
        if ours not in columns:
            have = ", ".join(names) or "none"
            raise UsageError(
                f"there is no column {renamed.get(ours, ours)!r} (there are: {have})",
                where=path,
                cure=f"rename the column, or say where it is: columns: {{{ours}: NAME}}",
            )
    if missing := sorted(set(renamed) - set(columns)):
        raise UsageError(
            f"there is no column {renamed[missing[0]]!r} for {missing[0]!r}", where=path, cure="correct columns"
        )
    if len(columns["uri"]) == 0:
        raise UsageError("the list has no rows", where=path, cure="write a row for each image")
    return columns


def _unpacked(content: bytes, path: str) -> bytes:
    """The text in a gzip file, as long as it is no larger than a list may be."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        text = file.read(MAX_TEXT_BYTES + 1)
    if len(text) > MAX_TEXT_BYTES:
        raise UsageError(f"unpacks to more than {MAX_TEXT_BYTES} bytes", where=path, cure="split it")
    return text


def _fail(path: str, at: int, first: int, field: str, fault: str, cure: str) -> NoReturn:
    raise UsageError(f"row {at + first}, {field}: {fault}", where=path, cure=cure)


def _keys_and_uris(uri: pa.Array, root: str, suffix: str, path: str, first: int) -> tuple[pa.Array, pa.Array]:
    if not (pa.types.is_string(uri.type) or pa.types.is_large_string(uri.type)):
        _fail(path, 0, first, "uri", f"is {uri.type}, not text", "write paths or URLs")
    uri = uri.cast(pa.string())
    blank = pc.or_kleene(pc.is_null(uri), pc.equal(uri, ""))
    if pc.any(blank).as_py():
        _fail(path, pc.index(pc.fill_null(blank, True), True).as_py(), first, "uri", "is empty", "name an image")
    if suffix:
        uri = pc.binary_join_element_wise(uri, suffix, "")
    chained = pc.match_substring(uri, "::")
    if pc.any(chained).as_py():
        _fail(path, pc.index(chained, True).as_py(), first, "uri", "chained URLs (::) are not read", "use plain URLs")
    away = pc.match_substring_regex(uri, "^(/|[A-Za-z][A-Za-z0-9+.-]*://)")
    odd = pc.and_(pc.invert(away), pc.match_substring_regex(uri, r"(^|/)\.{0,2}(/|$)|\\|\x00"))
    if pc.any(odd).as_py():
        tidy = []
        for i in np.flatnonzero(np.asarray(odd)):
            tidy.append(relative_to(root, uri[int(i)].as_py(), f"{path}, row {int(i) + first}, uri"))
        uri = pc.replace_with_mask(uri, odd, pa.array(tidy, pa.string()))
    uris = pc.if_else(away, uri, locate(root, uri))
    inside = pc.and_(away, pc.starts_with(uri, root + "/"))
    below = pc.and_(inside, pc.invert(pc.match_substring_regex(uri, r"(^|/)\.\.(/|$)")))
    return _without_query(pc.if_else(below, pc.utf8_slice_codeunits(uri, len(root) + 1), uri), uris), uris


def _without_query(keys: pa.Array, uris: pa.Array) -> pa.Array:
    """The keys without what follows a ``?`` in web addresses: there it signs, and the key stands in every row.

    With it, where it tells images apart.
    """
    bare = pc.if_else(
        pc.match_substring_regex(uris, "(?i)^https?://"),
        pc.replace_substring_regex(keys, r"(?s)^([^?]+)\?.*$", r"\1"),
        keys,
    )
    return bare if pc.count_distinct(bare).as_py() == pc.count_distinct(keys).as_py() else keys


def _integers(column: pa.Array, path: str, field: str, first: int, least: int) -> pa.Array:
    """int32 [n], null where the cell is empty."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        good = pc.fill_null(pc.match_substring_regex(column, _INTEGER), True)
        if not pc.all(good).as_py():
            at = pc.index(good, False).as_py()
            _fail(path, at, first, field, f"{column[at].as_py()!r} is not an integer", "write integers, or set classes")
        column = pc.utf8_trim_whitespace(column)
    elif not (pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        _fail(path, 0, first, field, f"the column is {column.type}, not integer", "write integers, or set classes")
    wide = column.cast(pa.int64())
    bad = pc.fill_null(pc.or_(pc.less(wide, least), pc.greater(wide, 2**31 - 1)), False)
    if pc.any(bad).as_py():
        at = pc.index(bad, True).as_py()
        _fail(path, at, first, field, f"{wide[at].as_py()} is out of range", f"write integers from {least}")
    return wide.cast(pa.int32())


def _labels(column: pa.Array | None, known: Classes | None, path: str, field: str, first: int, rows: int) -> pa.Array:
    """Class indexes, int32 [n]: integers as they are, words looked up in the classes."""
    if column is None:
        return pa.nulls(rows, pa.int32())
    words = pa.types.is_string(column.type) and not pc.all(pc.match_substring_regex(column, _INTEGER)).as_py()
    if words and known is not None:
        spelt = column.dictionary_encode()
        mapped = pa.array([known.spellings.get(word) for word in spelt.dictionary.to_pylist()], pa.int32())
        label = mapped.take(spelt.indices)
        lost = pc.and_(pc.is_null(label), pc.is_valid(column))
        if pc.any(lost).as_py():
            at = pc.index(lost, True).as_py()
            raise known.unknown(column[at].as_py(), f"{path}, row {at + first}, {field}")
        return label
    label = _integers(column, path, field, first, 0)
    if known is not None:
        beyond = pc.fill_null(pc.greater_equal(label, len(known.names)), False)
        if pc.any(beyond).as_py():
            at = pc.index(beyond, True).as_py()
            fault = f"{label[at].as_py()} is no class: there are {len(known.names)}, from 0"
            _fail(path, at, first, field, fault, "labels are class indexes, neither ranks from 1 nor COCO ids")
    return label


def _distinct(label: pa.Array, group: np.ndarray, groups: int) -> pa.ListArray:
    """The distinct labels of each group, in their order in the list."""
    known = np.asarray(pc.is_valid(label))
    of, values = group[known], np.asarray(label.drop_null())
    pairs = (of.astype(np.int64) << 32) | values
    _, at = np.unique(pairs, return_index=True)
    at.sort()
    return nested(np.bincount(of[at], minlength=groups), pa.array(values[at], pa.int32()))


def _corners(rows: dict[str, pa.Array], named: dict[str, str], path: str, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners float32 [n, 4] and which rows have a box, bool [n]."""
    n = len(rows["uri"])
    corners, empty = np.zeros((n, 4), np.float32), np.zeros((n, 4), bool)
    for j, corner in enumerate(_CORNERS):
        column = rows[corner]
        try:
            numbers = column.cast(pa.float64())
        except (pa.ArrowException, ValueError):
            at = next((i for i in range(n) if not _is_number(column[i].as_py())), 0)
            _fail(path, at, first, named[corner], f"{column[at].as_py()!r} is not a number", "write pixels")
        empty[:, j] = np.asarray(pc.is_null(numbers))
        corners[:, j] = np.asarray(pc.fill_null(numbers, 0.0))
    missing = np.count_nonzero(empty, axis=1)
    partly = np.flatnonzero((missing > 0) & (missing < 4))
    if len(partly):
        _fail(path, int(partly[0]), first, "x0,y0,x1,y1", "some corners are empty", "give all four, or none")
    check_corners(corners, lambda i: f"row {i + first}, x0,y0,x1,y1", path)
    return corners, missing == 0


def _is_number(value: Any) -> bool:
    try:
        return value is None or float(value) is not None
    except (TypeError, ValueError):
        return False


def _refuse_repeats(keys: pa.Array, repeats: np.ndarray, order: pa.Array, path: str, first: int) -> None:
    if not repeats.any():
        return
    twice = keys.filter(pa.array(repeats)).unique()
    shown = ", ".join(map(repr, twice[:5].to_pylist()))
    line = order[int(np.flatnonzero(repeats)[0])].as_py() + first
    raise UsageError(
        f"{len(twice)} images stand in more than one row without a box, e.g. {shown}; row {line}",
        where=path,
        cure="one row for each image, or one for each of its boxes",
    )
