"""Contributions of real networks on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models import ModelSpec, load
from stages.linear.classifier import View
from stages.linear.contributions_stage import ContributionsConfig, ContributionsStage
from stages.preprocess import Preprocess

IMAGES = 4


def rows_of(data: Path, name: str) -> list[dict[str, Any]]:
    network = load(ModelSpec(name=name, weights=str(data / f"weights/{name}.safetensors")))
    stage = ContributionsStage(ContributionsConfig(view=View(preprocess=Preprocess(**network.preprocess))))
    stage.setup(torch.device("cpu"), {"network": network.module})
    files = sorted((data / "ilsvrc_val/images").glob("*.jpg"))[:IMAGES]
    pixels = [stage.prepare(np.asarray(Image.open(f).convert("RGB")), {})["pixels"] for f in files]
    rows = [{"key": f.name, "label": None} for f in files]
    return stage({"rows": rows, "valid": np.ones(IMAGES, bool), "pixels": np.stack(pixels)})


@pytest.mark.parametrize(("name", "terms"), [("squeezenet1_0", 26), ("mobilenet_v2", 88)])
def test_terms_of_real_networks_add_up_to_the_score(real_data: Path, name: str, terms: int) -> None:
    found = rows_of(real_data, name)
    for row in found:
        assert len(row["layer_names"]) == terms
        size = abs(row["input"]) + np.abs(row["layers"]).sum()
        assert abs(row["input"] + row["layers"].sum() - row["score"]) <= 1e-5 * size
        assert row["target"] == row["predicted"]
    if name == "squeezenet1_0":
        # These weights were trained on 0..255 input: 5.6 +- 2.1 % is bias, not the 80.7 % of torchvision's.
        shares = [row["share"] for row in found]
        assert 0.02 < np.mean(shares) < 0.1
        assert all(0 < s < 0.2 for s in shares)
