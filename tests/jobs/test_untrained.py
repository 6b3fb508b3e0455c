"""What ``raylens plan`` measures steps with that stand on a training: its networks as they are before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import asking
from jobs.config import load_config
from jobs.demo.scenes import write_scenes
from jobs.semantic.train import TwoLevelTrainer
from pipeline.learnt import Trained
from pipeline.options import Options, Resources
from pipeline.preview import preview
from pipeline.steps import Measure
from stages.preprocess import Preprocess
from stages.semantic.evaluate import TwoLevelEvaluate, TwoLevelEvaluateConfig
from stages.semantic.network import TwoLevelConfig
from stages.semantic.train import TwoLevelTraining
from stages.training import TrainingConfig

CONFIG: dict[str, Any] = {
    "task": "evaluate",
    "data": {
        "train": {"kind": "folder", "root": "scenes/train"},
        "ask": {"kind": "folder", "root": "scenes/val"},
        "segmented": {"images": {"kind": "coco", "annotations": "scenes/instances_val.json", "images": "scenes/val"}},
    },
    "evaluate": {"moves": 2},
    "learn": {"size": [16, 12], "hints": 2},
    "network": {"width": 4, "depth": 2},
    "training": {"epochs": 4, "batch": 8},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("untrained")
    write_scenes(root / "scenes", {"train": 8, "val": 8}, size=24)
    (root / "asking.yaml").write_text(json.dumps(CONFIG))
    return asking.build(load_config(asking.AskingConfig, root / "asking.yaml", []))


def test_every_step_of_an_evaluation_is_estimated_before_anything_is_trained(built: Any, tmp_path: Path) -> None:
    found = preview(built, str(tmp_path / "run"), Options(Resources(cpus_per_actor=1), say=lambda _: None))
    steps = [(step.name, split) for step in built.steps if isinstance(step, Measure) for split in step.splits]
    assert [(step.step, step.split) for step in found] == steps
    assert {step.plan.keys for step in found} == {8}
    assert not (tmp_path / "run").exists()


def test_untrained_networks_make_rows(built: Any) -> None:
    """What fails is as fast as it likes, so an estimate would not notice."""
    rng = np.random.default_rng(0)
    batch = {
        "pixels": rng.integers(0, 256, (2, 3, 16, 12), np.uint8),
        "labels": rng.integers(0, 3, (2, 16, 12), np.int32),
        "drawn": np.array([True, True]),
        "key": ["a", "b"],
        "valid": [True, True],
    }
    for step in (step for step in built.steps if isinstance(step, Measure)):
        learnt = {name: built.step(training).trainer.untrained({}) for name, training in step.trained.items()}
        step.stage.setup(torch.device("cpu"), {name: Trained(one.files, one.facts, "") for name, one in learnt.items()})
        assert len(step.stage(batch)) == 2
        assert step.stage.cost()["forwards_per_row"] >= 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("freeze", [True, False])
def test_an_untrained_two_level_network_makes_rows(freeze: bool) -> None:
    backbone = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 5),
    ).eval()
    frame = Preprocess(size=(8, 8))
    training = TwoLevelTraining(TwoLevelConfig(fine=3, coarse=2, freeze=freeze), TrainingConfig(), frame)
    learnt = TwoLevelTrainer(training).untrained({"backbone": backbone})
    stage = TwoLevelEvaluate(TwoLevelEvaluateConfig(frame))
    stage.setup(torch.device("cpu"), {"backbone": backbone, "network": Trained(learnt.files, learnt.facts, "")})
    pixels = np.zeros((2, 3, 8, 8), np.uint8)
    rows = stage({"pixels": pixels, "valid": [True, True], "rows": [{}, {}], "key": ["a", "b"]})
    assert len(rows) == 2
