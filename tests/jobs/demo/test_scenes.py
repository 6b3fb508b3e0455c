"""The drawn scenes: the same everywhere, exact annotations, labels by the rule, nothing given away by colour."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from jobs.demo.canvas import FINE, fill, png, polygons, share
from jobs.demo.draws import Draws
from jobs.demo.scenes import CATEGORIES, CLASS_NAMES, draw, write_scenes


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("scenes")
    return folder, write_scenes(folder, {"train": 30, "val": 100}, size=72, seed=3, workers=2)


def test_words_of_the_generator_are_the_promised_ones() -> None:
    # Golden: scenes are the same on every machine only as long as these are.
    assert Draws(0, "val", 7).array(3).tolist() == GOLDEN_DRAWS


def test_same_scene_as_ever() -> None:
    scenes = [draw("val", index, 0, 64) for index in range(6)]
    pixels = hashlib.sha256(b"".join(scene.image.tobytes() for scene in scenes)).hexdigest()
    assert pixels[:16] == GOLDEN_PIXELS


def test_files_do_not_depend_on_workers_nor_on_how_many_are_drawn(
    written: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    folder, paths = written
    again = write_scenes(tmp_path, {"train": 30, "val": 20}, size=72, seed=3, workers=1)
    assert again["train"].read_bytes() == paths["train"].read_bytes()
    for index in range(20):
        name = f"val/{index:06d}.png"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_other_seed_or_split_other_scene() -> None:
    first = draw("val", 4, 0, 64).image
    assert not np.array_equal(first, draw("val", 4, 1, 64).image)
    assert not np.array_equal(first, draw("train", 4, 0, 64).image)


def test_pycocotools_reads_back_exactly_what_was_drawn(written: tuple[Path, dict[str, Path]]) -> None:
    folder, paths = written
    coco = load(paths["val"])
    for index in range(100):
        scene = draw("val", index, 3, 72)
        entry = coco.loadImgs([index + 1])[0]
        assert np.array_equal(np.asarray(Image.open(folder / "val" / entry["file_name"])), scene.image)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index + 1]))
        assert len(annotations) == len(scene.things)
        for annotation, thing in zip(annotations, scene.things, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), thing.mask)
            x, y, width, height = annotation["bbox"]
            rows, columns = np.nonzero(thing.mask)
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1 - x, rows.max() + 1 - y) == (width, height)
            assert annotation["area"] == thing.mask.sum()
            assert 0.03 <= annotation["area"] / 72**2 <= 0.40


def test_label_is_the_largest_thing_and_a_person_only_where_people_are_alone(
    written: tuple[Path, dict[str, Path]],
) -> None:
    coco = load(written[1]["val"])
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    alone = 0
    for entry in coco.dataset["images"]:
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[entry["id"]]))
        assert entry["label"] == max(annotations, key=lambda a: a["area"])["category_id"]
        others = [a for a in annotations if names[a["category_id"]] != "person"]
        alone += not others
        if others:
            assert entry["label"] == max(others, key=lambda a: a["area"])["category_id"]
            assert entry["label"] == max(others, key=lambda a: a["bbox"][2] * a["bbox"][3])["category_id"]
    assert alone == 4


def test_scenes_have_what_later_jobs_need(written: tuple[Path, dict[str, Path]]) -> None:
    coco = load(written[1]["val"])
    groups = {category["id"]: category["supercategory"] for category in coco.dataset["categories"]}
    sets = [
        {groups[a["category_id"]] for a in coco.loadAnns(coco.getAnnIds(imgIds=[entry["id"]]))}
        for entry in coco.dataset["images"]
    ]
    assert any(len(found - {"person"}) > 1 for found in sets), "nothing for the COCO filter to reject"
    assert any(found == {"person"} for found in sets)
    assert any("person" in found and len(found) > 1 for found in sets)
    counts = np.unique([entry["label"] for entry in coco.dataset["images"]], return_counts=True)[1]
    assert counts.tolist() == [4] + [8] * 12, "classes are balanced"
    for name in set(groups.values()) - {"person"}:
        assert sum(category.supercategory == name for category in CATEGORIES) >= 2


def test_colour_says_nothing_about_the_class() -> None:
    """A nearest-mean classifier on the mean colours of thing and ground does no better than chance."""
    scenes = [draw("colour", index, 0, 48) for index in range(480)]
    scenes = [scene for scene in scenes if scene.label != 0]
    labels = np.array([scene.label for scene in scenes])

    def colours(scene) -> np.ndarray:
        thing = max((t for t in scene.things if t.category.name != "person"), key=lambda t: t.area)
        inside, outside = scene.image[thing.mask], scene.image[~thing.mask]
        return np.concatenate([inside.mean(axis=0), outside.mean(axis=0)])

    x = np.stack([colours(scene) for scene in scenes])
    fit = np.arange(len(x)) % 48 < 24
    held = ~fit
    means = np.stack([x[fit & (labels == c)].mean(axis=0) for c in range(1, len(CLASS_NAMES))])
    guess = 1 + np.argmin(((x[held, None] - means) ** 2).sum(axis=2), axis=1)
    right, chance = (guess == labels[held]).mean(), 1 / (len(CLASS_NAMES) - 1)
    assert right < chance + 4 * np.sqrt(chance * (1 - chance) / held.sum()) + 0.05


def test_fill_agrees_with_a_point_in_polygon_check() -> None:
    d = Draws(5, "fill")
    rings = [d.array(7, 2) * 14 - 1, d.array(4, 2) * 8 + 2]
    inside = fill([[rings[0]], rings], 12)[1]
    for row, column in np.ndindex(inside.shape):
        x, y = (column + 0.5) / FINE, (row + 0.5) / FINE
        crossings = 0
        for ring in rings:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                    crossings += 1
        assert inside[row, column] == (crossings % 2 == 1)
    assert np.array_equal(inside, fill([rings], 12)[0]), "parts do not touch each other"
    assert share(inside)[3, 4] == inside[9:12, 12:15].mean()


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_exactly_the_mask_even_with_holes_and_touching_corners(seed: int) -> None:
    from pycocotools import mask as rle

    mask = Draws(seed, "mask").array(17, 23) < 0.55
    decoded = rle.decode(rle.merge(rle.frPyObjects(polygons(mask), 17, 23))).astype(bool)
    assert np.array_equal(decoded, mask)


def test_png_of_more_than_one_stored_block() -> None:
    image = (Draws(0, "png").array(150, 160, 3) * 256).astype(np.uint8)
    data = png(image)
    assert image.nbytes > 65535
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)


def test_json_is_plain(written: tuple[Path, dict[str, Path]]) -> None:
    data = json.loads(written[1]["train"].read_text())
    assert [category["id"] for category in data["categories"]] == sorted(c.id for c in CATEGORIES)
    assert len({annotation["id"] for annotation in data["annotations"]}) == len(data["annotations"])


GOLDEN_DRAWS = [0.6848933375139866, 0.5771034797954567, 0.6669910625922955]
GOLDEN_PIXELS = "0f5bd9c83371c807"
