"""The page of a filters or svd run: a folder that opens from disk, in which every row and column can be pointed at.

RUN/report/<fingerprint8>/index.html, our scripts beside it, and data/ with the numbers as scripts of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.explorer.chunks import filter_facts, filter_scripts, script, thumbnail, triplet_facts, triplet_scripts
from jobs.explorer.page import SHIPPED, ExplorerData, explorer_page
from jobs.explorer.rows import Answer, Filters, answers
from jobs.report.parts import report_folder, scripts, short_names
from jobs.report.totals import step_totals
from pipeline.run import Run
from pipeline.storage import Folder
from pipeline.units import units

LIMIT = 2_000_000_000  # bytes of a page; the images that come after are told of, and stay in the run
_KINDS = ("filters", "svd")


@dataclass
class _Written:
    """The folder as it grows."""

    folder: Folder
    images: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    def put(self, name: str, data: bytes) -> None:
        self.folder.write(name, data)
        self.size += len(data)


def write_page(run: Run, described: Mapping[str, Any], *, limit: int = LIMIT) -> str:
    """Write RUN/report/<fingerprint8>/ of a filters or svd run from what it holds; returns where index.html lies.

    Images in the order of their keys, as many as ``limit`` bytes hold and one at least. index.html comes last.
    """
    networks = list(described["config"]["networks"])
    marks = {str(step["name"]): str(step["fingerprint"]) for step in described["steps"]}
    held = [u for u in units(run, described) if u.plan and u.plan.fingerprint == marks.get(u.step)]
    written = _Written(report_folder(run, described))
    streams = {
        (kind, number): answers(unit)
        for unit in held
        for kind in _KINDS
        for number, name in enumerate(networks)
        if unit.step == f"{kind}_{name}"
    }
    left_out = 0
    for key, found in by_image(streams):
        if not any(answer.found for answer in found.values()):
            continue  # told among the failures
        if written.images and written.size >= limit:
            left_out += 1
            continue
        written.images.append(_image(written, key, found, len(networks)))
    for image, name in zip(written.images, short_names([image["key"] for image in written.images]), strict=True):
        image["name"] = name
    index = {"networks": [{"name": name} for name in networks], "images": written.images}
    written.put("data/index.js", script("index", index))
    for name, content in scripts("jobs.explorer", SHIPPED).items():
        written.put(name, content)
    data = ExplorerData(
        run=run.url,
        described=described,
        totals=[step_totals(unit) for unit in held],
        images=written.images,
        left_out=left_out,
        bytes=written.size,
    )
    written.folder.write("index.html", explorer_page(data).bytes())
    return written.folder.path("index.html")


def by_image(
    streams: Mapping[tuple[str, int], Iterator[Answer]],
) -> Iterator[tuple[str, dict[tuple[str, int], Answer]]]:
    """(key, what each stream has of it), in the order of the keys, which every stream follows."""
    heads = {name: next(stream, None) for name, stream in streams.items()}
    while any(heads.values()):
        key = min(head.key for head in heads.values() if head)
        found = {name: head for name, head in heads.items() if head and head.key == key}
        yield key, found
        heads |= {name: next(streams[name], None) for name in found}


def _image(written: _Written, key: str, found: Mapping[tuple[str, int], Answer], networks: int) -> dict[str, Any]:
    """Write the scripts of one image; returns what the index says of it."""
    told: list[dict[str, Any]] = [{} for _ in range(networks)]
    picture = None
    for (kind, number), answer in found.items():
        folder = f"{len(written.images)}-{number}-{kind}"
        if answer.found is None:
            told[number][kind] = {"problem": answer.error}
        elif isinstance(answer.found, Filters):
            told[number][kind] = filter_facts(answer.found) | {"folder": folder}
            picture = answer.found.input if picture is None else picture
            _write(written, filter_scripts(answer.found, folder))
        else:
            told[number][kind] = triplet_facts(answer.found) | {"folder": folder}
            _write(written, triplet_scripts(answer.found, folder))
    small = None if picture is None else thumbnail(picture)
    return {"key": key, "thumbnail": small, "networks": told}


def _write(written: _Written, scripts: Iterator[tuple[str, bytes]]) -> None:
    for name, data in scripts:
        written.put(f"data/{name}.js", data)
