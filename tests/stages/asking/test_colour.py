"""Colour conversion against scikit-image, and derivatives where a careless formula has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from stages.asking.colour import lab_to_rgb, rgb_to_lab, to_bytes, to_unit


def cube(steps: int) -> np.ndarray:
    """Colours all over sRGB, its corners too: float64 [steps^3, 3]."""
    at = np.linspace(0, 1, steps)
    return np.stack(np.meshgrid(at, at, at, indexing="ij"), -1).reshape(-1, 3)


def as_image(colours: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(colours).T[None, :, :, None]


def as_colours(image: torch.Tensor) -> np.ndarray:
    return image[0, :, :, 0].T.numpy()


def test_lab_is_scikit_images() -> None:
    colours = cube(18)
    found = as_colours(rgb_to_lab(as_image(colours)))
    assert np.abs(found - rgb2lab(colours)).max() < 1e-10
    single = as_colours(rgb_to_lab(as_image(colours.astype(np.float32))))
    assert np.abs(single - rgb2lab(colours)).max() < 2e-3
    assert np.abs(found[:, 1:]).max() < 110


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_rgb_is_scikit_images_for_colours_outside_of_srgb_too() -> None:
    rng = np.random.default_rng(0)
    lab = rng.uniform((0, -120, -120), (100, 120, 120), (4000, 3))
    found = as_colours(lab_to_rgb(as_image(lab)))
    assert np.abs(found - lab2rgb(lab)).max() < 1e-6  # its inverse is that of a matrix rounded to six digits, too
    assert found.min() == 0
    assert found.max() == 1


def test_all_8_bit_colours_survive_the_way_there_and_back() -> None:
    levels = torch.arange(0, 256, 5, dtype=torch.uint8)
    image = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, len(levels), -1)
    assert torch.equal(to_bytes(lab_to_rgb(rgb_to_lab(to_unit(image)))), image)


def test_known_colours() -> None:
    colours = np.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]])
    found = as_colours(rgb_to_lab(as_image(colours)))
    # White and black have no colour; red and blue as in every table of CIELAB with D65.
    assert found == pytest.approx(
        np.array([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]), abs=0.02
    )


def test_derivatives_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(1)
    # Both branches of each formula, away from where they meet and from where sRGB is clipped.
    colours = np.concatenate([rng.uniform(0.1, 0.9, (6, 3)), rng.uniform(0.002, 0.006, (3, 3))])
    rgb = as_image(colours).requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_lab, rgb)
    assert torch.autograd.gradcheck(lab_to_rgb, rgb_to_lab(rgb.detach()).requires_grad_())


def test_derivatives_are_finite_where_colours_end() -> None:
    for dtype in (torch.float32, torch.float64):
        rgb = as_image(np.array([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]])).to(dtype).requires_grad_()
        rgb_to_lab(rgb).sum().backward()
        lab = as_image(np.array([[0.0, 0, 0], [100, 0, 0], [0, -100, 100], [50, 150, -150]])).to(dtype).requires_grad_()
        lab_to_rgb(lab).sum().backward()
        assert rgb.grad is not None
        assert lab.grad is not None
        assert torch.isfinite(rgb.grad).all()
        assert torch.isfinite(lab.grad).all()
        assert (rgb.grad[:, :, 0] != 0).any()
