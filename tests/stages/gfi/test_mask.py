"""The mask and the two images it makes: the identities that the protocol lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from stages.gfi.background import blurred, noise
from stages.gfi.mask import combine, enlarge, kept, low_mask, mask_of, removed

SIZE = (20, 16)
BOTH = ("scaled", "enlarged")


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_mask_of_ones_keeps_the_image_and_of_zeros_the_background() -> None:
    x, background = tensor(2, 3, *SIZE), tensor(2, 3, *SIZE, seed=1)
    one, zero = torch.ones(2, 1, *SIZE, dtype=torch.float64), torch.zeros(2, 1, *SIZE, dtype=torch.float64)
    assert torch.equal(kept(x, background, one), x)
    assert torch.equal(removed(x, background, one), background)
    assert torch.equal(kept(x, background, zero), background)
    assert torch.equal(removed(x, background, zero), x)


def test_what_is_kept_and_what_is_removed_add_up_to_image_and_background() -> None:
    x, background, mask = tensor(2, 3, *SIZE), tensor(2, 3, *SIZE, seed=1), tensor(2, 1, *SIZE, seed=2)
    total = kept(x, background, mask) + removed(x, background, mask)
    assert torch.allclose(total, x + background, rtol=0, atol=1e-15)


def test_channels_are_weighted_and_summed() -> None:
    weights, features = tensor(2, 5), tensor(2, 5, 4, 3, seed=1)
    slow = torch.zeros(2, 4, 3, dtype=torch.float64)
    for i in range(2):
        for k in range(5):
            slow[i] += weights[i, k] * features[i, k]
    assert torch.allclose(combine(weights, features), slow, rtol=0, atol=1e-14)


@pytest.mark.parametrize("upsampling", BOTH)
@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e5])
def test_the_mask_does_not_change_when_all_weights_are_scaled(upsampling: str, scale: float) -> None:
    weights, features = tensor(2, 5), tensor(2, 5, 4, 3, seed=1)
    one = mask_of(weights, features, SIZE, upsampling)
    assert torch.allclose(mask_of(scale * weights, features, SIZE, upsampling), one, rtol=0, atol=1e-12)


def test_the_papers_mask_is_scaled_to_0_1_and_then_enlarged() -> None:
    heat = torch.tensor([[[1.0, 3.0], [2.0, 5.0]]], dtype=torch.float64)
    low = low_mask(heat, "scaled")
    assert torch.equal(low[0], torch.tensor([[0.0, 0.5], [0.25, 1.0]], dtype=torch.float64))
    large = enlarge(low, (4, 4), "scaled")[0, 0]
    # Corners not aligned: pixel centres of the small map lie at 0.5 and 2.5 of the large one.
    assert large[0].tolist() == [0.0, 0.125, 0.375, 0.5]
    assert large[3].tolist() == [0.25, 0.4375, 0.8125, 1.0]


def test_the_authors_mask_is_enlarged_and_then_less_its_minimum_over_its_maximum() -> None:
    heat = torch.tensor([[[1.0, 3.0], [2.0, 5.0]]], dtype=torch.float64)
    large = mask_of(torch.ones(1, 1, dtype=torch.float64), heat.unsqueeze(1), (3, 3), "enlarged")[0, 0]
    aligned = torch.tensor([[1.0, 2.0, 3.0], [1.5, 2.75, 4.0], [2.0, 3.5, 5.0]], dtype=torch.float64)
    assert torch.allclose(large, (aligned - 1) / 5, rtol=0, atol=1e-15)  # the largest value is 0.8, as published
    assert torch.allclose(enlarge(low_mask(heat, "enlarged"), (3, 3), "enlarged")[0, 0], large, rtol=0, atol=1e-15)


@pytest.mark.parametrize("upsampling", BOTH)
@pytest.mark.parametrize("case", ["zero weights", "dead features", "flat features"])
def test_a_map_without_contrast_is_zero_with_a_zero_gradient(upsampling: str, case: str) -> None:
    weights, features = tensor(2, 5), tensor(2, 5, 4, 3, seed=1)
    if case == "zero weights":
        weights[0] = 0
    elif case == "dead features":
        features[0] = 0
    else:
        features[0] = features[0, :, :1, :1]
    weights.requires_grad_(True)
    mask = mask_of(weights, features, SIZE, upsampling)
    mask.pow(2).sum().backward()
    assert torch.allclose(mask[0], torch.zeros_like(mask[0]), rtol=0, atol=1e-12)
    assert torch.isfinite(weights.grad).all()
    assert weights.grad[0].abs().max() <= 1e-9
    assert weights.grad[1].abs().max() > 0.01  # its neighbour goes on


def test_not_a_number_is_not_hidden() -> None:
    features = tensor(1, 2, 3, 3)
    features[0, 0, 1, 1] = float("nan")
    for upsampling in BOTH:
        assert mask_of(tensor(1, 2), features, SIZE, upsampling).isnan().any()


def test_the_blur_is_pils() -> None:
    y, x = np.mgrid[0:120, 0:128]
    image = np.stack([x * 2, y * 2, 127 + 120 * np.sin(x / 7) * np.cos(y / 9)], axis=2).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius=11))).astype(float)
    ours = blurred(torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64))[None])[0].numpy().transpose(1, 2, 0)
    # PIL takes three box filters for the Gaussian, rounds to whole grey levels, and repeats the edge before each.
    inside = np.abs(ours - theirs)[36:-36, 36:-36]
    assert inside.max() <= 4
    assert inside.mean() <= 1


def test_a_constant_image_blurs_to_itself() -> None:
    flat = torch.full((1, 3, 40, 30), 0.7, dtype=torch.float64)
    assert torch.allclose(blurred(flat), flat, rtol=0, atol=1e-12)


def test_noise_comes_from_seed_and_key_alone() -> None:
    pair = noise(0, ["a", "b"], (3, 40, 41))
    assert torch.equal(pair[1], noise(0, ["c", "b", "a"], (3, 40, 41))[1])
    assert not torch.equal(pair[0], pair[1])
    assert not torch.equal(pair[0], noise(1, ["a"], (3, 40, 41))[0])
    assert pair.mean().abs() < 0.05
    assert abs(float(pair.std()) - 1) < 0.05
    assert pair.shape == (2, 3, 40, 41)
