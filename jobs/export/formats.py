"""Writers: COCO results and datasets, Pascal VOC, YOLO, CSV, PNG masks. Everything stays inside the folder it is given.

Class ids count from 0 in the run; COCO's category ids, which tools expect from 1, are one more.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from jobs.export.detection import Detection, Exported
from jobs.export.names import Names, file_in

Counts = dict[str, int]


def write(format: str, folder: Path, classes: Sequence[str], images: Iterator[Exported]) -> Counts:
    """Write all images in one pass; returns images, detections and files."""
    return FORMATS[format](folder, _Classes(classes), images)


class _Classes:
    """Names of class ids, whatever ids turn up."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __getitem__(self, index: int) -> str:
        return self.names[index] if index < len(self.names) and self.names[index] else f"class {index}"

    def categories(self, used: set[int]) -> list[dict[str, Any]]:
        return [{"id": c + 1, "name": self[c]} for c in sorted(used | set(range(len(self.names))))]


def _box(found: Detection) -> list[float]:
    x0, y0, x1, y1 = found.box
    return [round(x0, 3), round(y0, 3), round(x1 - x0, 3), round(y1 - y0, 3)]


def _segmentation(found: Detection) -> Any:
    """Compressed RLE of the mask; no polygon where there is none."""
    if found.mask is None:
        return []
    encoded = coco.encode(np.asfortranarray(found.mask.astype(np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}


class _List:
    """A JSON list that is written as it grows."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.count = file, 0

    def add(self, value: Any) -> None:
        self.file.write(("," if self.count else "") + "\n" + json.dumps(value, ensure_ascii=False))
        self.count += 1


def _coco_results(folder: Path, classes: _Classes, images: Iterator[Exported]) -> Counts:
    """results.json, a list for ``COCO.loadRes``, and images.json, the dataset its ids are of, without annotations."""
    listed, used, total = [], set(), 0
    with open(file_in(folder, "results.json"), "w", encoding="utf-8") as file:
        out = _List(file)
        file.write("[")
        for image in images:
            listed.append(_coco_image(image))
            for found in image.detections:
                used.add(found.class_id)
                segmentation = {} if found.mask is None else {"segmentation": _segmentation(found)}
                row = {"image_id": image.number, "category_id": found.class_id + 1, "bbox": _box(found)}
                out.add(row | {"score": round(found.score, 6)} | segmentation)
        file.write("\n]\n")
        total = out.count
    dataset = {"images": listed, "annotations": [], "categories": classes.categories(used)}
    file_in(folder, "images.json").write_text(json.dumps(dataset, ensure_ascii=False), encoding="utf-8")
    return {"images": len(listed), "detections": total, "files": 2}


def _coco_dataset(folder: Path, classes: _Classes, images: Iterator[Exported]) -> Counts:
    """annotations/instances_default.json, where CVAT looks for it: images, annotations (with the score beside the
    format's own fields), categories. Images go to images/default/<file_name>."""
    listed, used = [], set()
    with open(file_in(folder, "annotations/instances_default.json"), "w", encoding="utf-8") as file:
        out = _List(file)
        file.write('{"annotations": [')
        for image in images:
            listed.append(_coco_image(image))
            for found in image.detections:
                used.add(found.class_id)
                out.add(
                    {
                        "id": out.count + 1,
                        "image_id": image.number,
                        "category_id": found.class_id + 1,
                        "bbox": _box(found),
                        "area": found.area,
                        "iscrowd": 0,
                        "segmentation": _segmentation(found),
                        "score": round(found.score, 6),
                    }
                )
        rest = {
            "images": listed,
            "categories": classes.categories(used),
            "info": {"description": "exported by Raylens"},
        }
        file.write("\n], " + json.dumps(rest, ensure_ascii=False)[1:] + "\n")
    return {"images": len(listed), "detections": out.count, "files": 1}


def _coco_image(image: Exported) -> dict[str, Any]:
    return {"id": image.number, "file_name": image.key, "width": image.width, "height": image.height}


def _voc(folder: Path, classes: _Classes, images: Iterator[Exported]) -> Counts:
    """Annotations/<image>.xml; corners count pixels from 1 and name the last one, as VOC's do.

    ImageSets/Main/default.txt lists the images and labelmap.txt the classes, without which readers know VOC's twenty
    only. Images go to JPEGImages/<image>.
    """
    counts, names, used = {"images": 0, "detections": 0, "files": 2}, Names(folder), set[int]()
    listed: list[str] = []
    for image in images:
        name = names.of(image.key)
        listed.append(name)
        root = ElementTree.Element("annotation")
        _tag(root, "folder", image.key.rpartition("/")[0])
        _tag(root, "filename", image.key.rpartition("/")[2])
        size = ElementTree.SubElement(root, "size")
        for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
            _tag(size, tag, value)
        _tag(root, "segmented", 0)
        for found in image.detections:
            used.add(found.class_id)
            thing = ElementTree.SubElement(root, "object")
            _tag(thing, "name", _plain_name(classes[found.class_id]))
            for tag, text in (("pose", "Unspecified"), ("truncated", 0), ("difficult", 0)):
                _tag(thing, tag, text)
            corners = ElementTree.SubElement(thing, "bndbox")
            x0, y0, x1, y1 = found.box
            pixels = (round(x0) + 1, round(y0) + 1, max(round(x1), round(x0) + 1), max(round(y1), round(y0) + 1))
            for tag, pixel in zip(("xmin", "ymin", "xmax", "ymax"), pixels, strict=True):
                _tag(corners, tag, pixel)
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(file_in(folder, f"Annotations/{name}.xml"), encoding="utf-8")
        _count(counts, image, files=1)
    file_in(folder, "ImageSets/Main/default.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    labels = [_plain_name(c["name"]) for c in classes.categories(used)]
    told = "".join(f"{label}:::\n" for label in ["background", *labels])
    file_in(folder, "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{told}", encoding="utf-8")
    counts["files"] += names.write()
    return counts


def _plain_name(name: str) -> str:
    """As a line of labelmap.txt can hold it, where a colon ends the name."""
    return re.sub(r"[:\r\n]", " ", name)


def _tag(parent: ElementTree.Element, name: str, value: Any) -> None:
    # Names may hold anything; XML 1.0 has no place for control characters.
    ElementTree.SubElement(parent, name).text = re.sub(
        r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", str(value)
    )


def _yolo(folder: Path, classes: _Classes, images: Iterator[Exported]) -> Counts:
    """labels/<image>.txt ("class x y width height" as shares of the image), data.yaml and classes.txt with the names.

    Images go to images/<image>: readers find a label by that path with the other first part. They take the last part
    called "images" for it, so a key's own is left out.
    """
    counts, files, used = {"images": 0, "detections": 0, "files": 0}, Names(folder), set[int]()
    for image in images:
        rows = []
        for found in image.detections:
            used.add(found.class_id)
            x0, y0, x1, y1 = found.box
            w, h = image.width, image.height
            shares = ((x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h)
            rows.append(" ".join([str(found.class_id), *(f"{share:.6f}" for share in shares)]))
        name = files.of(image.key, "/".join(part for part in image.key.split("/") if part != "images"))
        file_in(folder, f"labels/{name}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        _count(counts, image, files=1)
    names = {c["id"] - 1: c["name"] for c in classes.categories(used)}
    told = "".join(f"  {c}: {json.dumps(name, ensure_ascii=False)}\n" for c, name in names.items())
    # Without a path the folders are beside this file; a relative one Ultralytics takes from where it is started.
    file_in(folder, "data.yaml").write_text(f"train: images\nval: images\nnames:\n{told}", encoding="utf-8")
    listed = [classes[c].replace("\n", " ") for c in range(max(names, default=-1) + 1)]
    file_in(folder, "classes.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    counts["files"] += 2 + files.write()
    return counts


def _label_studio(folder: Path, classes: _Classes, images: Iterator[Exported]) -> Counts:
    """tasks.json, boxes as predictions in percent of the image, and label_config.xml, the labels they need.

    Images are named as Label Studio's local files are served: ``?d=`` and the key below the served folder.
    """
    count, used = 0, set[int]()
    with open(file_in(folder, "tasks.json"), "w", encoding="utf-8") as file:
        out = _List(file)
        file.write("[")
        for image in images:
            result = []
            for number, found in enumerate(image.detections):
                used.add(found.class_id)
                x0, y0, x1, y1 = found.box
                x, width = (round(100 * v / image.width, 4) for v in (x0, x1 - x0))
                y, height = (round(100 * v / image.height, 4) for v in (y0, y1 - y0))
                value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
                label = {"rectanglelabels": [classes[found.class_id]]}
                shown = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
                names = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
                score = round(found.score, 6)
                result.append(
                    {"id": f"{image.number}_{number}", **names, **shown, "value": value | label, "score": score}
                )
            count += len(result)
            best = max((d.score for d in image.detections), default=0.0)
            predictions = [{"model_version": "raylens", "score": round(best, 6), "result": result}] if result else []
            out.add({"data": {"image": f"/data/local-files/?d={quote(image.key)}"}, "predictions": predictions})
        file.write("\n]\n")
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    labels = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for category in classes.categories(used):
        ElementTree.SubElement(labels, "Label", value=category["name"])
    ElementTree.indent(view)
    ElementTree.ElementTree(view).write(file_in(folder, "label_config.xml"), encoding="utf-8")
    return {"images": out.count, "detections": count, "files": 2}


def _csv(folder: Path, classes: _Classes, images: Iterator[Exported]) -> Counts:
    """boxes.csv: one line per detection; x1 and y1 are edges."""
    counts = {"images": 0, "detections": 0, "files": 1}
    with open(file_in(folder, "boxes.csv"), "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["key", "class_id", "class", "score", "x0", "y0", "x1", "y1", "width", "height", "area"])
        for image in images:
            for found in image.detections:
                corners = [round(v, 3) for v in found.box]
                score, area = round(found.score, 6), round(found.area, 3)
                out.writerow(
                    [
                        image.key,
                        found.class_id,
                        classes[found.class_id],
                        score,
                        *corners,
                        image.width,
                        image.height,
                        area,
                    ]
                )
            _count(counts, image, files=0)
    return counts


def _png(folder: Path, classes: _Classes, images: Iterator[Exported]) -> Counts:
    """masks/<image>/<class id>.png, 255 where the class is; detections without a mask are their box."""
    counts, names = {"images": 0, "detections": 0, "files": 0}, Names(folder)
    for image in images:
        name = names.of(image.key)
        for found in image.detections:
            mask = found.mask
            if mask is None:
                mask = np.zeros((image.height, image.width), dtype=bool)
                x0, y0, x1, y1 = (round(v) for v in found.box)
                mask[y0:y1, x0:x1] = True
            path = file_in(folder, f"masks/{name}/{found.class_id}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
        _count(counts, image, files=len(image.detections))
    counts["files"] += names.write()
    return counts


def _count(counts: Counts, image: Exported, files: int) -> None:
    counts["images"] += 1
    counts["detections"] += len(image.detections)
    counts["files"] += files


FORMATS: dict[str, Callable[[Path, _Classes, Iterator[Exported]], Counts]] = {
    "coco-results": _coco_results,
    "coco": _coco_dataset,
    "voc": _voc,
    "yolo": _yolo,
    "label-studio": _label_studio,
    "csv": _csv,
    "png": _png,
}
