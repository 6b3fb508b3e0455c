"""Configs and taxonomy files of the COCO job, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from coco_cases import ROOT, config

from jobs.coco import CocoConfig
from jobs.coco.taxonomy import read_taxonomy
from jobs.config import load_config
from pipeline.errors import UsageError


def test_the_papers_taxonomy_has_80_fine_and_11_coarse_classes() -> None:
    taxonomy = read_taxonomy(None)
    assert len(taxonomy.coarse_names) == 11
    assert sum(len(members) for _, members in taxonomy.coarse) + len(taxonomy.public) == 80


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("coarse: {a: [x], b: [x]}", "'x' twice"),
        ("public: [x]", "no coarse class"),
        ("coars: {a: [x]}", "coarse"),
        ("coarse: {a: 5}", "coarse"),
    ],
)
def test_a_wrong_taxonomy_is_told_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_taxonomy(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_ready_made_config_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO", "/data/coco")
    found = load_config(CocoConfig, ROOT / "jobs/configs/coco-2017.yaml")
    assert found.splits["train"].annotations == "/data/coco/annotations/instances_train2017.json"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_splits_are_folder_names(name: str) -> None:
    with pytest.raises(UsageError, match="split"):
        config({name: {"annotations": "x.json"}})
