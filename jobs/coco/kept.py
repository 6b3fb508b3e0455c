"""The kept images as a COCO json whose categories carry both levels, and the summary of the whole job.

What is copied is copied byte for byte: the key table says where each entry lies in the source, so the file is read
once, in order, whatever its size. A file is finished when its receipt lies beside it (pipeline.products); one without
is written again, and comes out the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.coco.config import CocoConfig
from jobs.coco.taxonomy import read_taxonomy
from pipeline.errors import RaylensError, UsageError
from pipeline.products import Product
from pipeline.run import KeyTable, Run
from pipeline.shards import Shards
from pipeline.sources.files import absolute
from pipeline.sources.json_stream import copied
from pipeline.storage import Folder
from stages.coco.taxonomy import Taxonomy

_IMAGES, _ANNOTATIONS, _OTHER = 0, 1, 2
_LISTS = {_IMAGES: "images", _ANNOTATIONS: "annotations"}
_OURS = ("coarse_categories",)


def kept_folder(run: Run, fingerprint: str) -> Folder:
    """Where the kept images' files of one setting lie."""
    return run.folder.child("kept", fingerprint[:8])


def write_kept(run_url: str, config: CocoConfig, fingerprints: Mapping[str, str]) -> list[str]:
    """Write what is not there yet; returns the paths of the splits' json files."""
    run, taxonomy = Run(run_url), read_taxonomy(config.taxonomy)
    folder = kept_folder(run, fingerprints["filter"])
    described, paths = {}, []
    for split, source in config.splits.items():
        product = kept_json(folder, split)
        if product.receipt() is None:
            _write(run, split, absolute(source.annotations), taxonomy, product)
        metadata = split_metadata(run.key_table(split))
        described[split] = {"file": product.receipt()} | {k: json.loads(metadata[k]) for k in ("entries", "rejected")}
        paths.append(product.path)
    summary = run.step_folder("summary", fingerprint=fingerprints["summary"])
    for split, counts in json.loads(summary.read("metrics.json")).items():
        described[split] = counts | described[split]
    Product(folder, "summary.json").write(json.dumps(described, indent=1, ensure_ascii=False).encode())
    return paths


def kept_json(folder: Folder, split: str) -> Product:
    """A split's kept images as a COCO json, in the folder of its setting."""
    return Product(folder, f"instances_{split}.json")


def split_metadata(keys: KeyTable) -> dict[str, bytes]:
    """What the listing noted of the whole annotation file, still JSON."""
    raw = keys.folder.read(f"{keys.split}.parquet")
    return {k.decode(): v for k, v in (pq.read_schema(pa.BufferReader(raw)).metadata or {}).items()}


def filter_rows(run: Run, split: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of the filter step in the order of the key table."""
    shards = Shards(run.step_folder("filter", split=split), 0)
    return pa.concat_tables(list(shards.tables(columns))).combine_chunks()


def _write(run: Run, split: str, source: str, taxonomy: Taxonomy, product: Product) -> None:
    rows = filter_rows(run, split, ["key", "kept", "coarse"])
    keys = run.key_table(split)
    table = keys.table().select(["key", "place", "places"]).combine_chunks()
    metadata = split_metadata(keys)
    if not rows.column("key").equals(table.column("key")):
        raise RaylensError(
            f"the rows of split '{split}' are not those of its keys",
            where=run.url,
            cure="'raylens verify --repair RUN' and run again",
        )
    kept = np.asarray(rows.column("kept"))
    coarse = rows.column("coarse").to_pylist()
    spans, kinds, owners = _spans(table, kept, json.loads(metadata["others"]))
    read = hashlib.sha256()
    with product.writing() as file:
        entries = zip(copied(source, _values(spans), read), _values(kinds), _values(owners), strict=False)
        for data in _json(
            entries, coarse, taxonomy, json.loads(metadata["categories"]), json.loads(metadata["others"])
        ):
            file.write(data)
        if read.hexdigest() != json.loads(metadata["sha256"]):
            raise UsageError(
                "has changed since this run listed it", where=source, cure="give another run folder with --run"
            )
        file.facts |= {"images": int((kinds == _IMAGES).sum()), "annotations": int((kinds == _ANNOTATIONS).sum())}


def _spans(table: pa.Table, kept: np.ndarray, others: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, length) of everything to copy in the order of the file, what each is, and its row (or place)."""
    places = table.column("places").combine_chunks()
    values = np.asarray(places.flatten()).reshape(-1, 2)
    counts = np.asarray(pc.list_value_length(places)) // 2
    owner = np.repeat(np.arange(len(kept)), counts)
    images = np.asarray(table.column("place").combine_chunks().flatten()).reshape(-1, 2)
    rest = np.array([[start, length] for _, start, length in others], np.int64).reshape(-1, 2)
    rows = np.flatnonzero(kept)
    mine = kept[owner]
    spans = np.concatenate([images[rows], values[mine], rest])
    kinds = np.repeat([_IMAGES, _ANNOTATIONS, _OTHER], [len(rows), int(mine.sum()), len(rest)])
    owners = np.concatenate([rows, owner[mine], np.arange(len(rest))])
    order = np.argsort(spans[:, 0], kind="stable")
    return spans[order], kinds[order], owners[order]


def _values(array: np.ndarray) -> Iterator[Any]:
    """An array's values as Python's own, some at a time: millions of annotations at once would be gigabytes."""
    for start in range(0, len(array), 100_000):
        yield from array[start : start + 100_000].tolist()


def _json(
    entries: Iterator[tuple[bytes, int, int]],
    coarse: list[int | None],
    taxonomy: Taxonomy,
    categories: list[dict[str, Any]],
    others: list[Any],
) -> Iterator[bytes]:
    """The file, piece by piece: members in the source's order, categories last."""
    yield b"{"
    done: set[int] = set()
    open_list = -1
    first = True
    for data, kind, owner in entries:
        if kind == _OTHER and others[owner][0] in _OURS:
            continue
        if kind != open_list or kind == _OTHER:
            yield b"]" if open_list in _LISTS else b""
            yield b"" if first else b",\n"
            name = others[owner][0] if kind == _OTHER else _LISTS[kind]
            yield _dumps(name) + (b": " if kind == _OTHER else b": [\n")
            open_list, first = kind, False
            done.add(kind)
        else:
            yield b",\n"
        yield _labelled(data, coarse[owner]) if kind == _IMAGES else data
    yield b"]" if open_list in _LISTS else b""
    for kind, name in _LISTS.items():
        if kind not in done:
            yield (b"" if first else b",\n") + _dumps(name) + b": []"
            first = False
    levels = [{"coarse_index": i, "name": name} for i, name in enumerate(taxonomy.coarse_names)]
    yield b',\n"categories": ' + _dumps([_both(i, c, taxonomy) for i, c in enumerate(categories)])
    yield b',\n"coarse_categories": ' + _dumps(levels) + b"}\n"


def _labelled(image: bytes, coarse: int | None) -> bytes:
    return _dumps(json.loads(image) | {"coarse_index": coarse})


def _both(index: int, category: dict[str, Any], taxonomy: Taxonomy) -> dict[str, Any]:
    """A category with both levels; indexes are those of the Parquet columns."""
    fine, parent = category["name"], category.get("supercategory") or ""
    coarse = taxonomy.coarse_index(fine, parent)
    return category | {
        "name": taxonomy.name(fine),
        "supercategory": parent if coarse is None else taxonomy.coarse_names[coarse],
        "fine_index": index,
        "coarse_index": coarse,
        "public": taxonomy.is_public(fine),
    }


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": ")).encode()
