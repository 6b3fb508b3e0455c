"""Configs of the linear job: those that come with Raylens, and what is wrong with others, told before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.config import check, load_config
from jobs.linear import LinearConfig, build
from jobs.linear.papers import PAPER, same_weights
from pipeline.errors import UsageError
from pipeline.models import ModelSpec
from pipeline.steps import Measure

FOLDER = Path(__file__).parents[3] / "jobs/configs"
CONFIGS = ("linear-residual-ilsvrc.yaml", "linear-layers.yaml", "linear-votes.yaml")
NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.head, self.kind = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), kind

    def forward(self, x):
        y = self.conv(x)
        y = torch.softmax(y, dim=1) if self.kind == "softmax" else torch.relu(y)
        return self.head(y.mean((2, 3)))


def net(kind="relu"):
    return Net(kind)
"""


@pytest.fixture(autouse=True)
def _somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ILSVRC", "DATA"):
        monkeypatch.setenv(name, f"/somewhere/{name.lower()}")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "linearconfignet.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "linearconfignet:net"


def config(network: dict[str, Any], task: str = "residual", **more: Any) -> LinearConfig:
    values = {"task": task, "networks": {"tiny": network | {"seed": 0, "preprocess": {"size": 16}}}}
    values |= {"data": {"images": {"kind": "folder", "root": "/nowhere"}}} | more
    return check(LinearConfig, values, where="test")


@pytest.mark.parametrize("name", CONFIGS)
def test_it_loads_and_is_commented(name: str) -> None:
    found = load_config(LinearConfig, FOLDER / name)
    assert found.run == f"runs/{name.removesuffix('.yaml')}"
    assert found.task == name.split("-")[1].removesuffix(".yaml")
    assert (FOLDER / name).read_text().startswith("# ")
    # What a run records is read back by its report.
    assert LinearConfig.model_validate(found.model_dump(mode="json")) == found


def test_the_papers_table_stands_in_one_config_with_its_own_weights() -> None:
    found = load_config(LinearConfig, FOLDER / CONFIGS[0])
    assert [spec.name for spec in found.networks.values()] == list(PAPER)
    assert all(same_weights(spec) for spec in found.networks.values())


def test_other_weights_are_known_as_such() -> None:
    published = "https://download.pytorch.org/models/squeezenet1_0-b66bff10.pth"
    assert same_weights(ModelSpec(name="squeezenet1_0", weights=published))
    assert same_weights(ModelSpec(name="squeezenet1_0", weights="DEFAULT"))  # there are no second ones
    for name, weights in (("resnet50", "DEFAULT"), ("resnet50", "IMAGENET1K_V2"), ("squeezenet1_0", "mine.pth")):
        assert not same_weights(ModelSpec(name=name, weights=weights))
    assert not same_weights(ModelSpec(name="vgg16", seed=0))
    assert not same_weights(ModelSpec(name="mobilenet_v2", weights="IMAGENET1K_V1"))


def test_each_network_is_a_measure_and_a_summary(tiny: str) -> None:
    job = build(config({"name": tiny}, "layers", classify={"attack": 4}))
    assert [step.name for step in job.steps] == ["layers_tiny", "summary_tiny"]
    measure = job.steps[0]
    assert isinstance(measure, Measure)
    assert measure.stage.config.view.preprocess.size == (16, 16)
    assert build(config({"name": tiny}, "votes")).steps[0].name == "votes_tiny"


def test_an_operation_without_a_frozen_form_is_refused_by_name(tiny: str) -> None:
    with pytest.raises(UsageError) as told:
        build(config({"name": tiny, "arguments": {"kind": "softmax"}}))
    text = str(told.value)
    assert "networks.tiny" in text
    assert "'softmax' (softmax) has no frozen form" in text
    assert "replace it by an operation that is linear" in text


def test_a_target_beyond_the_classes_is_refused(tiny: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)target 3 is no class of tiny.*0 to 2"):
        build(config({"name": tiny}, classify={"target": 3}))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"task": "layer"}, "did you mean 'layers'"),
        ({"classify": {"atack": 3}}, "did you mean 'attack'"),
        ({"classify": {"attack": 300}}, "classify.attack"),
        ({"classify": {"target": "best"}}, "classify.target: 'best' is not one of predicted, label"),
        ({"classify": {"target": -1}}, "classify.target: -1"),
        ({"networks": {"a/b": {"name": "alexnet", "seed": 0}}}, "names a folder too"),
        ({"networks": {}}, "networks"),
    ],
)
def test_mistakes_are_told_with_their_field(more: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        config({"name": "alexnet"}, **more)
    assert told in str(error.value)
