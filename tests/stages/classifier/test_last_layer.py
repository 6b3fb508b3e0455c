"""A last layer trained anew: what is learnt, what stays, and how it is judged."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from stages.classifier.train import ClassifierTraining, average_precision, last_linear, train_last_layer
from stages.preprocess import Preprocess
from stages.training import TensorData, TrainingConfig

FRAME = Preprocess(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def network(classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(3, 6, 3), norm=nn.BatchNorm2d(6), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(), drop=nn.Dropout(0.5), head=nn.Linear(6, classes),
    )).eval()  # fmt: skip


def images(count: int, seed: int) -> TensorData:
    """Class 0: the image is red; class 1: it is bright. Both, one or none may hold."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 2, (count, 2)).astype(np.uint8)
    pixels = draw.integers(0, 60, (count, 3, 8, 8)) + 90 * truth[:, 1, None, None, None]
    pixels[:, 0] += 100 * truth[:, 0, None, None]
    return TensorData(
        [f"{seed}/{i}" for i in range(count)],
        image=torch.from_numpy(pixels.astype(np.uint8)),
        labels=torch.from_numpy(truth),
    )


def config(**training: object) -> ClassifierTraining:
    recipe = {"epochs": 40, "batch": 16, "optimizer": "adamw", "lr": 0.05, "weight_decay": 0.0, "schedule": "constant"}
    return ClassifierTraining(2, TrainingConfig(**(recipe | training)), FRAME)  # type: ignore[arg-type]


def test_it_learns_classes_that_do_not_exclude_each_other_and_changes_no_other_layer() -> None:
    old = network()
    before = {name: value.clone() for name, value in old.state_dict().items()}
    files, facts = train_last_layer(old, {"train": images(64, 1), "tune": images(40, 2)}, config())
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    state = safetensors.torch.load(files["network.safetensors"])
    assert {n for n in state if not torch.equal(state[n], before[n])} == {"head.weight", "head.bias"}
    assert min(facts["average_precision"]) > 0.95
    assert facts["history"][-1]["mean_ap"] == pytest.approx(np.mean(facts["average_precision"]))
    new = network(2)
    new.load_state_dict(state)
    rows = images(40, 2).tensors
    with torch.no_grad():
        found = new(FRAME.normalise(rows["image"])).numpy()
    for c in range(2):  # the weights that are written are those that were judged
        assert average_precision(found[:, c], rows["labels"].numpy()[:, c]) == facts["average_precision"][c]


def test_the_loss_is_the_mean_binary_cross_entropy_of_the_new_layer() -> None:
    rows = images(16, 1)
    files, facts = train_last_layer(network(), {"train": rows}, config(epochs=1, optimizer="sgd", lr=1e-12))
    new = network(2)
    new.load_state_dict(safetensors.torch.load(files["network.safetensors"]))
    with torch.no_grad():
        p = new(FRAME.normalise(rows.tensors["image"])).sigmoid()
    y = rows.tensors["labels"]
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert facts["history"][0]["loss"] == pytest.approx(float(expected), abs=1e-6)


def test_average_precision_by_hand_and_equal_scores_share_a_place() -> None:
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    assert average_precision(scores, truth) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(np.zeros(4), truth) == average_precision(np.zeros(4), truth[::-1]) == 0.5
    assert np.isnan(average_precision(scores, np.zeros(4)))


def test_average_precision_is_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score

    draw = np.random.default_rng(3)
    for _ in range(5):
        scores, truth = draw.integers(0, 9, 30) / 9.0, draw.integers(0, 2, 30)
        assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_a_network_whose_classes_are_a_convolution_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="last linear layer"):
        last_linear(module, torch.zeros(1, 3, 8, 8))
