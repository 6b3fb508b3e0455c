"""Losses against values computed by hand, and against PyTorch's cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from stages.semantic.labels import targets
from stages.semantic.losses import binary, coarse_cross_entropy, focal
from stages.semantic.network import Outputs, TwoLevelConfig, image_loss

LOG = math.log


def test_focal_by_hand() -> None:
    # softmax(log [1, 2, 5]) = [1, 2, 5] / 8; true classes 1 and 2.
    logits = torch.tensor([[LOG(1), LOG(2), LOG(5)]], dtype=torch.float64)
    labels = torch.tensor([[0, 1, 1]])
    one, two = 0.75**2 * LOG(4), 0.375**2 * LOG(1.6)
    assert focal(logits, labels, alpha=0.25, gamma=2).item() == pytest.approx(0.25 * (one + two) / 2, rel=1e-12)
    assert focal(logits, labels, alpha=1, gamma=0.5).item() == pytest.approx(
        (0.75**0.5 * LOG(4) + 0.375**0.5 * LOG(1.6)) / 2, rel=1e-12
    )


def test_binary_by_hand() -> None:
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2: -log(3/4) for the true class, -log(1/2) for the absent one.
    logits = torch.tensor([[LOG(3), 0.0]], dtype=torch.float64)
    assert binary(logits, torch.tensor([[1, 0]])).item() == pytest.approx(LOG(4 / 3) + LOG(2), rel=1e-12)


def test_coarse_by_hand_and_people_only_images_have_none() -> None:
    logits = torch.tensor([[LOG(1), LOG(3)], [LOG(1), LOG(3)], [0.0, 0.0]], dtype=torch.float64)
    found = coarse_cross_entropy(logits, torch.tensor([1, 0, -1]))
    assert found.tolist() == pytest.approx([LOG(4 / 3), LOG(4), 0.0], rel=1e-12)


def test_the_loss_of_an_image_is_fine_plus_coarse() -> None:
    fine = torch.tensor([[LOG(1), LOG(2), LOG(5)], [LOG(1), LOG(2), LOG(5)]])
    coarse = torch.tensor([[LOG(1), LOG(3)], [LOG(1), LOG(3)]])
    batch = targets([[1, 2], []], [1, None], 3, 2)
    config = TwoLevelConfig(3, 2, "focal", alpha=1, gamma=0)
    labelled = (LOG(4) + LOG(1.6)) / 2 + LOG(4 / 3)
    assert image_loss(Outputs(fine, coarse), batch, config).tolist() == pytest.approx([labelled, 0.0])
    config = TwoLevelConfig(3, 2, "bce")
    absent = LOG(2) + LOG(3) + LOG(6)  # 1 - sigmoid(log x) = 1 / (1 + x)
    assert image_loss(Outputs(fine, coarse), batch, config)[1].item() == pytest.approx(absent)
    baseline = TwoLevelConfig(3, 2, coarse_only=True)
    assert image_loss(Outputs(None, coarse), batch, baseline).tolist() == pytest.approx([LOG(4 / 3), 0.0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 12))
def test_focal_without_focus_is_cross_entropy(seed: int, rows: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 5
    labels = (torch.rand(rows, classes, generator=generator) < 0.4).to(torch.uint8)
    labels[:, 0] = 1
    uniform = labels.double() / labels.sum(1, keepdim=True)
    expected = F.cross_entropy(logits, uniform, reduction="none")
    torch.testing.assert_close(focal(logits, labels, alpha=1, gamma=0), expected, rtol=1e-12, atol=1e-12)
    # A focus only ever takes weight away.
    assert bool((focal(logits, labels, alpha=1, gamma=2) <= expected + 1e-12).all())


def test_one_label_without_focus_is_the_cross_entropy_of_that_class_exactly() -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(50) % 8
    found = focal(logits, F.one_hot(classes, 8), alpha=1, gamma=0)
    assert torch.equal(found, F.cross_entropy(logits, classes, reduction="none"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_right_and_finite_even_where_the_network_is_sure(gamma: float) -> None:
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal(x, labels, 0.5, gamma), logits)
    sure = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    focal(sure, torch.tensor([[1, 0, 0], [0, 1, 0]]), 1.0, gamma).sum().backward()
    assert sure.grad is not None
    assert bool(torch.isfinite(sure.grad).all())


def test_an_image_costs_the_same_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    labels = (torch.rand(9, 5, generator=generator) < 0.5).long()
    for loss in (focal, binary):
        alone = torch.cat([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(9)])
        torch.testing.assert_close(loss(logits, labels), alone, rtol=1e-12, atol=0)


def test_labels_that_are_no_classes_are_told() -> None:
    found = targets([[0, 2], []], [1, None], 3, 2)
    assert found["fine"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert found["coarse"].tolist() == [1, -1]
    with pytest.raises(ValueError, match="image 1 has the fine class 3, and there are 3"):
        targets([[0], [3]], [0, 0], 3, 2)
    with pytest.raises(ValueError, match="image 0 has the coarse class -1"):
        targets([[0]], [-1], 3, 2)
    with pytest.raises(ValueError, match="give both for each"):
        targets([[0]], [], 3, 2)
