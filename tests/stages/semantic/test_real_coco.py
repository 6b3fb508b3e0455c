"""Real photographs, real labels, real weights: heads on a frozen MobileNet-v2 learn the kept images by heart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline.vision import torchvision
from stages.preprocess import Preprocess
from stages.semantic.evaluate import TwoLevelEvaluate, TwoLevelEvaluateConfig
from stages.semantic.indexes import SemanticIndexes, SemanticIndexesConfig
from stages.semantic.labels import targets
from stages.semantic.network import TwoLevelConfig
from stages.semantic.rules import predicted
from stages.semantic.train import RECIPE, TwoLevelTraining, train_two_level
from stages.training import TensorData

SIZE = 96
PREPROCESS = Preprocess(size=(SIZE, SIZE))


def kept(folder: Path) -> tuple[list[tuple[Path, list[int], int]], list[str], list[str]]:
    """(image, fine ids, coarse id) of the images whose classes, people aside, share a supercategory; both names."""
    found: list[tuple[Path, list[int], int]] = []
    names: list[str] = []
    parents: list[str] = []
    for part in ("tiny", "mini"):
        for split in ("train2017", "val2017"):
            listed = json.loads((folder / part / "annotations" / f"instances_{split}.json").read_text())
            categories = sorted(listed["categories"], key=lambda c: c["id"])
            names = [c["name"] for c in categories]
            parents = list(dict.fromkeys(c["supercategory"] for c in categories if c["name"] != "person"))
            by_id = {c["id"]: (i, c) for i, c in enumerate(categories)}
            shown: dict[int, set[int]] = {}
            for annotation in listed["annotations"]:
                shown.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
            for image in listed["images"]:
                classes = [by_id[i] for i in sorted(shown.get(image["id"], ())) if by_id[i][1]["name"] != "person"]
                above = {c["supercategory"] for _, c in classes}
                if len(above) == 1:
                    path = folder / part / split / image["file_name"]
                    found.append((path, [i for i, _ in classes], parents.index(above.pop())))
    return found, names, parents


def exact(rule: str, told: dict) -> bool:
    return predicted(rule, told["fine_scores"], len(told["true"])) == told["true"]


@pytest.mark.parametrize("loss", ["focal", "bce"])
def test_heads_on_a_frozen_backbone_learn_the_real_images(real_data: Path, loss: str) -> None:
    rows, names, parents = kept(real_data / "coco")
    assert len(rows) == 111
    assert (len(names), len(parents)) == (80, 11)
    network = torchvision.models.mobilenet_v2(weights=None)
    weights = safetensors.torch.load_file(real_data / "weights" / "mobilenet_v2.safetensors")
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    network.eval()
    pixels = np.stack([PREPROCESS.pixels(np.asarray(Image.open(path).convert("RGB"))) for path, _, _ in rows])
    labels = targets([fine for _, fine, _ in rows], [coarse for _, _, coarse in rows], 80, 11)
    data = TensorData([str(path) for path, _, _ in rows], image=torch.from_numpy(pixels), **labels)
    recipe = replace(RECIPE, epochs=40, batch=37, lr=0.01)
    config = TwoLevelTraining(TwoLevelConfig(80, 11, loss, freeze=True), recipe, PREPROCESS, augment=None)
    files, facts = train_two_level(network, {"train": data}, config)
    assert facts["features"]["width"] == 1280

    rules = ("oracle_k",) if loss == "focal" else ("threshold",)
    evaluate = TwoLevelEvaluate(TwoLevelEvaluateConfig(preprocess=PREPROCESS))
    trained = SimpleNamespace(files=files, facts=json.loads(json.dumps(facts)))
    evaluate.setup(torch.device("cpu"), {"network": trained, "backbone": network})
    given = [{"fine": fine, "coarse": coarse} for _, fine, coarse in rows]
    said = []
    for start in range(0, 111, 37):
        part = slice(start, start + 37)
        batch = {"pixels": pixels[part], "rows": given[part], "valid": np.ones(37, bool), "key": [""] * 37}
        said += evaluate(batch)
    keys = [path.name for path, _, _ in rows]
    schema = pa.schema([pa.field("key", pa.string()), pa.field("split", pa.string()), *evaluate.schema])
    table = pa.Table.from_pylist(
        [{"key": key, "split": "train", **told} for key, told in zip(keys, said, strict=True)], schema=schema
    )
    reduction = SemanticIndexes(SemanticIndexesConfig(rules, tuple(names), tuple(parents)))
    summary = reduction.summary(reduction.finish("all", reduction.add(reduction.start(), table)))["train"]
    assert summary["images"] == 111
    assert summary["coarse_accuracy"]["value"] >= 0.95
    assert summary["rules"][rules[0]]["set"]["IA"]["value"] >= 0.9
    # The decision path of a right image leads through classes it really shows.
    right = [told for told in said if told["coarse"] == told["coarse_true"] and exact(rules[0], told)]
    led = np.mean([int(told["path_fine"][0]) in told["true"] for told in right])
    assert led >= 0.9
