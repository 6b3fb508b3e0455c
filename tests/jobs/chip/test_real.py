"""CHIP on a real network and real images, without Ray: do the weights say what the network's own last layer says?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import images, slices
from pipeline.dataset import key_table
from pipeline.decode import prepare_slice
from pipeline.models import ModelSpec, load
from pipeline.steps import row_schema
from stages.chip.solve import ChipSolve, SolveConfig
from stages.chip.statistics import ChipStatistics, StatisticsConfig
from stages.chip.sweep import ChipSweep, SweepConfig
from stages.preprocess import Preprocess

BATCH, IMAGES = 20, 400


@pytest.fixture(scope="module")
def solved(real_data: Path) -> tuple[pa.Table, np.ndarray]:
    """Solve rows of the CIFAR-10 ResNet-20's last layer on 400 images, and the rows of its final linear layer."""
    weights = real_data / "weights/cifar10_resnet20.safetensors"
    network = load(
        ModelSpec(name="jobs.resnet20:cifar_resnet20", weights=str(weights), preprocess={"size": 32}, num_classes=10)
    )
    stage = ChipSweep(SweepConfig(classes="all", preprocess=Preprocess(**network.preprocess)))
    stage.setup(torch.device("cpu"), {"network": network.module})
    table = key_table({"kind": "folder", "root": str(real_data / "cifar10/test"), "sample": IMAGES})
    keys, rows = table.to_pylist(), []
    for lo, hi in slices.ranges(0, IMAGES, BATCH):
        prepared = prepare_slice(stage, keys[lo:hi], images.Limits())
        rows += slices.run_slice(stage, "fit", keys[lo:hi], prepared, BATCH)
    swept = slices.to_table(rows, row_schema(stage), "sweep")
    swept = swept.append_column("split", pa.array(["fit"] * IMAGES))
    config = StatisticsConfig(layers=("last_conv",), channels=(64,), classes=10)
    statistics, solve = ChipStatistics(config), ChipSolve(SolveConfig(statistics=config))
    block = statistics.blocks()[0]
    sums = statistics.finish(block, statistics.add(statistics.start(block), swept))
    weights_of = solve.finish(block, solve.add(solve.start(block), sums))
    return weights_of, network.module.linear.weight.detach().double().numpy()


def test_every_class_correlates_best_with_its_own_row_of_the_last_layer(solved):
    table, final = solved
    assert table.num_rows == 10
    for row in table.to_pylist():
        correlations = [np.corrcoef(row["w"], other)[0, 1] for other in final]
        assert int(np.argmax(correlations)) == row["class_id"]
        assert correlations[row["class_id"]] > 0.5


def test_the_fit_is_certified_and_holds_on_images_it_did_not_see(solved):
    table, _ = solved
    assert max(table.column("kkt").to_pylist()) <= 1e-8
    assert not any(table.column("underdetermined").to_pylist())
    assert np.median(table.column("r2_heldout").to_pylist()) > 0.7
    assert np.median(table.column("r2_heldout_centred").to_pylist()) > 0.1, "better than predicting the mean"
