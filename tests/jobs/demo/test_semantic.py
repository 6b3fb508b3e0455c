"""The demo's two-level part: its taxonomy fits its scenes, and its configs are what a user could have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.coco.taxonomy import read_taxonomy
from jobs.demo.run import PARTS, network_section
from jobs.demo.scenes import write_scenes
from jobs.demo.semantic import TAXONOMY, coco_config, semantic_config
from jobs.demo.shapes import CATEGORIES
from jobs.semantic.variants import variants


def test_the_taxonomy_has_two_fine_classes_for_each_of_six_coarse_ones() -> None:
    taxonomy = read_taxonomy(str(TAXONOMY))
    found = [taxonomy.coarse_index(c.name, c.supercategory) for c in CATEGORIES]
    assert found == [None, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [c.name for c in CATEGORIES if taxonomy.is_public(c.name)] == ["person"]
    assert taxonomy.unknown([(c.name, c.supercategory) for c in CATEGORIES]) == []


def test_the_scenes_are_what_the_coco_job_reads(tmp_path: Path) -> None:
    from pipeline.sources.instances import instances_table

    write_scenes(tmp_path / "scenes", dict.fromkeys(("train", "tune", "val"), 2), size=32)
    config = coco_config(tmp_path / "scenes")
    assert list(config.splits) == ["train", "tune", "val"]
    table = instances_table(config.splits["tune"])
    content = json.loads((tmp_path / "scenes/instances_tune.json").read_text())
    assert len(table) == len(content["images"])


@pytest.mark.parametrize("full", [False, True])
def test_the_configs_train_three_networks_and_full_shows_each_scene_in_several_forms(
    tmp_path: Path, full: bool
) -> None:
    config = semantic_config(tmp_path / "coco", network_section(tmp_path), full=full)
    assert (config.training.views > 1) is full
    assert (config.splits.train, config.splits.tune, config.splits.eval) == ("train", "tune", "val")
    assert [v.name for v in variants(config)] == ["small_vgg_focal", "small_vgg_bce", "small_vgg_coarse"]


def test_the_parts_stand_in_the_order_in_which_they_stand_on_each_other() -> None:
    names = [name for name, _ in PARTS]
    places = [next(i for i, n in enumerate(names) if word in n) for word in ("drawing", "training", "filtered", "kept")]
    assert places == sorted(places)
