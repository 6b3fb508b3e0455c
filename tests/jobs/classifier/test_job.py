"""The classifier job on real VOC files: what it learns is what the pointing config takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from jobs.classifier import ClassifierConfig, build, run
from jobs.classifier.config import class_names
from jobs.config import check, load_config
from jobs.gfi import GfiConfig
from pipeline.errors import UsageError
from pipeline.models import load

CONFIGS = Path(__file__).parents[3] / "jobs/configs"
DATA = os.environ.get("RAYLENS_TEST_DATA", "")

NETWORK = """
import torch
from torch import nn


def tiny(num_classes: int = 9) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def without_linear() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    (tmp_path / "vocnets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    source = {"kind": "voc", "root": f"{DATA}/voc/VOCdevkit", "years": ["VOC2007", "VOC2012"]}
    return {
        "model": {"name": "vocnets:tiny", "seed": 0, "preprocess": {"size": 32}},
        "data": {"train": source, "eval": source},
        "training": {"epochs": 3, "batch": 4, "lr": 0.05},
        "skip_unreadable": True,
        "resources": {"train_workers": 0},
    }


@pytest.mark.skipif(not Path(DATA, "voc/VOCdevkit").is_dir(), reason="RAYLENS_TEST_DATA has no VOC images")
def test_what_is_learnt_from_voc_files_is_a_model_of_other_jobs(
    values: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = check(ClassifierConfig, values, where="test")
    said: list[str] = []
    outcome = run(config, str(tmp_path / "run"), config.options(say=said.append))
    assert outcome.exit_code == 0
    assert "2 of 10 images of train cannot be read" in capsys.readouterr().err  # two of the files are truncated
    weights = tmp_path / "run/network.safetensors"
    state = safetensors.torch.load_file(weights)
    assert state["5.weight"].shape == (20, 32)
    spec = config.model.model_copy(update={"weights": str(weights), "seed": None, "arguments": {"num_classes": 20}})
    network = load(spec)
    assert network.num_classes == 20
    assert all(torch.equal(value, state[name]) for name, value in network.module.state_dict().items())
    page = next((tmp_path / "run/report").glob("*/index.html")).read_text()
    assert "Average precision" in page
    assert "aeroplane" in page
    assert run(config, str(tmp_path / "run"), config.options(say=said.append)).exit_code == 0
    assert "epoch" not in capsys.readouterr().err  # nothing is learnt again


def test_a_network_without_a_last_linear_layer_is_told_before_anything_runs(values: dict[str, object]) -> None:
    values["model"] = {"name": "vocnets:without_linear", "seed": 0, "preprocess": {"size": 32}}
    with pytest.raises(UsageError, match="last linear layer"):
        build(check(ClassifierConfig, values, where="test"))


def test_the_papers_config_trains_what_its_pointing_config_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOC", "/voc")
    config = load_config(ClassifierConfig, CONFIGS / "classifier-voc07.yaml")
    pointing = load_config(GfiConfig, CONFIGS / "gfi-voc07-pointing.yaml")
    assert config.model.name == pointing.model.name
    assert len(class_names(config)) == pointing.model.num_classes == 20
    training = config.training
    assert (training.optimizer, training.lr, training.weight_decay, training.batch) == ("adamw", 1e-4, 0.0, 64)
    assert training.schedule == "constant"
    assert config.data.train.image_set != config.data.eval.image_set
