"""Preprocess: the frame a network sees, and boxes carried into it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.vision import torchvision
from stages.preprocess import Preprocess


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(300, 401), (401, 300), (256, 256), (97, 333)])
def test_crop_is_torchvisions_resize_and_centre_crop(height: int, width: int) -> None:
    image = picture(height, width)
    transforms = torchvision.transforms
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    ours = Preprocess(frame="crop", resize=256).pixels(image)
    assert np.array_equal(ours, reference(Image.fromarray(image)).numpy())
    assert np.array_equal(Preprocess(frame="crop").pixels(image), ours), "256 for 224 is the default"


def test_squash_covers_the_whole_image_without_keeping_its_shape() -> None:
    image = np.zeros((50, 200, 3), np.uint8)
    image[:, 100:] = 240  # the right half is bright
    out = Preprocess(size=(20, 40)).pixels(image)
    assert out.shape == (3, 20, 40)
    assert out.dtype == np.uint8
    assert (out[:, :, :19] == 0).all()
    assert (out[:, :, 21:] == 240).all()


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = picture(32, 32)
    assert np.array_equal(Preprocess(size=(32, 32)).pixels(image), image.transpose(2, 0, 1))


def test_normalise_by_hand() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    out = Preprocess(size=(1, 1), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)).normalise(pixels)
    assert out.dtype == torch.float32
    assert torch.allclose(out.flatten(), torch.tensor([-1.0, (128 / 255 - 0.25) / 0.25, 0.5]), atol=1e-6)
    reference = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = torch.from_numpy(picture(8, 9).transpose(2, 0, 1).copy())[None]
    assert torch.allclose(Preprocess().normalise(image), reference(image / 255.0), atol=1e-5)


def test_boxes_follow_the_pixels() -> None:
    boxes = np.array([[10, 20, 110, 70]])
    squash = Preprocess(size=(100, 100)).to_frame(boxes, width=200, height=400)
    assert np.allclose(squash, [[5, 5, 55, 17.5]])
    # 200 x 400: the short side 200 becomes 100, the image 100 x 200, the crop 80 x 80 starts at (10, 60).
    crop = Preprocess(size=(80, 80), frame="crop", resize=100)
    assert np.allclose(crop.to_frame(np.array([[30, 130, 190, 250]]), 200, 400), [[5, 5, 80, 65]])
    gone = crop.to_frame(np.array([[0, 0, 50, 50]]), 200, 400)
    assert gone[0, 3] - gone[0, 1] == 0, "a box outside the crop has no area, and stays in its place"
    assert crop.to_frame(np.zeros((0, 4)), 200, 400).shape == (0, 4)


@pytest.mark.parametrize("preprocess", [Preprocess(size=(60, 45)), Preprocess(size=(60, 45), frame="crop", resize=66)])
def test_boxes_come_back_to_the_image(preprocess: Preprocess) -> None:
    boxes = np.array([[30.0, 25.0, 60.0, 88.0], [41.5, 30.0, 50.0, 31.0]])  # within what the crop sees
    there = preprocess.to_frame(boxes, width=90, height=120)
    assert np.allclose(preprocess.from_frame(there, 90, 120), boxes, atol=1e-4)
    # 90 x 120 to 66 x 88, cut from (14, 10) on; squashed, the frame is all of the image.
    whole = preprocess.from_frame(np.array([[0, 0, 45, 60]]), 90, 120)
    seen = [[10 * 90 / 66, 14 * 120 / 88, 55 * 90 / 66, 74 * 120 / 88]]
    assert np.allclose(whole, seen if preprocess.frame == "crop" else [[0, 0, 90, 120]])
    assert np.allclose(preprocess.from_frame(np.array([[-50, -50, 500, 500]]), 90, 120), [[0, 0, 90, 120]])


def test_a_box_drawn_on_the_image_is_where_to_frame_says() -> None:
    image = np.zeros((120, 90, 3), np.uint8)
    image[40:80, 30:60] = 255
    for preprocess in (Preprocess(size=(60, 60)), Preprocess(size=(60, 60), frame="crop", resize=66)):
        x0, y0, x1, y1 = preprocess.to_frame(np.array([[30, 40, 60, 80]]), 90, 120)[0]
        ys, xs = np.nonzero(preprocess.pixels(image)[0] > 127)
        assert max(abs(xs.min() - x0), abs(xs.max() + 1 - x1), abs(ys.min() - y0), abs(ys.max() + 1 - y1)) <= 1


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"frame": "stretch"}, "frame"),
        ({"size": (0, 5)}, "size"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"frame": "crop", "resize": 100}, "resize"),
    ],
)
def test_impossible_settings_are_named(kwargs: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"preprocess.{named}"):
        Preprocess(**kwargs)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Preprocess().pixels(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="RGB"):
        Preprocess().pixels(np.zeros((4, 4), np.uint8))
